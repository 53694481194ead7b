// The step in hand: operations are put down and start together.
#pragma once

#include <optional>
#include <utility>

#include "backend/cuda/device.h"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/step_graph.h"

namespace millrace::cuda {

class Step {
 public:
  explicit Step(Device& device) : device_(&device) {}

  [[nodiscard]] Device& device() const { return *device_; }

  /// `repeats`: steps of this shape come again and again.
  void set_repeats(bool repeats) { repeats_ = repeats; }

  template <typename Args>
  void add(cudaError_t (*start)(const Args&, cudaStream_t), const Args& args) {
    add_norm();
    graph_.add(start, args);
  }

  /// A norm waits for the operation after it: a product that reads its result can have it rounded on the way.
  void put_off(const NormLaunch& norm) {
    add_norm();
    norm_ = norm;
  }
  /// Adds a norm that waits, with what it shall round besides. False: none waits whose result these inputs are.
  bool round_in_norm(const RoundLaunch& inputs) {
    const bool of_norm = norm_ && norm_->norm != nullptr && norm_->out == inputs.x && norm_->rows == inputs.rows &&
                         norm_->width == inputs.cols && inputs.x_stride == inputs.cols && inputs.other == nullptr &&
                         inputs.order == nullptr && rounds_in_registers(inputs);
    if (!of_norm) return false;
    norm_->round = inputs;
    add_norm();
    return true;
  }

  /// Starts what was put down.
  void flush() {
    add_norm();
    graph_.run(device_->stream(), repeats_);
  }

  /// Where more memory is needed, what was put down runs first, since it uses the old.
  void* workspace(GrowingMemory& memory, std::size_t bytes, const char* purpose) {
    if (!memory.holds(bytes)) flush();
    return memory.at_least(*device_, bytes, purpose);
  }
  float* floats(GrowingMemory& memory, std::int64_t count, const char* purpose) {
    return static_cast<float*>(workspace(memory, static_cast<std::size_t>(count) * sizeof(float), purpose));
  }

 private:
  void add_norm() {
    if (!norm_) return;
    const NormLaunch launch = *std::exchange(norm_, std::nullopt);
    graph_.add(residual_norm, launch);
  }

  Device* device_;
  StepGraph graph_;
  std::optional<NormLaunch> norm_;
  bool repeats_ = false;
};

}  // namespace millrace::cuda
