// Linear layers, gated feed-forward layers and experts: which kernel multiplies, and how inputs come to it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "backend/backend.h"
#include "backend/cuda/cuda_matrix.h"
#include "backend/cuda/step.h"

namespace millrace::cuda {

inline const CudaMatrix& as_cuda(const PackedMatrix& matrix) {
  return static_cast<const CudaMatrix&>(matrix);
}

class Products {
 public:
  explicit Products(Step& step) : step_(&step) {}

  /// x [rows, x_stride]; as Backend::linear.
  void linear(const Linear& linear, const float* x, std::int64_t x_stride, std::int64_t rows, float* out,
              std::int64_t out_stride) {
    multiply(linear, x, x_stride, rows, out, out_stride, nullptr);
  }
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out);
  void moe(const MoeArgs& args);

 private:
  /// The weights of a layer's experts on the device, gate_up or down, segment by segment.
  struct ExpertTable {
    std::shared_ptr<void> memory;
    std::size_t segments = 0, experts = 0;
  };

  /// Products of x, or of what `gate` makes of it.
  void multiply(const Linear& linear, const float* x, std::int64_t x_stride, std::int64_t rows, float* out,
                std::int64_t out_stride, const RoundLaunch* gate);
  [[nodiscard]] ProductKernel kernel_for(const CudaMatrix::Segment& segment, std::int64_t rows) const;
  std::pair<const float*, std::int64_t> rounded(const CudaMatrix::Segment& segment, const float* x,
                                                std::int64_t x_stride, std::int64_t rows);
  void round_to_tiles(RoundLaunch inputs, MatmulLaunch& launch);
  void activate(const GatedFfn& ffn, float* gate_up, std::int64_t rows);
  const ExpertTable& expert_table(std::span<const GatedFfn> experts, bool down);
  /// Inputs of a product with experts: pair p multiplies row p / x_rows of x with the weight of expert choice[p].
  struct ExpertInputs {
    const float* x = nullptr;
    std::int64_t stride = 0, count = 0;
    std::int32_t x_rows = 1;
    const std::int32_t* choice = nullptr;
    std::int64_t pairs = 0;
  };
  void multiply_experts(std::span<const GatedFfn> experts, bool down, const ExpertInputs& inputs, float* out,
                        std::int64_t out_stride);

  Step* step_;
  GrowingMemory tiles_, values_, scales_;
  GrowingMemory logits_, choice_, weights_, hidden_, expert_out_;
  std::map<std::uint64_t, ExpertTable> expert_tables_;  // by id() of the first expert's weight
};

}  // namespace millrace::cuda
