// JSON of the API: bodies of foreign origin, their fields with types and ranges, and strings on the way out.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"

namespace millrace {

/// Keeps the order of keys: templates and grammars of schemas read it.
using Json = nlohmann::ordered_json;

/// Limits of a body, which no honest one comes near; they bound time, stack and memory of parsing.
constexpr std::size_t kBodyMaxDepth = 100;
constexpr std::size_t kBodyMaxValues = 2'000'000;
constexpr std::uint64_t kBodyMaxKeyPairs = 200'000'000;  // sum over all objects of keys², as look-ups are linear

/// A body that holds one JSON object. Of equal keys the last counts. Errors (400): not UTF-8, not JSON, no object,
/// beyond the limits.
ApiResult<Json> parse_body(std::string_view body);

/// Appends `text` as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD.
void append_json_string(std::string& out, std::string_view text);
std::string json_string(std::string_view text);
/// Appends a finite number; -9999 for minus infinity and NaN, which JSON lacks, as OpenAI writes logprobs.
void append_json_number(std::string& out, float value);

/// Whether all of `text` is well-formed UTF-8.
bool is_utf8(std::string_view text);

/// "a string", "an array", "null": what a value is, for messages.
std::string_view kind_name(const Json& value);

ApiError invalid_type(std::string param, std::string_view expected, const Json& got);
ApiError invalid_value(std::string param, std::string message);
ApiError missing(std::string param);

/// Reads the fields of one object. A field that is absent or null is its fallback. The first that is wrong is kept in
/// `error`, and reading goes on with fallbacks, so that it needs to be looked at once, in the end.
class Fields {
 public:
  /// `object` must outlive it. `path`: the object's own name in messages, empty for the body.
  explicit Fields(const Json& object, std::string path = {}) : object_(&object), path_(std::move(path)) {}

  /// Null where the field is absent or null.
  [[nodiscard]] const Json* find(std::string_view key) const;
  [[nodiscard]] bool has(std::string_view key) const { return find(key) != nullptr; }

  double number(std::string_view key, double fallback, double low, double high);
  std::int64_t integer(std::string_view key, std::int64_t fallback, std::int64_t low, std::int64_t high);
  bool boolean(std::string_view key, bool fallback);
  std::string text(std::string_view key, std::string_view fallback);
  /// One of `values`.
  std::string choice(std::string_view key, std::string_view fallback, std::span<const std::string_view> values);
  const Json* object(std::string_view key);
  const Json* array(std::string_view key);

  [[nodiscard]] std::string path(std::string_view key) const;
  void refuse(ApiError problem);

  std::optional<ApiError> error;

 private:
  const Json* object_;
  std::string path_;
};

}  // namespace millrace
