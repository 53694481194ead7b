// Memory that tasks work in, a part for each thread.
#pragma once

#include <cstdint>
#include <memory>

namespace millrace {

class ThreadScratch {
 public:
  explicit ThreadScratch(int threads) : threads_(threads) {}

  /// At least `floats` for each thread. The amounts are small (tasks are, and a model's heads are bounded when its
  /// config is read), so it runs out only where the machine does, and then aborts.
  void reserve(std::int64_t floats);

  /// What a thread has; aligned to 64 bytes. Valid until the next reserve().
  [[nodiscard]] float* of(int thread) const { return static_cast<float*>(memory_.get()) + thread * floats_; }

 private:
  int threads_;
  std::int64_t floats_ = 0;
  std::shared_ptr<void> memory_;
};

}  // namespace millrace
