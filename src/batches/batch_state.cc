#include "batches/batch_state.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "server/batch_line.h"

namespace millrace {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::pair<BatchStatus, std::string_view>, 8> kStatusNames = {
    {{BatchStatus::validating, "validating"},
     {BatchStatus::failed, "failed"},
     {BatchStatus::in_progress, "in_progress"},
     {BatchStatus::finalizing, "finalizing"},
     {BatchStatus::completed, "completed"},
     {BatchStatus::expired, "expired"},
     {BatchStatus::cancelling, "cancelling"},
     {BatchStatus::cancelled, "cancelled"}}};

/// What the gateway has for itself in the JSON of the store.
constexpr const char* kOwn = "millrace";

// The records may hold whatever clients sent as names: what is no UTF-8 in it becomes U+FFFD.
std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json or_null(const std::string& text) {
  return text.empty() ? Json() : Json(text);
}

Json or_null(UnixTime time) {
  return time == 0 ? Json() : Json(time);
}

/// Reads what this program wrote; `ok` says whether all was there.
class Reader {
 public:
  explicit Reader(const Json& json) : json_(&json) {}

  std::string text(const char* key) {
    const Json* value = find(key);
    return value != nullptr && value->is_string() ? value->get<std::string>() : miss(std::string());
  }
  std::string text_or_none(const char* key) {
    const Json* value = find(key);
    return value == nullptr || value->is_null() ? std::string() : text(key);
  }
  std::int64_t number(const char* key) {
    const Json* value = find(key);
    return value != nullptr && value->is_number_integer() ? value->get<std::int64_t>() : miss(std::int64_t{0});
  }
  std::int64_t number_or_zero(const char* key) {
    const Json* value = find(key);
    return value == nullptr || value->is_null() ? 0 : number(key);
  }
  bool flag(const char* key) {
    const Json* value = find(key);
    return value != nullptr && value->is_boolean() ? value->get<bool>() : miss(false);
  }
  const Json& object(const char* key) {
    static const Json kEmpty = Json::object();
    const Json* value = find(key);
    return value != nullptr && value->is_object() ? *value : miss(kEmpty);
  }

  /// Null: it is no object, or has no such member.
  [[nodiscard]] const Json* find(const char* key) const {
    if (!json_->is_object()) return nullptr;
    const auto found = json_->find(key);
    return found == json_->end() ? nullptr : &*found;
  }

  bool ok = true;

 private:
  template <typename T>
  const T& miss(const T& fallback) {
    ok = false;
    return fallback;
  }

  const Json* json_;
};

Json counts_json(const BatchCounts& counts) {
  return {{"total", counts.total}, {"completed", counts.completed}, {"failed", counts.failed}};
}

BatchCounts read_counts(Reader& from) {
  Reader in(from.object("request_counts"));
  const BatchCounts counts{in.number("total"), in.number("completed"), in.number("failed")};
  from.ok = from.ok && in.ok;
  return counts;
}

Json json_of(const FileRecord& file) {
  return {{"id", file.id},         {"object", "file"},        {"bytes", file.bytes},  {"created_at", file.created_at},
          {"filename", file.name}, {"purpose", file.purpose}, {"status", "processed"}};
}

Json json_of(const BatchRecord& batch) {
  Json errors;
  if (!batch.problems.empty()) {
    errors = {{"object", "list"}, {"data", Json::array()}};
    for (const BatchProblem& problem : batch.problems) {
      errors["data"].push_back({{"code", problem.code},
                                {"message", problem.message},
                                {"param", nullptr},
                                {"line", problem.line == 0 ? Json() : Json(problem.line)}});
    }
  }
  Json metadata;
  for (const auto& [key, value] : batch.metadata) metadata[key] = value;
  return {{"id", batch.id},
          {"object", "batch"},
          {"endpoint", batch.endpoint},
          {"model", batch.model},
          {"errors", std::move(errors)},
          {"input_file_id", batch.input_file},
          {"completion_window", batch.window},
          {"status", batch_status_name(batch.status)},
          {"output_file_id", or_null(batch.output_file)},
          {"error_file_id", or_null(batch.error_file)},
          {"created_at", batch.created_at},
          {"in_progress_at", or_null(batch.in_progress_at)},
          {"expires_at", batch.expires_at},
          {"finalizing_at", or_null(batch.finalizing_at)},
          {"completed_at", or_null(batch.completed_at)},
          {"failed_at", or_null(batch.failed_at)},
          {"expired_at", or_null(batch.expired_at)},
          {"cancelling_at", or_null(batch.cancelling_at)},
          {"cancelled_at", or_null(batch.cancelled_at)},
          {"request_counts", counts_json(batch.counts)},
          {"metadata", std::move(metadata)}};
}

Error unreadable(std::string_view what) {
  return fail("the record of a {} in mr_batches is not one that a gateway wrote", what);
}

}  // namespace

