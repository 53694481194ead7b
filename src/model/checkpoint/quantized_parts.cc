#include "model/checkpoint/quantized_parts.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "model/checkpoint/json.h"

namespace millrace {

Result<StoredTensor> QuantizedParts::take(std::string_view suffix, std::initializer_list<QuantFormat> formats) {
  const auto found = tensors_->find(layer_ + std::string(suffix));
  if (found == tensors_->end()) return fail("tensor {} is missing", shown(layer_ + std::string(suffix)));
  const QuantFormat format = found->second.format;
  if (std::ranges::find(formats, format) == formats.end()) {
    return fail("tensor {} is {}, which is not expected", shown(found->first), format_info(format).name);
  }
  StoredTensor tensor = std::move(found->second);
  tensors_->erase(found);
  data_.push_back(tensor.data);
  return tensor;
}

void QuantizedParts::drop(std::initializer_list<std::string_view> suffixes) {
  for (const std::string_view suffix : suffixes) tensors_->erase(layer_ + std::string(suffix));
}

void QuantizedParts::put(CodedMatrix matrix) {
  StoredTensor joined;
  joined.name = layer_ + ".weight";
  joined.format = QuantFormat::codes;
  joined.shape = {matrix.rows, matrix.cols};
  joined.parts = std::move(data_);
  joined.coded = std::make_shared<const CodedMatrix>(std::move(matrix));
  std::string name = joined.name;
  tensors_->insert_or_assign(std::move(name), std::move(joined));
}

Error does_not_fit(const QuantizedParts& parts, const StoredTensor& tensor) {
  return fail("tensor {} has shape [{}], which does not fit the other parts of {}", shown(tensor.name),
              fmt::join(tensor.shape, ", "), shown(parts.layer()));
}

bool has_shape(const StoredTensor& tensor, std::int64_t rows, std::int64_t cols) {
  return tensor.shape == std::vector<std::int64_t>{rows, cols};
}

std::optional<std::int64_t> group_size(std::int64_t cols, std::int64_t groups, std::optional<std::int64_t> declared) {
  if (groups < 1 || cols < 1) return std::nullopt;
  if (groups == 1) return 0;
  if (declared && *declared > 0 && ceil_div(cols, *declared) == groups) return declared;
  if (cols % groups != 0) return std::nullopt;
  return cols / groups;
}

PackedNumbers along_columns(const StoredTensor& tensor, std::int32_t bits) {
  return {
      .data = tensor.data.data(), .bits = bits, .word_bytes = 4, .row_stride = tensor.shape[1] * 4, .column_stride = 4};
}

PackedScales scales_of(const StoredTensor& tensor) {
  const auto size = static_cast<std::int64_t>(format_info(tensor.format).block_bytes);
  return {
      .data = tensor.data.data(), .format = tensor.format, .row_stride = tensor.shape[1] * size, .column_stride = size};
}

std::int32_t element(const StoredTensor& indices, std::int64_t i) {
  std::int32_t value = 0;
  std::memcpy(&value, indices.data.data() + i * 4, sizeof value);
  return value;
}

Result<std::vector<std::int32_t>> order_of(const StoredTensor& indices, std::int64_t cols, std::int64_t group) {
  if (indices.shape != std::vector<std::int64_t>{cols}) {
    return fail("tensor {} has not one element for each of {} inputs", shown(indices.name), cols);
  }
  const std::int64_t groups = ceil_div(cols, group);
  std::vector<std::vector<std::int32_t>> members(static_cast<std::size_t>(groups));
  bool own = true;
  for (std::int64_t i = 0; i < cols; ++i) {
    const std::int32_t g = element(indices, i);
    if (g == -1) return std::vector<std::int32_t>();  // as it was made, before groups were given
    if (g < 0 || g >= groups) return fail("tensor {} speaks of group {} of {}", shown(indices.name), g, groups);
    members[static_cast<std::size_t>(g)].push_back(static_cast<std::int32_t>(i));
    own = own && g == i / group;
  }
  std::vector<std::int32_t> order;
  if (own) return order;
  for (std::size_t g = 0; g < members.size(); ++g) {
    if (g + 1 < members.size() && static_cast<std::int64_t>(members[g].size()) != group) {
      return fail("tensor {}: group {} has {} inputs instead of {}", shown(indices.name), g, members[g].size(), group);
    }
    order.insert(order.end(), members[g].begin(), members[g].end());
  }
  return order;
}

void set_unsigned(CodedMatrix& matrix, std::int32_t bits) {
  const std::int32_t middle = 1 << (bits - 1);
  matrix.kind = bits == 8 ? CodeKind::int8 : CodeKind::int4;
  matrix.offset = bits == 8 ? -middle : 0;
  matrix.zero = middle;
}

}  // namespace millrace
