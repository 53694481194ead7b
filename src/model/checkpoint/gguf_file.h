// The GGUF container, versions 2 and 3, little endian: metadata (typed key-value pairs), tensor infos, aligned data.
// Nothing here knows what a key or a tensor means.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/result.h"
#include "quant/format.h"

namespace millrace {

/// Types of metadata values, by their numbers in the file.
enum class GgufType : std::uint32_t {
  uint8,
  int8,
  uint16,
  int16,
  uint32,
  int32,
  float32,
  boolean,
  string,
  array,
  uint64,
  int64,
  float64,
};

/// An array as it lies in the file: `count` elements of `type`, checked to be complete. Elements are decoded on demand,
/// so an array costs no memory until somebody wants it.
struct GgufArray {
  GgufType type = GgufType::uint8;
  std::uint64_t count = 0;
  std::span<const std::byte> bytes;

  /// Strings of a string array; empty for another type. They point into the file.
  [[nodiscard]] std::vector<std::string_view> strings() const;
  /// Elements of an integer or boolean array; empty for another type. uint64 above 2^63 - 1 becomes 2^63 - 1.
  [[nodiscard]] std::vector<std::int64_t> integers() const;
  /// Elements of a float32 array; empty for another type.
  [[nodiscard]] std::vector<float> floats() const;
  /// Raw bytes of an array of uint8 or int8; empty for another type.
  [[nodiscard]] std::string_view raw() const;
};

/// float stays apart from double: it has a shorter decimal form, which is what its writer meant.
using GgufValue = std::variant<bool, std::uint64_t, std::int64_t, float, double, std::string_view, GgufArray>;
using GgufMetadata = std::map<std::string_view, GgufValue, std::less<>>;

struct GgufTensor {
  std::string_view name;
  QuantFormat format = QuantFormat::f32;
  std::vector<std::int64_t> shape;  // outermost dimension first, as in PyTorch: the file has them reversed
  std::span<const std::byte> data;
};

/// A parsed file; everything points into the span that was parsed.
struct GgufFile {
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;
  /// Tensors that are no weights (integers, doubles): name -> type.
  std::map<std::string_view, std::string_view, std::less<>> unreadable;
};

/// Parses a whole file; `what` names it in messages. All counts, lengths, offsets and shapes are checked: unique names
/// and keys, at most 4 dimensions, rows of whole blocks, data in the file, aligned and without overlap. Errors also for
/// other versions, big-endian files, and block formats that are not supported (with a list of those that are).
Result<GgufFile> parse_gguf(std::span<const std::byte> file, std::string_view what);

}  // namespace millrace
