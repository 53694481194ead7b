// From a product of rows with a weight to the kernels for its segments.
#pragma once

#include <cstdint>

#include "backend/cpu/input_rows.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/packed_matrix.h"

namespace millrace {

class Products {
 public:
  explicit Products(const KernelTable& kernels) : kernels_(kernels) {}

  /// Panels [first, end) of the weight, which may lie in several segments, for `count` rows from `row` on: at most
  /// kMatmulRows, or any number where its panels are gathered. `space`:
  /// kMatmulScratch floats, 64-byte aligned, with gathered_floats() of the weight before them.
  void multiply(const MatmulRun& run, std::int64_t first, std::int64_t end, std::int64_t row, std::int64_t count,
                float* space) const;

  /// Panels of a weight that are gathered together, so that a task should have as many.
  static std::int64_t gathered_panels(const CpuMatrix& weight);
  /// For panels that are gathered from weights which lie input by input, or output by output: a multiple of 16.
  static std::int64_t gathered_floats(const CpuMatrix& weight);

  /// Some rows of a run, and where their outputs of a segment go.
  struct Part {
    float* out = nullptr;         // of the first row, and output 0
    const float* bias = nullptr;  // of output 0, or null
    std::int64_t row = 0, count = 0;
    bool resume = false;  // sums go on from what is there
  };

  /// Panels [from, to) of the codes, or where there are none of `weight`.
  void multiply_segment(const MatmulRun& run, const CpuMatrix::Segment& segment, PackedSegment weight,
                        const PackedIntegers* codes, std::int64_t from, std::int64_t to, const Part& part,
                        float* space) const;

 private:
  /// With the inputs that the rows keep.
  void multiply_kept(const MatmulRun& run, const CpuMatrix::Segment& segment, std::int64_t from, std::int64_t to,
                     const Part& part) const;
  /// Of weights that lie input by input or output by output: some panels at a time as the dense kernels know them.
  void multiply_gathered(const MatmulRun& run, const CpuMatrix::Segment& segment, std::int64_t from, std::int64_t to,
                         const Part& part, float* space) const;
  /// Any number of rows.
  void multiply_rows(const MatmulRun& run, const CpuMatrix::Segment& segment, const PackedSegment& weight,
                     const PackedIntegers* codes, std::int64_t from, std::int64_t to, const Part& part,
                     float* space) const;
  const KernelTable& kernels_;
};

}  // namespace millrace
