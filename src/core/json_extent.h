// What parsing a JSON text would cost, found without building anything: whoever parses what strangers write asks first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace millrace {

struct JsonExtent {
  std::size_t depth = 0;  // of objects and lists within each other
  std::size_t values = 1;
  std::uint64_t key_pairs = 0;  // the squares of the objects' numbers of keys, for parsers that search them one by one
};

/// Exact for valid JSON, harmless for other. Does not read on where the text is nested deeper than `deepest`.
JsonExtent json_extent(std::string_view text, std::size_t deepest);

}  // namespace millrace
