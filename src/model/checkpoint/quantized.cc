#include "model/checkpoint/quantized.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "model/checkpoint/json.h"
#include "model/checkpoint/quantized_parts.h"

namespace millrace {

namespace {

using Json = nlohmann::json;

/// Whether a part of a config says anything.
bool says_something(const Json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && !found->is_null() && !found->empty();
}

/// Scales for all, for each output, for groups of inputs, or for blocks of outputs and inputs: sets them and `group`.
/// `block`: rows and columns of a block where the config says it.
Status set_scales(const QuantizedParts& parts, const StoredTensor& scales,
                  std::optional<std::pair<std::int64_t, std::int64_t>> block, CodedMatrix& matrix) {
  if (scales.elements() == 1) {
    matrix.scales = {.data = scales.data.data(), .format = scales.format};
    return Ok{};
  }
  StoredTensor table = scales;
  if (table.shape.size() == 1) table.shape.push_back(1);
  if (table.shape.size() != 2) return does_not_fit(parts, scales);
  matrix.scales = scales_of(table);
  if (block && has_shape(table, ceil_div(matrix.rows, block->first), ceil_div(matrix.cols, block->second))) {
    matrix.scales.rows = block->first;
    matrix.group = table.shape[1] == 1 ? 0 : block->second;
    return Ok{};
  }
  const auto group = group_size(matrix.cols, table.shape[1], std::nullopt);
  if (table.shape[0] != matrix.rows || !group) return does_not_fit(parts, scales);
  matrix.group = *group;
  return Ok{};
}

/// "weight_block_size" or "block_structure": [128, 128], or "128x128" in old files.
std::optional<std::pair<std::int64_t, std::int64_t>> block_of(const Json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) return std::nullopt;
  std::pair<std::int64_t, std::int64_t> block;
  if (found->is_array() && found->size() == 2 && (*found)[0].is_number_integer() && (*found)[1].is_number_integer()) {
    block = {(*found)[0].get<std::int64_t>(), (*found)[1].get<std::int64_t>()};
  } else if (found->is_string()) {
    const auto& text = found->get_ref<const std::string&>();
    if (std::sscanf(text.c_str(), "%ldx%ld", &block.first, &block.second) != 2) return std::nullopt;
  } else {
    return std::nullopt;
  }
  constexpr std::int64_t kLargest = 1 << 20;
  const auto fits = [](std::int64_t size) { return size > 0 && size <= kLargest; };
  return fits(block.first) && fits(block.second) ? std::optional(block) : std::nullopt;
}

/// A weight [outputs, inputs] of bytes: E4M3 or signed integers.
Result<CodedMatrix> bytes_of(QuantizedParts& parts, const StoredTensor& weight) {
  if (weight.shape.size() != 2) return does_not_fit(parts, weight);
  return CodedMatrix{.kind = weight.format == QuantFormat::i8 ? CodeKind::int8 : CodeKind::e4m3,
                     .rows = weight.shape[0],
                     .cols = weight.shape[1],
                     .codes = {.data = weight.data.data(), .row_stride = weight.shape[1], .column_stride = 1}};
}

constexpr std::initializer_list<QuantFormat> kScaleFormats = {QuantFormat::f32, QuantFormat::f16, QuantFormat::bf16};

/// Weights of E4M3 with scales for all, for each output or for blocks, to multiply with.
Status join_fp8(const Json& config, QuantizedParts& parts) {
  MILLRACE_TRY(const StoredTensor weight, parts.take(".weight", {QuantFormat::f8_e4m3}));
  MILLRACE_TRY(CodedMatrix matrix, bytes_of(parts, weight));
  const char* scale = parts.has(".weight_scale_inv") ? ".weight_scale_inv" : ".weight_scale";
  MILLRACE_TRY(const StoredTensor scales, parts.take(scale, kScaleFormats));
  MILLRACE_CHECK_OK(set_scales(parts, scales, block_of(config, "weight_block_size"), matrix));
  parts.drop({".activation_scale", ".input_scale", ".input_scale_ub"});
  parts.put(std::move(matrix));
  return Ok{};
}

/// What the groups of a compressed-tensors config say of all their layers.
struct CompressedConfig {
  std::optional<std::pair<std::int64_t, std::int64_t>> block;
  bool byte_inputs = false;  // wherever weights are integers of 8 bits
};

CompressedConfig compressed_config(const Json& config) {
  CompressedConfig result;
  const auto groups = config.find("config_groups");
  if (groups == config.end() || !groups->is_object()) return result;
  bool all = true, any = false;
  for (const auto& [name, group] : groups->items()) {
    const Json weights = group.is_object() ? group.value("weights", Json::object()) : Json::object();
    if (!weights.is_object()) continue;
    if (const auto block = block_of(weights, "block_structure")) result.block = block;
    if (value_of<std::int64_t>(weights, "num_bits") != 8 || value_of<std::string>(weights, "type") != "int") continue;
    const Json inputs = group.value("input_activations", Json());
    const bool bytes = inputs.is_object() && value_of<std::int64_t>(inputs, "num_bits") == 8 &&
                       value_of<std::string>(inputs, "type").value_or("int") == "int";
    any = any || bytes;
    all = all && bytes;
  }
  result.byte_inputs = any && all;
  return result;
}

/// int-quantized, float-quantized, naive-quantized, mxfp8: weight [outputs, inputs], weight_scale, weight_zero_point.
Status join_compressed_bytes(const CompressedConfig& config, QuantizedParts& parts) {
  MILLRACE_TRY(const StoredTensor weight, parts.take(".weight", {QuantFormat::f8_e4m3, QuantFormat::i8}));
  MILLRACE_TRY(CodedMatrix matrix, bytes_of(parts, weight));
  MILLRACE_TRY(const StoredTensor scales,
               parts.take(".weight_scale", {QuantFormat::f32, QuantFormat::f16, QuantFormat::bf16, QuantFormat::u8}));
  MILLRACE_CHECK_OK(set_scales(parts, scales, config.block, matrix));
  if (parts.has(".weight_zero_point")) {
    MILLRACE_TRY(const StoredTensor zeros, parts.take(".weight_zero_point", {QuantFormat::i8, QuantFormat::f8_e4m3}));
    if (zeros.elements() != 1 && zeros.shape != scales.shape) return does_not_fit(parts, zeros);
    if (zeros.elements() != scales.elements()) return does_not_fit(parts, zeros);
    const bool all_zero = std::ranges::all_of(zeros.data, [](std::byte zero) { return zero == std::byte{0}; });
    if (!all_zero && matrix.kind != CodeKind::int8) return does_not_fit(parts, zeros);
    if (!all_zero) {
      if (matrix.scales.rows != 1) return fail("{}: blocks with zero points are not supported", shown(parts.layer()));
      const bool one = zeros.elements() == 1;
      matrix.zeros = PackedNumbers{.data = zeros.data.data(),
                                   .row_stride = one ? 0 : zeros.shape.back(),
                                   .column_stride = one ? 0 : std::int64_t{1}};
    }
  }
  matrix.byte_inputs = config.byte_inputs && matrix.kind == CodeKind::int8;
  parts.drop({".input_scale", ".input_zero_point"});
  parts.put(std::move(matrix));
  return Ok{};
}

/// The largest shape that a weight can have; what lies beyond is damaged.
Result<std::pair<std::int64_t, std::int64_t>> shape_in(const StoredTensor& shape, const std::string& layer) {
  std::int64_t values[2] = {};
  if (shape.elements() == 2) {
    for (std::int64_t i = 0; i < 2; ++i) {
      if (shape.format == QuantFormat::i64) {
        std::memcpy(&values[i], shape.data.data() + i * 8, 8);
      } else {
        values[i] = element(shape, i);
      }
    }
  }
  constexpr std::int64_t kLargest = std::int64_t{1} << 31;
  if (values[0] < 1 || values[0] > kLargest || values[1] < 1 || values[1] > kLargest) {
    return fail("tensor {} does not hold the two sizes of {}", shown(shape.name), shown(layer));
  }
  return std::pair(values[0], values[1]);
}

/// pack-quantized: weight_packed [outputs, words] of codes raised by half their range, weight_scale [outputs, groups],
/// weight_zero_point [words of outputs, groups], weight_shape, weight_g_idx.
Status join_compressed_words(QuantizedParts& parts) {
  MILLRACE_TRY(const StoredTensor packed, parts.take(".weight_packed", {QuantFormat::i32}));
  MILLRACE_TRY(const StoredTensor shape, parts.take(".weight_shape", {QuantFormat::i64, QuantFormat::i32}));
  MILLRACE_TRY(const StoredTensor scales, parts.take(".weight_scale", kScaleFormats));
  MILLRACE_TRY(const auto sizes, shape_in(shape, parts.layer()));
  CodedMatrix matrix{.rows = sizes.first, .cols = sizes.second};
  std::int32_t bits = 0;
  for (const std::int32_t candidate : {2, 4, 8}) {
    if (has_shape(packed, matrix.rows, ceil_div(matrix.cols * candidate, kWordBits))) bits = candidate;
  }
  if (bits == 0) {
    return fail("tensor {} with shape [{}] holds no {} x {} numbers of 2, 4 or 8 bits", shown(packed.name),
                fmt::join(packed.shape, ", "), matrix.rows, matrix.cols);
  }
  set_unsigned(matrix, bits);
  matrix.codes = along_columns(packed, bits);
  MILLRACE_CHECK_OK(set_scales(parts, scales, {}, matrix));
  if (parts.has(".weight_zero_point")) {
    MILLRACE_TRY(const StoredTensor zeros, parts.take(".weight_zero_point", {QuantFormat::i32}));
    if (!has_shape(zeros, ceil_div(matrix.rows * bits, kWordBits), matrix.groups())) return does_not_fit(parts, zeros);
    matrix.zeros = PackedNumbers{.data = zeros.data.data(),
                                 .bits = bits,
                                 .word_bytes = 4,
                                 .row_stride = zeros.shape[1] * 4,
                                 .column_stride = 4,
                                 .along_rows = true};
  } else if (bits == 8) {
    matrix.zero = 0;
  }
  if (parts.has(".weight_g_idx")) {
    MILLRACE_TRY(const StoredTensor indices, parts.take(".weight_g_idx", {QuantFormat::i32}));
    if (matrix.group != 0) {
      MILLRACE_TRY(matrix.input_order, order_of(indices, matrix.cols, matrix.group));
    }
  }
  parts.drop({".input_scale", ".input_zero_point"});
  parts.put(std::move(matrix));
  return Ok{};
}

/// nvfp4-pack-quantized and mxfp4-pack-quantized: weight_packed [outputs, inputs / 2], two E2M1 a byte, weight_scale
/// [outputs, groups] of E4M3 or E8M0, weight_global_scale to divide by.
Status join_compressed_e2m1(QuantizedParts& parts) {
  MILLRACE_TRY(const StoredTensor packed, parts.take(".weight_packed", {QuantFormat::u8}));
  MILLRACE_TRY(const StoredTensor scales, parts.take(".weight_scale", {QuantFormat::f8_e4m3, QuantFormat::u8}));
  if (packed.shape.size() != 2) return does_not_fit(parts, packed);
  CodedMatrix matrix{.kind = CodeKind::e2m1, .rows = packed.shape[0], .cols = packed.shape[1] * 2};
  matrix.codes = {.data = packed.data.data(), .bits = 4, .row_stride = packed.shape[1], .column_stride = 1};
  MILLRACE_CHECK_OK(set_scales(parts, scales, {}, matrix));
  if (parts.has(".weight_global_scale")) {
    MILLRACE_TRY(const StoredTensor global, parts.take(".weight_global_scale", {QuantFormat::f32}));
    float divisor = 0.0f;
    if (global.elements() == 1) std::memcpy(&divisor, global.data.data(), sizeof divisor);
    if (!(divisor > 0.0f)) return fail("tensor {} is no positive number", shown(global.name));
    matrix.unit = 1.0f / divisor;
  }
  parts.drop({".input_global_scale", ".weight_shape"});
  parts.put(std::move(matrix));
  return Ok{};
}

/// The names of layers that have a tensor with this suffix.
std::vector<std::string> layers_with(const TensorMap& tensors, std::string_view suffix) {
  std::vector<std::string> layers;
  for (const auto& [name, tensor] : tensors) {
    if (name.ends_with(suffix)) layers.push_back(name.substr(0, name.size() - suffix.size()));
  }
  return layers;
}

Status join_compressed(const Json& config, TensorMap& tensors) {
  for (const char* key : {"sparsity_config", "transform_config"}) {
    const Json part = config.value(key, Json());
    const bool dense = part.is_object() && value_of<std::string>(part, "format") == "dense";
    if (says_something(config, key) && !dense) return fail("\"{}\" is not supported by this version", key);
  }
  const CompressedConfig known = compressed_config(config);
  for (const std::string& layer : layers_with(tensors, ".weight_packed")) {
    QuantizedParts parts(tensors, layer);
    const bool words = tensors.find(layer + ".weight_packed")->second.format == QuantFormat::i32;
    MILLRACE_CHECK_OK(words ? join_compressed_words(parts) : join_compressed_e2m1(parts));
  }
  for (const std::string& layer : layers_with(tensors, ".weight_scale")) {
    const auto weight = tensors.find(layer + ".weight");
    const bool bytes = weight != tensors.end() &&
                       (weight->second.format == QuantFormat::i8 || weight->second.format == QuantFormat::f8_e4m3);
    if (!bytes) continue;  // scales beside weights that are stored as they were
    QuantizedParts parts(tensors, layer);
    MILLRACE_CHECK_OK(join_compressed_bytes(known, parts));
  }
  return Ok{};
}

Status join_method(const std::string& method, const Json& config, TensorMap& tensors) {
  if (method == "gptq" || method == "awq") {
    const std::string version = value_of<std::string>(config, "version").value_or("gemm");
    if (method == "awq" && version != "gemm" && version != "GEMM") {
      return fail("the version {} of AWQ is not supported, only gemm", shown(version));
    }
    for (const std::string& layer : layers_with(tensors, ".qweight")) {
      QuantizedParts parts(tensors, layer);
      MILLRACE_CHECK_OK(method == "gptq" ? join_gptq(config, parts) : join_awq(config, parts));
    }
    return Ok{};
  }
  if (method == "fp8" || method == "fbgemm_fp8") {
    for (const std::string& layer : layers_with(tensors, ".weight")) {
      if (tensors.find(layer + ".weight")->second.format != QuantFormat::f8_e4m3) continue;
      QuantizedParts parts(tensors, layer);
      MILLRACE_CHECK_OK(join_fp8(config, parts));
    }
    return Ok{};
  }
  if (method == "compressed-tensors") return join_compressed(config, tensors);
  if (method == "mxfp4") return Ok{};  // gpt-oss: its experts are read as they are stored
  return fail("{} is not supported; this version reads gptq, awq, fp8, fbgemm_fp8, compressed-tensors and mxfp4",
              shown(method));
}

}  // namespace

Status join_quantized(const Json& config, std::string_view what, TensorMap& tensors) {
  const Json* found = nullptr;
  for (const char* place : {"", "text_config"}) {
    const Json* outer = &config;
    if (*place != '\0') {
      const auto inner = config.find(place);
      if (inner == config.end() || !inner->is_object()) continue;
      outer = &*inner;
    }
    for (const char* key : {"quantization_config", "compression_config"}) {
      const auto part = outer->find(key);
      if (found == nullptr && part != outer->end() && part->is_object()) found = &*part;
    }
  }
  if (found == nullptr) return Ok{};
  const std::string method = value_of<std::string>(*found, "quant_method").value_or("compressed-tensors");
  const Status joined = join_method(method, *found, tensors);
  if (joined.ok()) return Ok{};
  return fail("{}: quantised by {}: {}", what, shown(method), joined.error().message);
}

}  // namespace millrace
