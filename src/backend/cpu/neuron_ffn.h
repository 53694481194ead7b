// Gated FFNs of which rows of answers compute some neurons.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/neuron_prompts.h"
#include "backend/cpu/neurons.h"
#include "core/thread_pool.h"

namespace millrace {

/// Rows of prompts compute all neurons, by the dense products. Rows of answers compute those that are chosen for them,
/// each row by itself, with kernels of single neurons, so that it has the same bits whatever else is computed. Of
/// neurons whose gate gives zero in every row neither up nor down is read. Used from one thread.
class NeuronFfn {
 public:
  NeuronFfn(const KernelTable& kernels, ThreadPool& pool, InputRows& inputs, const Products& products,
            ThreadScratch& scratch)
      : kernels_(kernels),
        pool_(pool),
        prompts_(pool, kernels, inputs, products, scratch),
        gates_(static_cast<std::size_t>(pool.threads())) {}

  /// Which rows of the step are of answers, and their positions.
  void begin(const ForwardBatch& batch);

  /// out = x weight^T + bias, as Backend::linear().
  using Multiply = std::function<void(const Linear& linear, const float* x, std::int64_t rows, float* out)>;

  /// As Backend::gated_ffn(), of weights that lie neuron by neuron.
  void run(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out,
           const Multiply& multiply);
  /// mask [rows][neurons]: 1 where the row computes the neuron. `space`: rows * neurons floats.
  void choose(const CpuNeurons& weights, const float* x, std::int64_t rows, float* space, const Multiply& multiply);
  /// What choose() found of row `row`, by place.
  [[nodiscard]] const std::uint8_t* mask(std::int64_t row, std::int64_t neurons) const {
    return mask_.data() + row * neurons;
  }
  /// Of a row whose matrices were multiplied in full.
  void count(const CpuNeurons& weights, std::int64_t row);

  [[nodiscard]] const SkipCounts& counts() const { return counts_; }

 private:
  /// Rows of answers, which are computed together.
  struct Rows {
    std::vector<std::int64_t> index;  // in the step
  };

  /// Some of the neurons that the rows compute, and a column of hidden numbers for each.
  struct Part {
    std::vector<std::int32_t> places;
    float* hidden = nullptr;  // [rows][stride]
    std::int64_t stride = 0;
  };

  /// Rows as codes of 8 bits: value = scales[row] * codes[row][k].
  struct CodeRows {
    std::vector<std::int8_t> codes;  // [rows][stride], a multiple of kNeuronBlock
    std::int64_t stride = 0;
    std::vector<float> scales;
    std::vector<std::int32_t> sums;  // to the kernel's use
  };

  void run_rows(const GatedFfn& ffn, const Rows& rows, const float* x, float* scratch, float* out);
  void round_to_codes(const float* values, std::int64_t stride, std::int64_t count, std::int64_t rows,
                      CodeRows& target);
  void take_inputs(const CpuNeurons& weights, const Rows& rows, const float* x);
  void list_neurons(const CpuNeurons& weights, const Rows& rows);
  /// Places [first, end) of the list, which are brought to memory.
  Part take_part(const CpuNeurons& weights, std::int64_t first, std::int64_t end, float* hidden, std::int64_t stride);
  void compute_hidden(const GatedFfn& ffn, const Rows& rows, const Part& part, std::uint8_t* fires);
  void drop_zeros(const CpuNeurons& weights, const Rows& rows, Part& part, const std::uint8_t* fires);
  void round_hidden(const CpuNeurons& weights, std::int64_t rows, const Part& part);
  /// `from`: where the part begins in what round_hidden() made codes of.
  void add_part(const CpuNeurons& weights, std::int64_t rows, const Part& part, std::int64_t from = 0);
  void write_outputs(const GatedFfn& ffn, const Rows& rows, float* out);

  /// Gates and ups of a task's neurons.
  struct Gates {
    std::vector<float> gate, up;
    std::vector<std::int32_t> sums;  // of codes
    std::vector<const std::byte*> weights;
  };

  const KernelTable& kernels_;
  ThreadPool& pool_;
  NeuronPrompts prompts_;
  std::vector<std::uint8_t> answers_;  // of the batch
  std::vector<std::int64_t> positions_;
  std::vector<std::uint8_t> mask_;  // [rows of the step][neurons]
  std::vector<std::uint8_t> some_;  // [neurons]: whether some row has it
  // Of the rows that are computed now:
  std::vector<float> x_, rank_, sums_;
  CodeRows x_codes_, hidden_codes_;
  std::vector<std::int32_t> code_sums_;
  std::vector<std::int32_t> places_;       // of the neurons that some row computes, ascending
  std::vector<const std::byte*> bundles_;  // of the part that is computed
  std::vector<std::uint8_t> fires_;        // [places]: whether some row's gate gives more than zero
  std::vector<Gates> gates_;               // of each thread
  SkipCounts counts_;
};

}  // namespace millrace
