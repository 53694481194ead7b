// What conversions to different kinds of files have in common: reports, what a result depends on, blocks of rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

struct LayerReport {
  std::string layer, format;
  std::int64_t rows = 0, cols = 0;
  double error = 0.0;                  // root of the summed squares of what rounding changed, over that of the weights
  double largest = 0.0;                // change of a weight
  std::optional<double> output_error;  // as `error`, of the layer's outputs on some of the text
};

struct QuantizeReport {
  std::vector<LayerReport> layers;
  std::uint64_t source_bytes = 0, output_bytes = 0;
  std::size_t resumed = 0;         // steps that an earlier call had finished
  int scaled = 0;                  // groups of layers whose inputs were scaled
  std::vector<std::string> notes;  // what is not as one might expect, a line each
};

/// A finished layer as a line of a journal.
std::string journal_note(const LayerReport& report);
/// The layer of such a line; nothing for the step of a tensor that is no layer, whose note is "{}". Error: it is
/// neither; `journal` names it.
Result<std::optional<LayerReport>> layer_of_note(const std::string& note, const std::filesystem::path& journal);

/// FNV-1a of 64 bits, of all that a result depends on.
class Fingerprint {
 public:
  void add(std::string_view text);
  /// Name, size and time of a file.
  void add_file(const std::filesystem::path& file);
  [[nodiscard]] std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

inline constexpr std::int64_t kBlockElements = std::int64_t{16} << 20;  // that are in memory as floats at once
inline constexpr std::size_t kCopyBytes = std::size_t{16} << 20;

/// fn(first, count) over blocks of rows, whole multiples of `multiple` but for the last.
template <typename Function>
Status for_blocks(std::int64_t rows, std::int64_t cols, std::int64_t multiple, Function&& fn) {
  const std::int64_t step = std::max<std::int64_t>(1, kBlockElements / cols / multiple) * multiple;
  for (std::int64_t first = 0; first < rows; first += step) {
    MILLRACE_CHECK_OK(fn(first, std::min(step, rows - first)));
  }
  return Ok{};
}

}  // namespace millrace