std::string_view batch_status_name(BatchStatus status) {
  return std::ranges::find(kStatusNames, status, &std::pair<BatchStatus, std::string_view>::first)->second;
}

bool has_ended(BatchStatus status) {
  return status == BatchStatus::failed || status == BatchStatus::completed || status == BatchStatus::expired ||
         status == BatchStatus::cancelled;
}

UnixTime BatchRecord::ended_at() const {
  return std::max({completed_at, failed_at, expired_at, cancelled_at});
}

std::string file_json(const FileRecord& file) {
  return dump(json_of(file));
}

std::string batch_json(const BatchRecord& batch) {
  return dump(json_of(batch));
}

std::string stored_file(const FileRecord& file) {
  Json json = json_of(file);
  json[kOwn] = {{"blob", file.blob}};
  return dump(json);
}

Result<FileRecord> read_file_record(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  Reader in(json);
  FileRecord file{.id = in.text("id"),
                  .blob = {},
                  .name = in.text("filename"),
                  .purpose = in.text("purpose"),
                  .bytes = static_cast<std::uint64_t>(in.number("bytes")),
                  .created_at = in.number("created_at")};
  Reader own(in.object(kOwn));
  file.blob = own.text("blob");
  if (!in.ok || !own.ok) return unreadable("file");
  return file;
}

std::string stored_batch(const BatchRecord& batch) {
  Json json = json_of(batch);
  json[kOwn] = {{"owner", batch.owner},
                {"input_blob", batch.input_blob},
                {"input_bytes", batch.input_bytes},
                {"blocks", batch.blocks},
                {"deadline_passed", batch.deadline_passed}};
  return dump(json);
}

Result<BatchRecord> read_batch(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  Reader in(json);
  BatchRecord batch;
  batch.id = in.text("id");
  batch.endpoint = in.text("endpoint");
  batch.model = in.text("model");
  batch.input_file = in.text("input_file_id");
  batch.window = in.text("completion_window");
  batch.output_file = in.text_or_none("output_file_id");
  batch.error_file = in.text_or_none("error_file_id");
  batch.created_at = in.number("created_at");
  batch.expires_at = in.number("expires_at");
  for (const auto& [key, time] : {std::pair("in_progress_at", &batch.in_progress_at),
                                  {"finalizing_at", &batch.finalizing_at},
                                  {"completed_at", &batch.completed_at},
                                  {"failed_at", &batch.failed_at},
                                  {"expired_at", &batch.expired_at},
                                  {"cancelling_at", &batch.cancelling_at},
                                  {"cancelled_at", &batch.cancelled_at}}) {
    *time = in.number_or_zero(key);
  }
  batch.counts = read_counts(in);
  const std::string status = in.text("status");
  const auto named = std::ranges::find(kStatusNames, status, &std::pair<BatchStatus, std::string_view>::second);
  Reader own(in.object(kOwn));
  batch.owner = own.text("owner");
  batch.input_blob = own.text("input_blob");
  batch.input_bytes = static_cast<std::uint64_t>(own.number("input_bytes"));
  batch.blocks = own.number("blocks");
  batch.deadline_passed = own.flag("deadline_passed");
  if (!in.ok || !own.ok || named == kStatusNames.end()) return unreadable("batch");
  batch.status = named->first;
  if (const Json* errors = in.find("errors"); errors != nullptr && errors->is_object()) {
    const Json* data = Reader(*errors).find("data");
    if (data == nullptr || !data->is_array()) return unreadable("batch");
    for (const Json& problem : *data) {
      Reader of(problem);
      batch.problems.push_back({of.text("code"), of.text("message"), of.number_or_zero("line")});
      if (!of.ok) return unreadable("batch");
    }
  }
  if (const Json* metadata = in.find("metadata"); metadata != nullptr && metadata->is_object()) {
    for (const auto& [key, value] : metadata->items()) {
      if (value.is_string()) batch.metadata.emplace_back(key, value.get<std::string>());
    }
  }
  return batch;
}

