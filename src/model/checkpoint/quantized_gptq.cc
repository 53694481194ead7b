// Integers in words, inputs along the first axis: GPTQ and AWQ.
#include <utility>

#include "model/checkpoint/json.h"
#include "model/checkpoint/quantized_parts.h"

namespace millrace {

namespace {

/// What both have, each of two dimensions.
struct WordTensors {
  StoredTensor qweight, qzeros, scales;
};

Result<WordTensors> take_words(QuantizedParts& parts) {
  WordTensors tensors;
  MILLRACE_TRY(tensors.qweight, parts.take(".qweight", {QuantFormat::i32}));
  MILLRACE_TRY(tensors.qzeros, parts.take(".qzeros", {QuantFormat::i32}));
  MILLRACE_TRY(tensors.scales, parts.take(".scales", {QuantFormat::f16, QuantFormat::bf16, QuantFormat::f32}));
  for (const StoredTensor* tensor : {&tensors.qweight, &tensors.qzeros, &tensors.scales}) {
    if (tensor->shape.size() != 2) return does_not_fit(parts, *tensor);
  }
  return tensors;
}

}  // namespace

Status join_gptq(const nlohmann::json& config, QuantizedParts& parts) {
  MILLRACE_TRY(const WordTensors tensors, take_words(parts));
  const auto& [qweight, qzeros, scales] = tensors;
  CodedMatrix matrix{.rows = scales.shape[1]};
  const std::int64_t groups = scales.shape[0], bits = qzeros.shape[1] * kWordBits / matrix.rows;
  if (bits != 2 && bits != 4 && bits != 8) {
    return fail("{}: {} bits are not supported; this version reads GPTQ with 2, 4 and 8", shown(parts.layer()), bits);
  }
  matrix.cols = qweight.shape[0] * kWordBits / bits;
  const auto group = group_size(matrix.cols, groups, value_of<std::int64_t>(config, "group_size"));
  if (!has_shape(qweight, qweight.shape[0], matrix.rows)) return does_not_fit(parts, qweight);
  if (!has_shape(qzeros, groups, ceil_div(matrix.rows * bits, kWordBits))) return does_not_fit(parts, qzeros);
  if (!group) return does_not_fit(parts, scales);
  matrix.group = *group;
  set_unsigned(matrix, static_cast<std::int32_t>(bits));
  matrix.codes = {.data = qweight.data.data(),
                  .bits = static_cast<std::int32_t>(bits),
                  .word_bytes = 4,
                  .row_stride = 4,
                  .column_stride = matrix.rows * 4};
  matrix.zeros = PackedNumbers{.data = qzeros.data.data(),
                               .bits = static_cast<std::int32_t>(bits),
                               .word_bytes = 4,
                               .row_stride = 4,
                               .column_stride = qzeros.shape[1] * 4,
                               .along_rows = true};
  const std::optional<std::string> version = value_of<std::string>(config, "checkpoint_format");
  // The first format holds zeros less one, the second as they are.
  matrix.zero_offset = version.value_or(value_of<std::string>(config, "format").value_or("gptq")) == "gptq_v2" ? 0 : 1;
  matrix.scales = scales_of(scales);
  std::swap(matrix.scales.row_stride, matrix.scales.column_stride);
  if (parts.has(".g_idx")) {
    MILLRACE_TRY(const StoredTensor indices, parts.take(".g_idx", {QuantFormat::i32}));
    if (matrix.group != 0 && value_of<bool>(config, "desc_act").value_or(false)) {
      MILLRACE_TRY(matrix.input_order, order_of(indices, matrix.cols, matrix.group));
    }
  }
  parts.put(std::move(matrix));
  return Ok{};
}

Status join_awq(const nlohmann::json& config, QuantizedParts& parts) {
  constexpr std::int32_t kBits = 4;
  MILLRACE_TRY(const WordTensors tensors, take_words(parts));
  const auto& [qweight, qzeros, scales] = tensors;
  CodedMatrix matrix{.rows = scales.shape[1], .cols = qweight.shape[0]};
  const std::int64_t groups = scales.shape[0], words = ceil_div(matrix.rows * kBits, kWordBits);
  const auto group = group_size(matrix.cols, groups, value_of<std::int64_t>(config, "group_size"));
  if (qweight.shape[1] != words) return does_not_fit(parts, qweight);
  if (!has_shape(qzeros, groups, words)) return does_not_fit(parts, qzeros);
  if (!group) return does_not_fit(parts, scales);
  matrix.group = *group;
  set_unsigned(matrix, kBits);
  matrix.codes = {.data = qweight.data.data(),
                  .bits = kBits,
                  .word_bytes = 4,
                  .row_stride = 4,
                  .column_stride = words * 4,
                  .along_rows = true,
                  .interleaved = true};
  matrix.zeros = matrix.codes;
  matrix.zeros->data = qzeros.data.data();
  matrix.scales = scales_of(scales);
  std::swap(matrix.scales.row_stride, matrix.scales.column_stride);
  parts.put(std::move(matrix));
  return Ok{};
}

}  // namespace millrace
