#include "server/batch_input.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

/// A custom_id and where it stands.
struct Name {
  std::uint64_t high = 0, low = 0;  // two hashes of it: 128 bits, so that equal ones are equal names
  std::int64_t line = 0;

  auto operator<=>(const Name&) const = default;
};

Name name_of(const std::string& custom_id, std::int64_t line) {
  return {.high = batch_line_hash(custom_id), .low = batch_line_hash("low:" + custom_id), .line = line};
}

bool blank(std::string_view text) {
  return text.find_first_not_of(" \t\r") == std::string_view::npos;
}

BatchLine read_line(const LineReader::Line& line) {
  if (line.whole()) return read_batch_line(line.text);
  BatchLine refused;
  refused.problem =
      ApiError{.message = fmt::format("The line has {} bytes, at most {} are allowed.", line.bytes, kBatchLineBytes),
               .code = "invalid_json_line"};
  return refused;
}

Result<std::string> custom_id_at(const OpenFile& file, std::int64_t number) {
  LineReader reader(file, kBatchLineBytes);
  while (true) {
    MILLRACE_TRY(const auto line, reader.next());
    if (!line) return std::string();
    if (line->number == number) return read_line(*line).custom_id.value_or("");
  }
}

/// Error: a custom_id that two lines have; the first few of them.
Status check_unique(std::vector<Name> names, const OpenFile& file) {
  constexpr std::size_t kTold = 5, kNameBytes = 80;
  std::sort(names.begin(), names.end());
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  for (std::size_t i = 1; i < names.size(); ++i) {
    const Name &first = names[i - 1], &second = names[i];
    if (first.high == second.high && first.low == second.low) pairs.emplace_back(first.line, second.line);
  }
  if (pairs.empty()) return Ok{};
  std::sort(pairs.begin(), pairs.end());
  MILLRACE_TRY(const std::string name, custom_id_at(file, pairs.front().first));
  std::string told;
  for (std::size_t i = 1; i < std::min(pairs.size(), kTold); ++i) {
    told += fmt::format("; {} and {}", pairs[i].first, pairs[i].second);
  }
  if (pairs.size() > kTold) told += fmt::format("; and {} more", pairs.size() - kTold);
  if (!told.empty()) told = "; the same goes for lines" + told.substr(1);
  return fail("{}: lines {} and {} have the same custom_id \"{}\"{}", file.path(), pairs.front().first,
              pairs.front().second, name.substr(0, kNameBytes), told);
}

}  // namespace

BatchInput::BatchInput(OpenFile file) : file_(std::move(file)) {}

Result<BatchInput> BatchInput::open(const std::string& path) {
  MILLRACE_TRY(OpenFile file, OpenFile::open(path, O_RDONLY));
  BatchInput input(std::move(file));
  MILLRACE_CHECK_OK(input.index());
  return input;
}

Status BatchInput::index() {
  LineReader reader(file_, kBatchLineBytes);
  std::vector<Name> names;
  while (true) {
    MILLRACE_TRY(const auto line, reader.next());
    if (!line) break;
    if (blank(line->text)) continue;
    if (hashes_.size() == kBatchMaxRequests) {
      return fail("{}: more than {} requests; split the file", file_.path(), kBatchMaxRequests);
    }
    hashes_.push_back(batch_line_hash(line->text));
    const BatchLine read = read_line(*line);
    if (read.custom_id) names.push_back(name_of(*read.custom_id, line->number));
  }
  answered_.resize(hashes_.size());
  return check_unique(std::move(names), file_);
}

BatchInput::Mark BatchInput::mark_answered(const BatchKey& key) {
  if (key.number >= hashes_.size() || hashes_[key.number] != key.hash) return Mark::unknown;
  if (answered_[key.number]) return Mark::twice;
  answered_[key.number] = true;
  return Mark::done;
}

Error BatchInput::changed() const {
  return fail("{}: the file has changed while it was being answered", file_.path());
}

Result<std::optional<BatchInput::Item>> BatchInput::next() {
  if (!reader_) reader_.emplace(file_, kBatchLineBytes);
  while (true) {
    MILLRACE_TRY(const auto line, reader_->next());
    if (!line) {
      if (next_ < hashes_.size()) return changed();
      return std::optional<Item>();
    }
    if (blank(line->text)) continue;
    const std::size_t number = next_++;
    if (number >= hashes_.size() || hashes_[number] != batch_line_hash(line->text)) return changed();
    if (answered_[number]) continue;
    return std::optional<Item>({.key = {.number = number, .hash = hashes_[number]}, .line = read_line(*line)});
  }
}

}  // namespace millrace
