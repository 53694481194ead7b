#include "model/checkpoint/json.h"

#include <algorithm>

#include "core/json_extent.h"
#include "core/mapped_file.h"

namespace millrace {

Result<nlohmann::json> parse_json(std::string_view text, std::string_view what) {
  const JsonExtent extent = json_extent(text, kJsonMaxDepth);
  if (extent.depth > kJsonMaxDepth) {
    return fail("{}: JSON nested more than {} levels deep", what, kJsonMaxDepth);
  }
  if (extent.values > kJsonMaxValues) {
    return fail("{}: JSON with some {} values, at most {} are allowed", what, extent.values, kJsonMaxValues);
  }
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    return fail("{}: not valid JSON at byte {} of {}", what, error.byte, text.size());
  } catch (const nlohmann::json::exception&) {  // a number out of range
    return fail("{}: holds a number that no double can", what);
  }
}

Result<nlohmann::json> read_json_object(const std::filesystem::path& path, std::size_t limit) {
  MILLRACE_TRY(const std::string text, read_text_file(path, limit));
  MILLRACE_TRY(nlohmann::json value, parse_json(text, path.string()));
  if (!value.is_object()) return fail("{}: expected a JSON object, found {}", path.string(), value.type_name());
  return value;
}

std::string printable(std::string_view text) {
  std::string result(text);
  std::replace_if(
      result.begin(), result.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return result;
}

std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 96;
  return "'" + printable(text.substr(0, kMost)) + (text.size() > kMost ? "...'" : "'");
}

}  // namespace millrace
