#include "batches/batch_validation.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace millrace {

namespace {

bool blank(std::string_view text) {
  return text.find_first_not_of(" \t\r") == std::string_view::npos;
}

std::string_view url_of(Endpoint endpoint) {
  return endpoint == Endpoint::chat         ? "/v1/chat/completions"
         : endpoint == Endpoint::completion ? "/v1/completions"
                                            : "/v1/embeddings";
}

}  // namespace

void BatchValidator::problem(std::string code, std::string message) {
  if (problems_.size() < kMostProblems) problems_.push_back({std::move(code), std::move(message), line_number_});
}

void BatchValidator::put(std::string_view bytes) {
  while (!bytes.empty()) {
    const std::size_t end = bytes.find('\n');
    const std::string_view part = bytes.substr(0, end);
    line_.append(part.substr(0, kMostLineBytes + 1 - std::min(line_.size(), kMostLineBytes + 1)));
    line_bytes_ += part.size();
    if (end == std::string_view::npos) return;
    take_line(true);
    bytes.remove_prefix(end + 1);
  }
}

void BatchValidator::finish() {
  if (line_bytes_ > 0) take_line(false);
  line_number_ = 0;  // of the file as a whole
  if (requests_ == 0 && problems_.empty()) problem("empty_file", "The file has no requests.");
  index_.push_back({line_begin_, requests_});
}

void BatchValidator::take_line(bool ended) {
  if (line_bytes_ > kMostLineBytes) {
    problem("line_too_long",
            fmt::format("The line has {} bytes, at most {} are allowed.", line_bytes_, kMostLineBytes));
    ++requests_;
  } else if (!blank(line_)) {
    const bool full = index_.empty() || requests_ - index_.back().request >= kBlockLines ||
                      line_begin_ - index_.back().offset >= kBlockBytes;
    if (full) index_.push_back({line_begin_, requests_});
    if (requests_++ == kMostBatchLines) {
      problem("too_many_requests", fmt::format("A batch has at most {} requests; split the file.", kMostBatchLines));
    } else if (requests_ <= kMostBatchLines) {
      check(read_batch_line(line_));
    }
  }
  line_begin_ += line_bytes_ + (ended ? 1 : 0);
  line_bytes_ = 0;
  ++line_number_;
  line_.clear();
}

void BatchValidator::check(const BatchLine& line) {
  if (line.problem) {
    problem(line.problem->code.value_or("invalid_request"), line.problem->message);
    return;
  }
  if (line.custom_id->size() > kMostCustomId) {
    problem("invalid_custom_id",
            fmt::format("The custom_id has {} bytes, at most {} are allowed.", line.custom_id->size(), kMostCustomId));
    return;
  }
  if (url_of(line.endpoint) != endpoint_) {
    problem("mismatched_endpoint",
            fmt::format("The url is '{}', that of the batch is '{}'.", url_of(line.endpoint), endpoint_));
  }
  if (nlohmann::json::parse(line.body).value("stream", nlohmann::json(false)) == true) {
    problem("invalid_request", "A batch has no streams: leave \"stream\" out.");
  }
  const auto [other, is_new] = names_.emplace(*line.custom_id, line_number_);
  if (!is_new) {
    problem("duplicate_custom_id",
            fmt::format("The custom_id '{}' is that of line {} too.", line.custom_id->substr(0, 64), other->second));
  }
}

std::vector<BlockLine> read_block(std::string_view bytes, const BlockStart& start) {
  std::vector<BlockLine> lines;
  auto number = static_cast<std::uint64_t>(start.request);
  while (!bytes.empty()) {
    const std::string_view text = bytes.substr(0, bytes.find('\n'));
    bytes.remove_prefix(std::min(text.size() + 1, bytes.size()));
    if (blank(text)) continue;
    lines.push_back({.key = {.number = number++, .hash = batch_line_hash(text)}, .request = read_batch_line(text)});
  }
  return lines;
}

}  // namespace millrace
