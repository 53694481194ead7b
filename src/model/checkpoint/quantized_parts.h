// What the readers of quantised checkpoints share: the parts of a weight, and what they say together.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/result.h"
#include "model/checkpoint/quantized.h"
#include "quant/coded_matrix.h"

namespace millrace {

constexpr std::int64_t kWordBits = 32;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// What a config says at `key`, or nothing where that is of another type.
template <typename Value>
std::optional<Value> value_of(const nlohmann::json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) return std::nullopt;
  if constexpr (std::is_same_v<Value, bool>) {
    if (!found->is_boolean()) return std::nullopt;
  } else if constexpr (std::is_same_v<Value, std::string>) {
    if (!found->is_string()) return std::nullopt;
  } else if (!found->is_number_integer()) {
    return std::nullopt;
  }
  return found->get<Value>();
}

/// The parts of one weight, taken out of the map as they are asked for.
class QuantizedParts {
 public:
  QuantizedParts(TensorMap& tensors, std::string layer) : tensors_(&tensors), layer_(std::move(layer)) {}

  [[nodiscard]] const std::string& layer() const { return layer_; }
  [[nodiscard]] bool has(std::string_view suffix) const { return tensors_->contains(layer_ + std::string(suffix)); }

  /// Error: it is missing, or its format is none of `formats`.
  Result<StoredTensor> take(std::string_view suffix, std::initializer_list<QuantFormat> formats);
  /// What says nothing that is used.
  void drop(std::initializer_list<std::string_view> suffixes);
  /// The weight that the parts make, as "LAYER.weight".
  void put(CodedMatrix matrix);

 private:
  TensorMap* tensors_;
  std::string layer_;
  std::vector<std::span<const std::byte>> data_;
};

/// What does not go together with the rest.
Error does_not_fit(const QuantizedParts& parts, const StoredTensor& tensor);

bool has_shape(const StoredTensor& tensor, std::int64_t rows, std::int64_t cols);

/// The inputs of a group where `cols` are cut into `groups`; 0 where there is one group.
std::optional<std::int64_t> group_size(std::int64_t cols, std::int64_t groups, std::optional<std::int64_t> declared);

/// 32-bit words that hold numbers of `bits` bits of neighbouring columns: [rows][words].
PackedNumbers along_columns(const StoredTensor& tensor, std::int32_t bits);

/// Scales [rows, groups] in the order of PyTorch.
PackedScales scales_of(const StoredTensor& tensor);

/// Of a tensor of 32-bit numbers.
std::int32_t element(const StoredTensor& indices, std::int64_t i);

/// The inputs in the order of their groups; empty where that is their own. Error: the groups are not of `group` inputs
/// each, but for the last.
Result<std::vector<std::int32_t>> order_of(const StoredTensor& indices, std::int64_t cols, std::int64_t group);

/// Kind, offset and zero of integers of `bits` bits that are stored without sign.
void set_unsigned(CodedMatrix& matrix, std::int32_t bits);

/// GPTQ (Frantar et al. 2022), as AutoGPTQ and GPTQModel write it: qweight [inputs / per word, outputs], qzeros
/// [groups, outputs / per word], scales [groups, outputs], g_idx [inputs].
Status join_gptq(const nlohmann::json& config, QuantizedParts& parts);

/// AWQ (Lin et al. 2023), as AutoAWQ writes its version "gemm": qweight [inputs, outputs / 8], qzeros [groups,
/// outputs / 8], scales [groups, outputs].
Status join_awq(const nlohmann::json& config, QuantizedParts& parts);

}  // namespace millrace
