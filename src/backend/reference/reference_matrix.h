// Weights of the reference backend: every one of them decoded to floats.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace millrace {

/// Every weight decoded to floats, row-major.
class ReferenceMatrix final : public PackedMatrix {
 public:
  ReferenceMatrix(std::int64_t rows, std::int64_t cols, LinearFormat format)
      : rows_(rows),
        cols_(cols),
        format_(format),
        values_(static_cast<std::size_t>(rows * cols)),
        input_groups_(static_cast<std::size_t>(rows)),
        coded_(static_cast<std::size_t>(rows)) {}

  [[nodiscard]] std::int64_t rows() const override { return rows_; }
  [[nodiscard]] std::int64_t cols() const override { return cols_; }
  [[nodiscard]] std::size_t bytes() const override { return values_.size() * sizeof(float); }
  [[nodiscard]] Arithmetic arithmetic() const override { return Arithmetic::f32; }
  [[nodiscard]] InputSkip skip() const override { return format_.skip; }
  [[nodiscard]] const LinearFormat& format() const { return format_; }
  [[nodiscard]] const float* row(std::int64_t r) const { return values_.data() + r * cols_; }
  [[nodiscard]] float* row(std::int64_t r) { return values_.data() + r * cols_; }

  /// How many inputs share a scale when they are rounded to 8 bits for this output, 0 for all; none: they are not.
  [[nodiscard]] std::optional<std::int64_t> input_group(std::int64_t r) const {
    return input_groups_[static_cast<std::size_t>(r)];
  }
  void set_input_group(std::int64_t r, std::int64_t group) { input_groups_[static_cast<std::size_t>(r)] = group; }
  /// The order in which inputs form groups for this output; empty: their own.
  [[nodiscard]] std::span<const std::int32_t> input_order(std::int64_t r) const {
    const auto& coded = coded_[static_cast<std::size_t>(r)];
    return coded ? std::span<const std::int32_t>(coded->input_order) : std::span<const std::int32_t>();
  }
  void set_coded(std::int64_t r, std::shared_ptr<const CodedMatrix> coded) {
    coded_[static_cast<std::size_t>(r)] = std::move(coded);
  }

 private:
  std::int64_t rows_, cols_;
  LinearFormat format_;
  std::vector<float> values_;
  std::vector<std::optional<std::int64_t>> input_groups_;
  std::vector<std::shared_ptr<const CodedMatrix>> coded_;  // where an output comes from one
};

/// The matrices of an FFN, and of what chooses its neurons.
class ReferenceNeurons final : public PackedNeurons {
 public:
  std::unique_ptr<PackedMatrix> gate_up, down, predictor_in, predictor_out;
  NeuronChoice choice;

  [[nodiscard]] std::int64_t neurons() const override { return down->cols(); }
  [[nodiscard]] std::int64_t inputs() const override { return gate_up->cols(); }
  [[nodiscard]] std::int64_t outputs() const override { return down->rows(); }
  [[nodiscard]] std::size_t bytes() const override {
    std::size_t bytes = gate_up->bytes() + down->bytes();
    if (predictor_in != nullptr) bytes += predictor_in->bytes() + predictor_out->bytes();
    return bytes;
  }
  [[nodiscard]] Arithmetic arithmetic() const override { return Arithmetic::f32; }
};

/// A matrix as pack() makes it. Errors: no memory; a weight that cannot be rounded.
Result<std::unique_ptr<PackedMatrix>> pack_reference(const MatrixSource& source, const LinearFormat& format);
Result<std::unique_ptr<PackedNeurons>> pack_reference_neurons(const NeuronSource& source);

/// Bytes of what these make.
std::size_t reference_bytes(const MatrixSource& source);
std::size_t reference_bytes(const NeuronSource& source);

/// A row of inputs as an output with this input_group() sees it.
void round_inputs(const LinearFormat& format, const std::optional<std::int64_t>& group,
                  std::span<const std::int32_t> order, const float* x, std::vector<float>& target);

}  // namespace millrace
