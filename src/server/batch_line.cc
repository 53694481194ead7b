#include "server/batch_line.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "core/check.h"
#include "server/api_id.h"
#include "server/api_json.h"

namespace millrace {

namespace {

constexpr std::string_view kRecordHead = R"({"id":"batch_req_)";
constexpr std::string_view kRecordName = R"(","custom_id":)";
constexpr std::size_t kNumberDigits = 12, kHashDigits = 16;

constexpr std::array<std::pair<std::string_view, Endpoint>, 3> kUrls = {{{"/v1/chat/completions", Endpoint::chat},
                                                                         {"/v1/completions", Endpoint::completion},
                                                                         {"/v1/embeddings", Endpoint::embedding}}};

std::optional<std::uint64_t> read_hex(std::string_view digits) {
  std::uint64_t value = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stopped, problem] = std::from_chars(digits.data(), end, value, 16);
  return problem == std::errc() && stopped == end ? std::optional(value) : std::nullopt;
}

void read_request(Json& json, BatchLine& line) {
  Fields fields(json);
  const Json* name = fields.find("custom_id");
  if (name == nullptr) {
    fields.refuse(missing("custom_id"));
  } else if (!name->is_string()) {
    fields.refuse(invalid_type("custom_id", "a string", *name));
  } else {
    line.custom_id = name->get<std::string>();
  }
  const std::string method = fields.text("method", "");
  if (method.empty()) fields.refuse(missing("method"));
  if (method != "POST")
    fields.refuse(invalid_value("method", fmt::format("'{}', expected 'POST'", method.substr(0, 64))));
  const std::string url = fields.text("url", "");
  if (url.empty()) fields.refuse(missing("url"));
  const auto known = std::find_if(kUrls.begin(), kUrls.end(), [&](const auto& entry) { return entry.first == url; });
  if (known == kUrls.end()) {
    fields.refuse(invalid_value("url", fmt::format("'{}' is none of '{}', '{}' and '{}'", url.substr(0, 64),
                                                   kUrls[0].first, kUrls[1].first, kUrls[2].first)));
  } else {
    line.endpoint = known->second;
  }
  if (fields.object("body") == nullptr) fields.refuse(missing("body"));
  line.problem = std::move(fields.error);
  if (line.problem) return;
  Json& body = json["body"];
  if (line.endpoint != Endpoint::embedding && !Fields(body).has("seed")) body["seed"] = batch_seed(*line.custom_id);
  line.body = body.dump();
}

}  // namespace

BatchLine read_batch_line(std::string_view text) {
  BatchLine line;
  auto json = parse_body(text);
  if (json.ok()) {
    read_request(*json, line);
    return line;
  }
  line.problem = std::move(json).error();
  line.problem->code = "invalid_json_line";
  constexpr std::string_view kBody = "body";
  if (const std::size_t at = line.problem->message.find(kBody); at != std::string::npos) {
    line.problem->message.replace(at, kBody.size(), "line");
  }
  return line;
}

std::int64_t batch_seed(std::string_view custom_id) {
  return static_cast<std::int64_t>(batch_line_hash(custom_id) >> 1);
}

std::uint64_t batch_line_hash(std::string_view line) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  const int done = EVP_Digest(line.data(), line.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  MILLRACE_CHECK(done == 1, "SHA-256 failed");
  std::uint64_t hash = 0;
  for (std::size_t i = 0; i < sizeof(hash); ++i) hash = hash << 8 | digest[i];
  return hash;
}

std::string BatchKey::id() const {
  return fmt::format("batch_req_{:012x}{:016x}", number, hash);
}

std::string unanswered_record(const BatchKey& key, const std::optional<std::string>& custom_id, std::string_view code,
                              std::string_view message) {
  return fmt::format(R"({{"id":"{}{}{},"response":null,"error":{{"code":{},"message":{}}}}})", key.id(), kRecordName,
                     custom_id ? json_string(*custom_id) : "null", json_string(code), json_string(message)) +
         "\n";
}

std::string batch_record(const BatchKey& key, const std::optional<std::string>& custom_id, int status,
                         std::string_view body, const std::optional<ApiError>& problem) {
  constexpr std::size_t kLetters = 24;
  std::string out = fmt::format(R"({{"id":"{}{})", key.id(), kRecordName);
  if (custom_id) {
    append_json_string(out, *custom_id);
  } else {
    out += "null";
  }
  fmt::format_to(std::back_inserter(out), R"(,"response":{{"status_code":{},"request_id":"req_{}","body":)", status,
                 random_letters(kLetters));
  out += body;
  out += R"(},"error":)";
  if (problem) {
    fmt::format_to(std::back_inserter(out), R"({{"code":{},"message":{}}})",
                   json_string(problem->code.value_or("invalid_request")), json_string(problem->message));
  } else {
    out += "null";
  }
  out += "}\n";
  MILLRACE_CHECK(out.find('\n') == out.size() - 1, "a record of several lines");
  return out;
}

std::optional<BatchKey> read_batch_record(std::string_view line) {
  if (!line.starts_with(kRecordHead)) return std::nullopt;
  line.remove_prefix(kRecordHead.size());
  if (line.size() < kNumberDigits + kHashDigits + kRecordName.size()) return std::nullopt;
  const auto number = read_hex(line.substr(0, kNumberDigits));
  const auto hash = read_hex(line.substr(kNumberDigits, kHashDigits));
  line.remove_prefix(kNumberDigits + kHashDigits);
  if (!number || !hash || !line.starts_with(kRecordName)) return std::nullopt;
  return BatchKey{.number = *number, .hash = *hash};
}

bool may_be_batch_record(std::string_view beginning) {
  return kRecordHead.starts_with(beginning.substr(0, kRecordHead.size()));
}

std::string_view batch_record_custom_id(std::string_view line) {
  constexpr std::size_t kMost = 80;
  const std::size_t start = kRecordHead.size() + kNumberDigits + kHashDigits + kRecordName.size();
  if (line.size() < start) return {};
  line.remove_prefix(start);
  return line.substr(0, std::min(line.find(R"(,"response":)"), kMost));
}

}  // namespace millrace
