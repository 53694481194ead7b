// The experts of one layer, from any of the forms that checkpoints keep them in.

#include <cstring>
#include <utility>

#include "model/weight_loader.h"

namespace millrace {

namespace {

constexpr std::int64_t kMxfp4Elements = 32;  // of a block
constexpr std::int64_t kMxfp4Bytes = 17;     // of a block: an E8M0 scale, then two elements a byte

/// Rows 0, 2, 4, … then 1, 3, 5, …: gate and up of a tensor that holds them interleaved.
std::vector<std::int32_t> deinterleaved(std::int64_t rows) {
  std::vector<std::int32_t> order;
  for (std::int64_t half = 0; half < 2; ++half) {
    for (std::int64_t i = half; i < rows; i += 2) order.push_back(static_cast<std::int32_t>(i));
  }
  return order;
}

class ExpertLoader {
 public:
  ExpertLoader(WeightBuilder& builder, const ModelConfig& config, const LayerSpec& layer, const ExpertNames& names,
               std::string prefix)
      : builder_(&builder),
        names_(&names),
        prefix_(std::move(prefix)),
        count_(layer.moe.experts),
        hidden_(config.hidden),
        width_(layer.moe.intermediate) {}

  Result<std::vector<FfnWeights>> load() {
    experts_.resize(static_cast<std::size_t>(count_));
    const TensorSource& source = builder_->source();
    if (source.has(prefix_ + names_->gate_up)) {
      MILLRACE_CHECK_OK(from_fused());
    } else if (source.has(prefix_ + names_->gate_up + "_blocks")) {
      MILLRACE_CHECK_OK(from_mxfp4_blocks());
    } else if (source.has(prefix_ + names_->stacked + ".gate_proj.weight")) {
      MILLRACE_CHECK_OK(from_stacked());
    } else {
      MILLRACE_CHECK_OK(from_each());
    }
    return std::move(experts_);
  }

 private:
  // As recipes name them, however the file does.
  [[nodiscard]] std::string up_name() const { return prefix_ + "mlp.experts.gate_up_proj"; }
  [[nodiscard]] std::string down_name() const { return prefix_ + "mlp.experts.down_proj"; }

  /// [experts, 2 * width, hidden] and [experts, hidden, width]; or both transposed.
  Status from_fused() {
    const auto shape = [&](std::int64_t rows, std::int64_t cols) {
      return names_->transposed ? std::vector<std::int64_t>{count_, cols, rows}
                                : std::vector<std::int64_t>{count_, rows, cols};
    };
    MILLRACE_CHECK_OK(fused_matrix(prefix_ + names_->gate_up, shape(2 * width_, hidden_), 2 * width_, hidden_,
                                   names_->interleaved, &FfnWeights::gate_up));
    MILLRACE_CHECK_OK(
        fused_matrix(prefix_ + names_->down, shape(hidden_, width_), hidden_, width_, false, &FfnWeights::down));
    return fused_biases();
  }

  Status fused_matrix(const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t rows,
                      std::int64_t cols, bool interleaved, LinearWeights FfnWeights::*target) {
    std::vector<SourceTensor> tensors(1);
    MILLRACE_TRY(tensors.front(), builder_->tensor(name, shape));
    const StoredTensor& stored = tensors.front().stored;
    if (names_->transposed && !is_plain(stored.format)) {
      return fail("tensor {} is {}, expected f32, f16 or bf16", name, format_info(stored.format).name);
    }
    const auto step = static_cast<std::int64_t>(format_bytes(stored.format, static_cast<std::size_t>(rows * cols)));
    for (std::int64_t e = 0; e < count_; ++e) {
      MatrixPiece piece{.format = stored.format, .data = at(stored, e * step), .rows = rows, .cols = cols};
      if (names_->transposed) {
        piece.row_stride = static_cast<std::int64_t>(format_bytes(stored.format, 1));
        piece.column_stride = piece.row_stride * rows;
      }
      if (interleaved) piece.row_order = deinterleaved(rows);
      MILLRACE_TRY((experts_[static_cast<std::size_t>(e)].*target).weight,
                   builder_->matrix({{piece}}, {target == &FfnWeights::down ? down_name() : up_name()}));
      builder_->release_slice(tensors.front(), e * step, step);
    }
    builder_->release(tensors);
    return Ok{};
  }

  /// gate_up_proj_bias [experts, 2 * width] and down_proj_bias [experts, hidden].
  Status fused_biases() {
    if (!names_->expert_bias) return Ok{};
    MILLRACE_CHECK_OK(
        stacked_bias({prefix_ + names_->gate_up + "_bias"}, 2 * width_, names_->interleaved, &FfnWeights::gate_up));
    return stacked_bias({prefix_ + names_->down + "_bias"}, hidden_, false, &FfnWeights::down);
  }

