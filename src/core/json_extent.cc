#include "core/json_extent.h"

#include <algorithm>
#include <vector>

namespace millrace {

JsonExtent json_extent(std::string_view text, std::size_t deepest) {
  JsonExtent extent;
  std::vector<std::uint64_t> keys;  // of each object or list that is open
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (keys.size() > deepest) break;
      keys.push_back(0);
      extent.depth = std::max(extent.depth, keys.size());
      ++extent.values;
    } else if (c == '}' || c == ']') {
      if (keys.empty()) break;  // no JSON
      extent.key_pairs += keys.back() * keys.back();
      keys.pop_back();
    } else if (c == ',') {
      ++extent.values;
    } else if (c == ':' && !keys.empty()) {
      ++keys.back();
    }
  }
  // An object that the end of the text cuts off is parsed up to there.
  for (const std::uint64_t count : keys) extent.key_pairs += count * count;
  return extent;
}

}  // namespace millrace
