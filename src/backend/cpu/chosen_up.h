// Products with the up of a gated FFN of which rows of answers compute some neurons: those whose gate is large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/input_rows.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/packed_matrix.h"
#include "backend/cpu/products.h"
#include "backend/cpu/thread_scratch.h"
#include "core/thread_pool.h"

namespace millrace {

/// Takes a panel of the segment, whose outputs lie one by one, apart into these: they need as much memory.
void part_outputs(const CpuMatrix::Segment& segment, std::byte* panel);
/// Bytes behind the outputs of a segment that are read too, as lines are read whole.
inline std::size_t read_behind(const CpuMatrix::Segment& segment) {
  return segment.row_bytes > 0 ? 64 : 0;
}

/// Gates come first, for all neurons; then panels are gathered of the ups that some row wants, and the dense kernels
/// take them. So the bits are those of products with all of up. Used from one thread.
class ChosenUp {
 public:
  ChosenUp(const KernelTable& kernels, ThreadPool& pool, const Products& products, ThreadScratch& scratch)
      : kernels_(kernels), pool_(pool), products_(products), scratch_(scratch) {}

  /// For rows of answers, which are all that the step has.
  void begin(std::int64_t rows, std::int64_t neurons);
  /// Gates of neurons [first, first + count) of row `row`, before their activation, to be filled in.
  [[nodiscard]] float* gates(std::int64_t row, std::int64_t first) { return gates_.data() + row * neurons_ + first; }
  /// Once they are there: what |act(gate)| <= threshold leaves out is. May be called from several threads.
  void choose(const GatedFfn& ffn, float threshold, std::int64_t row, std::int64_t first, std::int64_t count);
  /// hidden [rows][stride]: act(gate) * up of what is chosen, else zeros. `run`: of gate and up.
  void multiply(const GatedFfn& ffn, const MatmulRun& run, float* hidden, std::int64_t stride);

 private:
  void multiply_some(const GatedFfn& ffn, const MatmulRun& run, std::int64_t begin, std::int64_t end, float* hidden,
                     std::int64_t stride, float* memory);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  const Products& products_;
  ThreadScratch& scratch_;
  std::int64_t rows_ = 0, neurons_ = 0;
  std::vector<float> gates_;          // [rows][neurons]
  std::vector<std::uint8_t> chosen_;  // [rows][neurons]
  std::vector<std::uint8_t> some_;    // [neurons]: whether some row has it
  std::vector<std::int32_t> list_;    // the neurons that some row has, ascending
};

/// What the activation makes of gates alone: `gates` [count], in place.
void activate_gates(const KernelTable& kernels, const GatedFfn& ffn, float* gates, std::int64_t count);

}  // namespace millrace