  /// Tensors [experts, rows / names.size()] side by side.
  Status stacked_bias(const std::vector<std::string>& names, std::int64_t rows, bool interleaved,
                      LinearWeights FfnWeights::*target) {
    const std::int64_t share = rows / static_cast<std::int64_t>(names.size());
    std::vector<SourceTensor> tensors;
    for (const std::string& name : names) {
      MILLRACE_TRY(SourceTensor tensor, builder_->tensor(name, {count_, share}));
      if (!is_plain(tensor.stored.format)) {
        return fail("tensor {} is {}, expected f32, f16 or bf16", name, format_info(tensor.stored.format).name);
      }
      tensors.push_back(std::move(tensor));
    }
    const std::vector<std::int32_t> order = interleaved ? deinterleaved(rows) : std::vector<std::int32_t>();
    std::vector<float> values(static_cast<std::size_t>(rows)), row(static_cast<std::size_t>(share));
    for (std::int64_t e = 0; e < count_; ++e) {
      for (std::size_t t = 0; builder_->packing() && t < tensors.size(); ++t) {
        read_row({{WeightBuilder::piece(tensors[t], count_, share, {})}}, e, row.data());
        for (std::size_t i = 0; i < row.size(); ++i) values[t * row.size() + i] = row[i];
      }
      std::vector<float> ordered = values;
      for (std::size_t i = 0; i < order.size(); ++i) ordered[i] = values[static_cast<std::size_t>(order[i])];
      MILLRACE_TRY((experts_[static_cast<std::size_t>(e)].*target).bias, builder_->vector(ordered, rows));
    }
    return Ok{};
  }

  /// One tensor an expert and projection.
  Status from_each() {
    for (std::int64_t e = 0; e < count_; ++e) {
      FfnWeights& expert = experts_[static_cast<std::size_t>(e)];
      const std::string base = fmt::format("{}{}.{}.", prefix_, names_->each, e);
      std::vector<SourceTensor> tensors(2);
      MILLRACE_TRY(tensors[0], builder_->tensor(base + names_->each_gate + ".weight", {width_, hidden_}));
      MILLRACE_TRY(tensors[1], builder_->tensor(base + names_->each_up + ".weight", {width_, hidden_}));
      MILLRACE_TRY(expert.gate_up.weight, builder_->matrix({{WeightBuilder::piece(tensors[0], width_, hidden_, {}),
                                                             WeightBuilder::piece(tensors[1], width_, hidden_, {})}},
                                                           {up_name()}));
      builder_->release(tensors);
      tensors.resize(1);
      MILLRACE_TRY(tensors[0], builder_->tensor(base + names_->each_down + ".weight", {hidden_, width_}));
      MILLRACE_TRY(expert.down.weight,
                   builder_->matrix({{WeightBuilder::piece(tensors[0], hidden_, width_, {})}}, {down_name()}));
      builder_->release(tensors);
    }
    return Ok{};
  }

  /// One tensor a projection, all experts in it.
  Status from_stacked() {
    const std::string base = prefix_ + names_->stacked;
    std::vector<SourceTensor> tensors(3);
    MILLRACE_TRY(tensors[0], builder_->tensor(base + ".gate_proj.weight", {count_, width_, hidden_}));
    MILLRACE_TRY(tensors[1], builder_->tensor(base + ".up_proj.weight", {count_, width_, hidden_}));
    MILLRACE_TRY(tensors[2], builder_->tensor(base + ".down_proj.weight", {count_, hidden_, width_}));
    const auto bytes = [](const SourceTensor& tensor, std::int64_t rows, std::int64_t cols) {
      return rows * static_cast<std::int64_t>(format_bytes(tensor.stored.format, static_cast<std::size_t>(cols)));
    };
    const auto slice = [&](const SourceTensor& tensor, std::int64_t e, std::int64_t rows, std::int64_t cols) {
      const std::byte* const data = at(tensor.stored, e * bytes(tensor, rows, cols));
      return MatrixPiece{.format = tensor.stored.format, .data = data, .rows = rows, .cols = cols};
    };
    for (std::int64_t e = 0; e < count_; ++e) {
      FfnWeights& expert = experts_[static_cast<std::size_t>(e)];
      MILLRACE_TRY(expert.gate_up.weight,
                   builder_->matrix({{slice(tensors[0], e, width_, hidden_), slice(tensors[1], e, width_, hidden_)}},
                                    {up_name()}));
      MILLRACE_TRY(expert.down.weight, builder_->matrix({{slice(tensors[2], e, hidden_, width_)}}, {down_name()}));
      for (const SourceTensor& tensor : tensors) {
        const bool down = &tensor == &tensors[2];
        const std::int64_t size = down ? bytes(tensor, hidden_, width_) : bytes(tensor, width_, hidden_);
        builder_->release_slice(tensor, e * size, size);
      }
    }
    builder_->release(tensors);
    if (!names_->expert_bias) return Ok{};
    MILLRACE_CHECK_OK(
        stacked_bias({base + ".gate_proj.bias", base + ".up_proj.bias"}, 2 * width_, false, &FfnWeights::gate_up));
    return stacked_bias({base + ".down_proj.bias"}, hidden_, false, &FfnWeights::down);
  }

