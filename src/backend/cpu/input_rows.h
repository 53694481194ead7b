// Rows of inputs as the kernels' products take them: as they are, in another order, rounded to codes, to E4M3 or to
// bf16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/cpu/input_tiles.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/packed_matrix.h"
#include "backend/cpu/skip_choice.h"
#include "backend/cpu/skipped_inputs.h"
#include "core/thread_pool.h"

namespace millrace {

/// out[r, o] = x[r] times output o of the weight, plus bias[o].
struct MatmulRun {
  const CpuMatrix* weight = nullptr;
  const float* bias = nullptr;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  std::int64_t rows = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  IntegerInputs integers = {};           // x in codes, for integer weights
  const std::uint16_t* pairs = nullptr;  // x in bf16, for paired weights
  std::int64_t pairs_stride = 0;
  const float* x_scales = nullptr;  // of x in values of E4M3, for such weights
  // Where the rows are so few, and leave out so much, that kernels skip the rest: of each kSkipRows rows; else empty.
  std::span<const KeptInputs> kept = {};
  // Of `out`'s first element.
  std::int64_t out_row = 0, out_column = 0;

  /// The same to elsewhere, where the first element is of that row and output.
  [[nodiscard]] MatmulRun to(float* target, std::int64_t stride, std::int64_t row, std::int64_t column) const {
    MatmulRun run = *this;
    run.out = target;
    run.out_stride = stride;
    run.out_row = row;
    run.out_column = column;
    return run;
  }
};

/// What the last call made stays until the next. Used from one thread.
class InputRows {
 public:
  InputRows(const KernelTable& kernels, ThreadPool& pool) : kernels_(kernels), pool_(pool), skipped_(pool) {}

  /// Which rows of the step's products are of answers.
  void begin(const ForwardBatch& batch) { skipped_.begin(batch); }

  /// The run with its inputs as its weight wants them.
  MatmulRun prepare(MatmulRun run);

  [[nodiscard]] const SkippedInputs& skipped() const { return skipped_; }

 private:
  void list_kept(MatmulRun& run);
  /// Of the rows from `first` on. False where all inputs count.
  bool list_group(KeptInputs& kept, const MatmulRun& run, std::int64_t first) const;
  void round_floats(MatmulRun& run);
  void reorder(MatmulRun& run);
  void quantize(MatmulRun& run, std::int64_t group);
  void round_to_e4m3(MatmulRun& run);
  void round_to_pairs(MatmulRun& run);

  /// Memory that grows and is kept, in huge pages.
  class Memory {
   public:
    /// What it held before is of no interest.
    std::byte* reserve(std::size_t bytes);

   private:
    std::shared_ptr<void> memory_;
    std::size_t bytes_ = 0;
  };

  const KernelTable& kernels_;
  ThreadPool& pool_;
  SkippedInputs skipped_;
  KeptInputs kept_[kMostSkipRows / kSkipRows];
  Memory ordered_, values_, pairs_, codes_;
};

}  // namespace millrace
