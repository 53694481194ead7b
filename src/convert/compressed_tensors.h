// Weights in codes as the format of compressed-tensors has them in a safetensors file, and the quantization_config that
// declares them. docs/number-formats.md has the layouts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "convert/code_grid.h"
#include "convert/safetensors_writer.h"
#include "core/result.h"

namespace millrace {

/// "F32", "F16", "BF16".
std::string_view dtype_of(ScaleType type);

/// Rows of a weight that are written together: the packed zero points of eight make a word.
inline constexpr std::int64_t kPackedRows = 8;

/// The tensors of one weight. Error: the format needs groups that divide `cols`.
Result<std::vector<OutputTensor>> compressed_tensors(const std::string& layer, const CodeFormat& format, ScaleType type,
                                                     std::int64_t rows, std::int64_t cols);

/// Writes rows [first_row, first_row + coded.rows) of them; first_row is a multiple of kPackedRows. `rows`: of the
/// whole weight.
Status write_compressed(StepFile& writer, const std::string& layer, ScaleType type, const CodedRows& coded,
                        std::int64_t first_row, std::int64_t rows);

/// `layers`: the quantised ones with their formats; `ignored`: the other linear layers.
nlohmann::ordered_json quantization_config(const std::vector<std::pair<std::string, CodeFormat>>& layers,
                                           const std::vector<std::string>& ignored);

}  // namespace millrace