  /// gpt-oss as published: NAME_blocks [experts, rows, cols / 32, 16], two elements a byte, neighbours together, and
  /// NAME_scales [experts, rows, cols / 32].
  Status from_mxfp4_blocks() {
    MILLRACE_CHECK_OK(mxfp4_matrix(prefix_ + names_->gate_up, 2 * width_, hidden_, true, &FfnWeights::gate_up));
    MILLRACE_CHECK_OK(mxfp4_matrix(prefix_ + names_->down, hidden_, width_, false, &FfnWeights::down));
    return fused_biases();
  }

  Status mxfp4_matrix(const std::string& name, std::int64_t rows, std::int64_t cols, bool interleaved,
                      LinearWeights FfnWeights::*target) {
    if (cols % kMxfp4Elements != 0) return fail("tensor {}: rows of {} elements are no MXFP4 blocks", name, cols);
    const std::int64_t blocks = cols / kMxfp4Elements;
    std::vector<SourceTensor> tensors(2);
    MILLRACE_TRY(tensors[0], builder_->tensor(name + "_blocks", {count_, rows, blocks, kMxfp4Elements / 2}));
    MILLRACE_TRY(tensors[1], builder_->tensor(name + "_scales", {count_, rows, blocks}));
    for (const SourceTensor& tensor : tensors) {
      if (tensor.stored.format != QuantFormat::u8) {
        return fail("tensor {} is {}, expected u8", tensor.stored.name, format_info(tensor.stored.format).name);
      }
    }
    std::vector<std::byte> assembled;
    for (std::int64_t e = 0; e < count_; ++e) {
      if (builder_->packing()) {
        assembled = assemble(tensors[0].stored.data.data() + e * rows * blocks * (kMxfp4Elements / 2),
                             tensors[1].stored.data.data() + e * rows * blocks, rows * blocks);
      }
      MatrixPiece piece{.format = QuantFormat::mxfp4, .data = assembled.data(), .rows = rows, .cols = cols};
      if (interleaved) piece.row_order = deinterleaved(rows);
      MILLRACE_TRY((experts_[static_cast<std::size_t>(e)].*target).weight,
                   builder_->matrix({{piece}}, {target == &FfnWeights::down ? down_name() : up_name()}));
      builder_->release_slice(tensors[0], e * rows * blocks * kMxfp4Elements / 2, rows * blocks * kMxfp4Elements / 2);
    }
    builder_->release(tensors);
    return Ok{};
  }

  /// Blocks of QuantFormat::mxfp4, where byte j holds elements j and j + 16.
  static std::vector<std::byte> assemble(const std::byte* pairs, const std::byte* scales, std::int64_t count) {
    std::vector<std::byte> result(static_cast<std::size_t>(count * kMxfp4Bytes));
    for (std::int64_t b = 0; b < count; ++b) {
      std::byte* const target = result.data() + b * kMxfp4Bytes;
      const std::byte* const source = pairs + b * (kMxfp4Elements / 2);
      const auto element = [&](std::int64_t i) { return (source[i / 2] >> (i % 2 * 4)) & std::byte{0x0f}; };
      target[0] = scales[b];
      for (std::int64_t j = 0; j < kMxfp4Elements / 2; ++j) {
        target[1 + j] = element(j) | (element(j + kMxfp4Elements / 2) << 4);
      }
    }
    return result;
  }

  /// In the first pass there may be no data.
  static const std::byte* at(const StoredTensor& tensor, std::int64_t offset) {
    return tensor.data.empty() ? nullptr : tensor.data.data() + offset;
  }

  WeightBuilder* builder_;
  const ExpertNames* names_;
  std::string prefix_;
  std::int64_t count_, hidden_, width_;
  std::vector<FfnWeights> experts_;
};

}  // namespace

Result<std::vector<FfnWeights>> load_experts(WeightBuilder& builder, const ModelConfig& config, const LayerSpec& layer,
                                             const ExpertNames& names, const std::string& prefix) {
  return ExpertLoader(builder, config, layer, names, prefix).load();
}

}  // namespace millrace
