#include "model/weight_builder.h"

#include <algorithm>
#include <utility>

#include "quant/codec.h"

namespace millrace {

std::vector<std::int32_t> half_split_order(std::int32_t heads, std::int32_t head_dim, std::int32_t rotary_dim) {
  std::vector<std::int32_t> order;
  if (rotary_dim == 0) return order;
  order.reserve(static_cast<std::size_t>(heads) * static_cast<std::size_t>(head_dim));
  for (std::int32_t h = 0; h < heads; ++h) {
    const std::int32_t first = h * head_dim;
    for (std::int32_t half = 0; half < 2; ++half) {
      for (std::int32_t i = 0; i < rotary_dim / 2; ++i) order.push_back(first + 2 * i + half);
    }
    for (std::int32_t i = rotary_dim; i < head_dim; ++i) order.push_back(first + i);
  }
  return order;
}

void WeightBuilder::start_packing(std::uint64_t total, std::function<void(std::uint64_t, std::uint64_t)> progress) {
  packing_ = true;
  total_ = total;
  bytes_ = 0;
  progress_ = std::move(progress);
}

void WeightBuilder::count(std::uint64_t bytes) {
  // A hostile config can ask for more than 64 bits count; that much is refused like all that does not fit.
  constexpr std::uint64_t kEnough = std::uint64_t{1} << 62;
  bytes_ = std::min(kEnough, bytes_ + std::min(kEnough, bytes));
  if (packing_ && progress_) progress_(bytes_, total_);
}

Result<SourceTensor> WeightBuilder::tensor(const std::string& name, const std::vector<std::int64_t>& shape) const {
  MILLRACE_TRY(SourceTensor tensor, packing_ ? source_->read(name, shape) : source_->describe(name, shape));
  if (tensor.stored.unpermute_heads > 0) {
    const std::int64_t heads = tensor.stored.unpermute_heads;
    if (shape.front() % heads != 0 || shape.front() / heads % 2 != 0) {
      return fail("tensor {} has {} rows, which are no {} heads of an even size", name, shape.front(), heads);
    }
  }
  return tensor;
}

Result<std::vector<float>> WeightBuilder::floats(const std::string& name, std::int64_t size) const {
  MILLRACE_TRY(const SourceTensor tensor, this->tensor(name, {size}));
  std::vector<float> values;
  const QuantFormat format = tensor.stored.format;
  if (!is_plain(format)) {
    return fail("tensor {} is {}, expected f32, f16 or bf16", name, format_info(format).name);
  }
  if (!packing_) return values;
  values.resize(static_cast<std::size_t>(size));
  dequantize(format, tensor.stored.data.data(), values.data(), values.size());
  if (tensor.stored.unpermute_heads > 0) {
    const auto heads = static_cast<std::int32_t>(tensor.stored.unpermute_heads);
    const auto head_dim = static_cast<std::int32_t>(size / heads);
    const std::vector<std::int32_t> order = half_split_order(heads, head_dim, head_dim);
    const std::vector<float> stored = values;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = stored[static_cast<std::size_t>(order[i])];
  }
  return values;
}

Result<Vector> WeightBuilder::vector(const std::vector<float>& values, std::int64_t size) {
  Vector vector;
  const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
  if (packing_) {
    MILLRACE_TRY(vector.buffer, backend_->allocate(bytes));
    backend_->write(vector.buffer, 0, std::as_bytes(std::span(values)));
  }
  count(bytes);
  return vector;
}

MatrixPiece WeightBuilder::piece(const SourceTensor& tensor, std::int64_t rows, std::int64_t cols,
                                 std::vector<std::int32_t> row_order) {
  const auto heads = static_cast<std::int32_t>(tensor.stored.unpermute_heads);
  if (heads > 0) {
    const auto head_dim = static_cast<std::int32_t>(rows / heads);
    row_order = half_split_order(heads, head_dim, head_dim);
  }
  return {.format = tensor.stored.format,
          .data = tensor.stored.data.data(),
          .rows = rows,
          .cols = cols,
          .row_order = std::move(row_order),
          .coded = tensor.stored.coded};
}

Result<LinearFormat> WeightBuilder::format_of(const std::vector<std::string>& names) const {
  if (names.empty() || !formats_) return format_;
  const LinearFormat format = formats_(names.front());
  for (const std::string& name : names) {
    if (formats_(name).codes != format.codes) {
      return fail("{} and {} are computed as one and need the same format", names.front(), name);
    }
    if (formats_(name).skip != format.skip) {
      return fail("{} and {} read the same inputs and need the same threshold", names.front(), name);
    }
  }
  return format;
}

Status WeightBuilder::check_pieces(const MatrixSource& pieces) {
  for (const MatrixPiece& piece : pieces.pieces) {
    if (is_raw(piece.format)) {
      return fail("a weight is stored as U8, expected F32, F16, BF16 or a block type of GGUF");
    }
    const std::size_t block = format_info(piece.format).block_elements;
    if (static_cast<std::size_t>(piece.cols) % block != 0) {
      return fail("a row of {} elements is no whole number of {} blocks", piece.cols, format_info(piece.format).name);
    }
  }
  return Ok{};
}

Result<Matrix> WeightBuilder::matrix(const MatrixSource& pieces, const std::vector<std::string>& names) {
  MILLRACE_TRY(const LinearFormat format, format_of(names));
  MILLRACE_CHECK_OK(check_pieces(pieces));
  if (!packing_) {
    count(backend_->packed_bytes(pieces, format));
    return Matrix();
  }
  MatrixSource named = pieces;
  named.layers = names;
  auto packed = backend_->pack(named, format);
  if (!packed.ok()) return names.empty() ? packed.error() : fail("{}: {}", names.front(), packed.error().message);
  Matrix matrix = std::move(*packed);
  count(matrix->bytes());
  return matrix;
}

Result<Neurons> WeightBuilder::neurons(const MatrixSource& gate_up, const std::vector<std::string>& gate_up_names,
                                       const MatrixSource& down, const std::vector<std::string>& down_names,
                                       const NeuronChoice& choice) {
  NeuronSource source{.gate_up = gate_up, .down = down, .gate_up_format = {}, .down_format = {}, .choice = choice};
  MILLRACE_TRY(source.gate_up_format, format_of(gate_up_names));
  MILLRACE_TRY(source.down_format, format_of(down_names));
  MILLRACE_CHECK_OK(check_pieces(gate_up));
  MILLRACE_CHECK_OK(check_pieces(down));
  if (!packing_) {
    count(backend_->packed_neuron_bytes(source));
    return Neurons();
  }
  source.gate_up.layers = gate_up_names;
  source.down.layers = down_names;
  auto packed = backend_->pack_neurons(source);
  if (!packed.ok()) return fail("{}: {}", gate_up_names.front(), packed.error().message);
  Neurons neurons = std::move(*packed);
  count(neurons->bytes());
  return neurons;
}

void WeightBuilder::release(const std::vector<SourceTensor>& tensors) const {
  if (!packing_) return;
  for (const SourceTensor& tensor : tensors) source_->release(tensor.stored);
}

void WeightBuilder::release_slice(const SourceTensor& tensor, std::int64_t offset, std::int64_t bytes) const {
  if (!packing_) return;
  StoredTensor slice = tensor.stored;
  slice.data = slice.data.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(bytes));
  source_->release(slice);
}

}  // namespace millrace
