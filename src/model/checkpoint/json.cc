#include "model/checkpoint/json.h"

#include <algorithm>

#include "core/mapped_file.h"

namespace millrace {

namespace {

/// Depth and number of values, found without building anything. Both are exact for valid JSON and harmless for other.
struct Extent {
  int depth = 0;
  std::size_t values = 1;
};

Extent measure(std::string_view text) {
  Extent extent;
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      extent.depth = std::max(extent.depth, ++depth);
      ++extent.values;
    } else if (c == '}' || c == ']') {
      --depth;
    } else if (c == ',') {
      ++extent.values;
    }
  }
  return extent;
}

}  // namespace

Result<nlohmann::json> parse_json(std::string_view text, std::string_view what) {
  const Extent extent = measure(text);
  if (extent.depth > kJsonMaxDepth) {
    return fail("{}: JSON nested {} levels deep, at most {} are allowed", what, extent.depth, kJsonMaxDepth);
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
