// Rows of prompts, which compute all neurons of a gated FFN: the dense products, of weights that lie neuron by neuron.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/input_rows.h"
#include "backend/cpu/neurons.h"
#include "backend/cpu/products.h"
#include "backend/cpu/thread_scratch.h"
#include "core/thread_pool.h"

namespace millrace {

/// Each task gathers some panels from the neurons into its thread's scratch, where all rows meet them. What comes out
/// has the bits that dense weights of the same format give, with all neurons in memory or some on disk: neurons are
/// taken in their own order, and sums of one part go on in the next. Used from one thread.
class NeuronPrompts {
 public:
  NeuronPrompts(ThreadPool& pool, const KernelTable& kernels, InputRows& inputs, const Products& products,
                ThreadScratch& scratch)
      : pool_(pool), kernels_(kernels), inputs_(inputs), products_(products), scratch_(scratch) {}

  /// As Backend::gated_ffn() for the given rows of the step, which are all of its rows where `all`. scratch: 2 * rows *
  /// neurons floats.
  void run(const GatedFfn& ffn, std::span<const std::int64_t> rows, bool all, const float* x, float* scratch,
           float* out);

 private:
  /// Neurons [first, end), by their own numbers, and hidden numbers of the rows.
  struct Part {
    std::int64_t first = 0, end = 0;
    float* hidden = nullptr;  // [rows][stride], of neuron `first`
    std::int64_t stride = 0;
  };

  void run_rows(const GatedFfn& ffn, std::int64_t rows, const float* x, float* scratch, float* out);
  void locate(const CpuNeurons& weights, std::int64_t first, std::int64_t end);
  void compute_hidden(const GatedFfn& ffn, const MatmulRun& run, const Part& part);
  void add_outputs(const GatedFfn& ffn, std::int64_t rows, const Part& part, float* out);
  void add_codes(const GatedFfn& ffn, std::int64_t rows, const float* hidden, std::int64_t stride, std::int64_t step,
                 float* out);
  /// Products of the inputs of `run` with all outputs of down of the neurons that were located.
  void multiply_down(const CpuNeurons& weights, const MatmulRun& run, const float* scales, bool resume);

  ThreadPool& pool_;
  const KernelTable& kernels_;
  InputRows& inputs_;
  const Products& products_;
  ThreadScratch& scratch_;
  std::vector<float> x_, out_, ones_;
  std::vector<std::int32_t> places_, sums_;
  std::vector<const std::byte*> bundles_, columns_;
};

}  // namespace millrace