std::string stored_claim(const BatchClaim& claim) {
  Json json{{"life", claim.life}, {"done", claim.done}, {"request_counts", counts_json(claim.counts)}};
  if (claim.tokens.lines > 0) {
    json["measured_lines"] = claim.tokens.lines;
    json["prompt_tokens"] = claim.tokens.prompt;
    json["answer_tokens"] = claim.tokens.answer;
  }
  return dump(json);
}

Result<BatchClaim> read_claim(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  Reader in(json);
  BatchClaim claim{.life = in.text("life"), .done = in.flag("done"), .counts = read_counts(in), .tokens = {}};
  if (in.find("measured_lines") != nullptr) {
    claim.tokens = {in.number("measured_lines"), in.number("prompt_tokens"), in.number("answer_tokens")};
  }
  if (!in.ok) return unreadable("claim");
  return claim;
}

std::string stored_result(const LineResult& result) {
  Json head{{"status", result.status}, {"bytes", result.bytes}};
  if (!result.blob.empty()) head["blob"] = result.blob;
  if (!result.writer.empty()) head["writer"] = result.writer;
  return dump(head) + "\n" + result.record;
}

Result<LineResult> read_result(std::string_view text) {
  const std::size_t end = std::min(text.find('\n'), text.size());
  const Json json = Json::parse(text.substr(0, end), nullptr, false);
  Reader in(json);
  LineResult result{.status = static_cast<int>(in.number("status")),
                    .record = std::string(text.substr(std::min(end + 1, text.size()))),
                    .blob = in.text_or_none("blob"),
                    .bytes = static_cast<std::uint64_t>(in.number("bytes"))};
  if (!in.ok || (result.blob.empty() && result.record.size() != result.bytes)) return unreadable("line's result");
  return result;
}

std::string stored_index(const std::vector<BlockStart>& blocks) {
  std::string out;
  for (const BlockStart& block : blocks)
    fmt::format_to(std::back_inserter(out), "{} {}\n", block.offset, block.request);
  return out;
}

Result<std::vector<BlockStart>> read_index(std::string_view text) {
  std::vector<BlockStart> blocks;
  while (!text.empty()) {
    const char* const end = text.data() + text.size();
    BlockStart block;
    const auto [blank, first] = std::from_chars(text.data(), end, block.offset);
    if (first != std::errc() || blank == end || *blank != ' ') return unreadable("batch's index");
    const auto [line, second] = std::from_chars(blank + 1, end, block.request);
    if (second != std::errc() || line == end || *line != '\n') return unreadable("batch's index");
    if (!blocks.empty() && (block.offset <= blocks.back().offset || block.request <= blocks.back().request)) {
      return unreadable("batch's index");
    }
    blocks.push_back(block);
    text.remove_prefix(static_cast<std::size_t>(line + 1 - text.data()));
  }
  return blocks;
}

Result<std::int64_t> read_window(std::string_view text) {
  constexpr std::int64_t kMinute = 60, kHour = 60 * kMinute, kDay = 24 * kHour, kMost = 30 * kDay;
  constexpr std::array<std::pair<char, std::int64_t>, 4> kUnits = {
      {{'s', 1}, {'m', kMinute}, {'h', kHour}, {'d', kDay}}};
  const char* const end = text.data() + text.size();
  std::int64_t number = 0;
  const auto [stopped, problem] = std::from_chars(text.data(), end, number);
  const auto unit =
      stopped + 1 == end ? std::ranges::find(kUnits, *stopped, &std::pair<char, std::int64_t>::first) : kUnits.end();
  if (problem != std::errc() || unit == kUnits.end() || number < 1 || number > kMost / unit->second) {
    return fail("'{}' is no time from 1s to 30d: expected a number and s, m, h or d, such as 24h", text.substr(0, 32));
  }
  return number * unit->second;
}

namespace batch_keys {

std::string owner(std::string_view tenant) {
  return fmt::format("{:016x}", batch_line_hash(tenant));
}

std::string file(std::string_view owner, std::string_view id) {
  return fmt::format("file.{}.{}", owner, id);
}

std::string batch(std::string_view owner, std::string_view id) {
  return fmt::format("batch.{}.{}", owner, id);
}

std::string line(std::string_view batch, std::int64_t block, std::int64_t request) {
  return fmt::format("line.{}.{}.{:06}", batch, block, request);  // in the order of their numbers
}

}  // namespace batch_keys

}  // namespace millrace
