#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "backend/cpu/attention.h"
#include "backend/cpu/chosen_up.h"
#include "backend/cpu/cpu_limits.h"
#include "backend/cpu/device_memory.h"
#include "backend/cpu/input_rows.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/neuron_ffn.h"
#include "backend/cpu/packed_matrix.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/products.h"
#include "backend/cpu/thread_scratch.h"
#include "core/check.h"
#include "core/cpu_info.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace millrace {

namespace {

constexpr std::int64_t kTaskWeights = 1 << 15;  // of an output of each panel of a task, where rows are many
constexpr std::int64_t kMostPanels = 16;
constexpr std::int64_t kMoeRows = 4 * kMatmulRows;  // rows of one expert at a time: bounds the workspace

const CpuMatrix& as_cpu(const PackedMatrix& matrix) {
  return static_cast<const CpuMatrix&>(matrix);
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(std::unique_ptr<ThreadPool> pool, IsaLevel level)
      : pool_(std::move(pool)),
        level_(level),
        kernels_(kernel_table(level)),
        inputs_(kernels_, *pool_),
        products_(kernels_),
        scratch_(pool_->threads()),
        neuron_ffn_(kernels_, *pool_, inputs_, products_, scratch_),
        chosen_up_(kernels_, *pool_, products_, scratch_),
        attention_(kernels_, *pool_, scratch_) {}

  [[nodiscard]] std::string numeric_class() const override {
    return fmt::format("cpu/{}/6", numeric_level_name(level_));
  }
  Result<DeviceLimits> measure_limits() override { return measure_cpu_limits(kernels_, *pool_); }
  [[nodiscard]] bool host_memory() const override { return true; }
  [[nodiscard]] std::uint64_t free_memory() const override { return available_memory(); }

  Result<Buffer> allocate(std::size_t bytes) override {
    MILLRACE_TRY(std::shared_ptr<void> memory, allocate_device_memory(bytes, "a buffer"));
    return Buffer{std::move(memory), bytes};
  }

  Result<Buffer> allocate_host(std::size_t bytes) override { return allocate(bytes); }

  void write(const Buffer& target, std::size_t offset, std::span<const std::byte> source) override {
    check_range(target, offset, source.size());
    if (!source.empty()) std::memcpy(target.data() + offset, source.data(), source.size());
  }

  void read(const Buffer& source, std::size_t offset, std::span<std::byte> target) override {
    check_range(source, offset, target.size());
    if (!target.empty()) std::memcpy(target.data(), source.data() + offset, target.size());
  }

  void copy(const Buffer& target, std::size_t target_offset, const Buffer& source, std::size_t source_offset,
            std::size_t bytes) override {
    check_copy(target, target_offset, source, source_offset, bytes);
    if (bytes != 0) std::memcpy(target.data() + target_offset, source.data() + source_offset, bytes);
  }

  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) override {
    MILLRACE_TRY(std::unique_ptr<CpuMatrix> matrix, CpuMatrix::pack(source, format, layouts(), *pool_, weights_));
    return std::unique_ptr<PackedMatrix>(std::move(matrix));
  }

  [[nodiscard]] std::size_t packed_bytes(const MatrixSource& source, LinearFormat format) const override {
    return CpuMatrix::packed_bytes(source, format, layouts());
  }

  [[nodiscard]] std::span<const KvFormat> kv_formats() const override { return kKvFormats; }
  [[nodiscard]] bool selects_pages() const override { return true; }
  [[nodiscard]] bool skips_inputs() const override { return true; }
  [[nodiscard]] SkipCounts skip_counts() const override {
    const SkipCounts &inputs = inputs_.skipped().counts(), &neurons = neuron_ffn_.counts();
    return {inputs.kept + neurons.kept, inputs.all + neurons.all, store_ != nullptr ? store_->bytes_read() : 0.0};
  }
  [[nodiscard]] AttendCounts attend_counts() const override { return attention_.counts(); }
  [[nodiscard]] bool chooses_neurons() const override { return true; }
  Result<std::unique_ptr<PackedNeurons>> pack_neurons(const NeuronSource& source) override {
    MILLRACE_TRY(std::unique_ptr<CpuNeurons> packed,
                 CpuNeurons::pack(source, layouts(), *pool_, weights_, store_.get()));
    return std::unique_ptr<PackedNeurons>(std::move(packed));
  }
  Status open_neuron_store(const NeuronStoreOptions& options) override {
    MILLRACE_TRY(store_, NeuronStore::open(options));
    return Ok{};
  }
  [[nodiscard]] std::size_t packed_neuron_bytes(const NeuronSource& source) const override {
    return CpuNeurons::packed_bytes(source, layouts());
  }
  [[nodiscard]] Arithmetic attend_arithmetic(KvFormat format) const override {
    return attention_.rounds(format) ? Arithmetic::bf16 : Arithmetic::f32;
  }
  Status take_failure() override { return store_ != nullptr ? store_->take_failure() : Ok{}; }
  void wait() override {}

  void begin(const ForwardBatch& batch) override {
    inputs_.begin(batch);
    neuron_ffn_.begin(batch);
  }

  void embed(const ForwardBatch& batch, const PackedMatrix& table, float scale, float* out) override {
    const std::int64_t width = table.cols();
    for_each(batch.rows(), width, kParallelElements, [&](std::int64_t row, int) {
      float* target = out + row * width;
      as_cpu(table).decode_row(batch.token_ids[static_cast<std::size_t>(row)], target);
      if (scale != 1.0f) kernels_.combine(scale, target, 0.0f, nullptr, target, width);
    });
  }

  void residual_norm(const ResidualNormArgs& args) override {
    for_each(args.rows, 4 * args.width, kParallelElements,
             [&](std::int64_t row, int) { kernels_.residual_norm(args, row, row + 1); });
  }

  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override {
    const CpuMatrix& weight = as_cpu(*linear.weight);
    matmul(inputs_.prepare({&weight, linear.bias, x, weight.cols(), rows, out, out_stride}));
  }

  void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) override {
    const std::int64_t kv_width = std::int64_t{args.kv_heads} * args.head_dim;
    scratch_.reserve(kv_width);
    sequence_of_row_.resize(static_cast<std::size_t>(batch.rows()));
    for (const SequenceRows& sequence : batch.sequences) {
      std::fill_n(sequence_of_row_.begin() + sequence.first_row, sequence.rows, &sequence);
    }
    const auto one = [&](std::int64_t row, int thread) {
      const SequenceRows& sequence = *sequence_of_row_[static_cast<std::size_t>(row)];
      RopeStoreTask task{.args = &args, .row = row, .scratch = scratch_.of(thread)};
      if (args.store) {
        const KvLayer& kv = args.kv;
        const std::int64_t position = sequence.first_place(kv.group) + row - sequence.first_row;
        const auto table = sequence.page_tables[static_cast<std::size_t>(kv.group)];
        const auto index = static_cast<std::size_t>(position / kv.page_tokens);
        MILLRACE_CHECK(index < table.size() && table[index] >= 0, "position {} has no page", position);
        const std::size_t element = kv_element_bytes(kv.format),
                          row_bytes = kv_elements(kv.format, static_cast<std::size_t>(args.head_dim)) * element;
        const auto slot = static_cast<std::size_t>(position % kv.page_tokens);
        std::byte* page = kv.pages + static_cast<std::size_t>(table[index]) * kv.page_bytes;
        task.key = page + kv.key_offset + slot * element;
        task.value = page + kv.value_offset + slot * row_bytes;
        task.head_stride = row_bytes * static_cast<std::size_t>(kv.page_tokens);
        task.key_scale = reinterpret_cast<float*>(page + kv.key_scale_offset) + slot;
        task.value_scale = reinterpret_cast<float*>(page + kv.value_scale_offset) + slot;
      }
      kernels_.rope_store(task);
    };
    // Keys of neighbouring positions lie in the same lines of the cache, which two threads should not write in turn.
    const std::int64_t rows = batch.rows(), together = rows >= 32 * pool_->threads() ? 16 : 1;
    for_each((rows + together - 1) / together, together * 4 * args.qkv_width, kParallelElements,
             [&](std::int64_t task, int thread) {
               const std::int64_t end = std::min(rows, (task + 1) * together);
               for (std::int64_t row = task * together; row < end; ++row) one(row, thread);
             });
    if (args.store) attention_.keep_of_keys(batch, args);
  }

  void attend(const ForwardBatch& batch, const AttendArgs& args) override { attention_.attend(batch, args); }

  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override {
    if (ffn.neurons != nullptr) return choosing_ffn(ffn, x, rows, scratch, out);
    const CpuMatrix& gate_up = as_cpu(*ffn.gate_up.weight);
    const std::int64_t width = ffn.intermediate();
    const MatmulRun up_run = inputs_.prepare({&gate_up, ffn.gate_up.bias, x, gate_up.cols(), rows, scratch, 2 * width});
    const std::int64_t up_panel = gate_up.twin_panel();
    // Rows a power of two apart would lie in few sets of the caches.
    const std::int64_t stride = up_panel > 0 ? std::min(width + kPanelRows, 2 * width) : 2 * width;
    if (chooses_up(ffn, rows)) {
      choose_up(ffn, up_run, up_panel, stride);
    } else if (up_panel > 0) {
      // Gate and up of the same columns are computed by one task, which activates them while they are in its cache.
      matmul_tasks(up_run, up_panel, 2,
                   [&](std::int64_t first, std::int64_t end, std::int64_t row, std::int64_t count, float* space) {
                     const std::int64_t column = first * kPanelRows,
                                        columns = std::min(end * kPanelRows, width) - column;
                     float* const gate = space + kMatmulScratch;
                     float* const up = gate + count * columns;
                     products_.multiply(up_run.to(gate, columns, row, column), first, end, row, count, space);
                     products_.multiply(up_run.to(up, columns, row, width + column), up_panel + first, up_panel + end,
                                        row, count, space);
                     for (std::int64_t r = 0; r < count; ++r) {
                       activate_row(ffn, row + r, gate + r * columns, up + r * columns,
                                    scratch + (row + r) * stride + column, columns);
                     }
                   });
    } else {
      matmul(up_run);
      for_each(rows, 8 * width, kParallelElements, [&](std::int64_t row, int) {
        float* const gate = scratch + row * stride;
        activate_row(ffn, row, gate, gate + width, gate, width);
      });
    }
    const CpuMatrix& down = as_cpu(*ffn.down.weight);
    matmul(inputs_.prepare({&down, ffn.down.bias, scratch, stride, rows, out, down.rows()}));
  }

  void moe(const MoeArgs& args) override;

  void activate_multiply(Activation activation, float* gate, const float* other, std::int64_t other_stride,
                         std::int64_t rows, std::int64_t width) override {
    MILLRACE_CHECK(activation != Activation::swiglu_clamp, "swiglu_clamp needs a limit");
    for_each(rows, 8 * width, kParallelElements, [&](std::int64_t row, int) {
      float* target = gate + row * width;
      kernels_.activate(activation, 0.0f, target, other + row * other_stride, target, width);
    });
  }

  void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) override {
    for_pieces(count, 1, [&](std::int64_t first, std::int64_t size) {
      kernels_.combine(a, x + first, b, y != nullptr ? y + first : nullptr, out + first, size);
    });
  }

  void gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width, float* out) override {
    for_each(static_cast<std::int64_t>(indices.size()), width, kParallelElements, [&](std::int64_t i, int) {
      std::memcpy(out + i * width, x + indices[static_cast<std::size_t>(i)] * width,
                  static_cast<std::size_t>(width) * sizeof(float));
    });
  }

  void scale_softcap(float* x, std::int64_t count, float scale, float softcap) override {
    for_pieces(count, softcap != 0.0f ? 16 : 1,
               [&](std::int64_t first, std::int64_t size) { kernels_.scale_softcap(x + first, size, scale, softcap); });
  }

 private:
  void choosing_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) {
    const auto& weights = static_cast<const CpuNeurons&>(*ffn.neurons);
    const auto multiply = [this](const Linear& by, const float* from, std::int64_t count, float* to) {
      linear(by, from, count, to, by.weight->rows());
    };
    if (weights.form()) return neuron_ffn_.run(ffn, x, rows, scratch, out, multiply);
    // What the kernels cannot choose from is computed in full; what is not chosen counts as zero.
    const std::int64_t width = weights.neurons();
    neuron_ffn_.choose(weights, x, rows, scratch, multiply);
    linear({&weights.gate_up(), ffn.gate_up.bias}, x, rows, scratch, 2 * width);
    for_each(rows, 8 * width, kParallelElements, [&](std::int64_t row, int) {
      float* const gate = scratch + row * 2 * width;
      kernels_.activate(ffn.activation, ffn.clamp_limit, gate, gate + width, gate, width);
      const std::uint8_t* const mask = neuron_ffn_.mask(row, width);
      for (std::int64_t i = 0; i < width; ++i) gate[i] = mask[i] != 0 ? gate[i] : 0.0f;
    });
    for (std::int64_t row = 0; row < rows; ++row) neuron_ffn_.count(weights, row);
    const CpuMatrix& down = weights.down();
    matmul(inputs_.prepare({&down, ffn.down.bias, scratch, 2 * width, rows, out, down.rows()}));
  }

  /// Whether ups of neurons that no row keeps need not be computed. Where rows are many they keep nearly all.
  [[nodiscard]] bool chooses_up(const GatedFfn& ffn, std::int64_t rows) const {
    if (as_cpu(*ffn.gate_up.weight).chosen_up() == nullptr || rows == 0 || rows > kSkipRows) return false;
    if (!ffn.down.weight->skip().gate_threshold) return false;
    for (std::int64_t row = 0; row < rows; ++row) {
      if (!inputs_.skipped().is_answer(row)) return false;
    }
    return true;
  }

  /// run.out [rows][stride] becomes act(gate) * up, or zero where the rows, which are all of answers, leave a neuron
  /// out. `panels`: of the gate.
  void choose_up(const GatedFfn& ffn, const MatmulRun& run, std::int64_t panels, std::int64_t stride) {
    const std::int64_t width = ffn.intermediate();
    const float threshold = *ffn.down.weight->skip().gate_threshold;
    chosen_up_.begin(run.rows, width);
    matmul_tasks(
        run, panels, 1, [&](std::int64_t first, std::int64_t end, std::int64_t row, std::int64_t count, float* space) {
          const std::int64_t column = first * kPanelRows, columns = std::min(end * kPanelRows, width) - column;
          products_.multiply(run.to(chosen_up_.gates(row, column), width, row, column), first, end, row, count, space);
          for (std::int64_t r = row; r < row + count; ++r) {
            chosen_up_.choose(ffn, threshold, r, column, columns);
          }
        });
    chosen_up_.multiply(ffn, run, run.out, stride);
  }

  template <typename Function>
  void for_each(std::int64_t tasks, std::int64_t work, std::int64_t threshold, Function&& fn) {
    millrace::for_each(*pool_, tasks, work, threshold, fn);
  }

  /// fn(first, size) over pieces of an array of `count` elements.
  template <typename Function>
  void for_pieces(std::int64_t count, std::int64_t work, Function&& fn) {
    constexpr std::int64_t kPiece = 1 << 13;
    for_each((count + kPiece - 1) / kPiece, kPiece * work, kParallelElements,
             [&](std::int64_t piece, int) { fn(piece * kPiece, std::min(kPiece, count - piece * kPiece)); });
  }

  /// Some columns of a row: out = act(gate) * up, or zero where a row of an answer leaves the neuron out. `out` may be
  /// gate.
  void activate_row(const GatedFfn& ffn, std::int64_t row, const float* gate, const float* up, float* out,
                    std::int64_t columns) const {
    const std::optional<float> threshold = ffn.down.weight->skip().gate_threshold;
    if (!threshold || !inputs_.skipped().is_answer(row)) {
      kernels_.activate(ffn.activation, ffn.clamp_limit, gate, up, out, columns);
      return;
    }
    constexpr std::int64_t kPiece = 256;
    float gates[kPiece];
    for (std::int64_t first = 0; first < columns; first += kPiece) {
      const std::int64_t count = std::min(kPiece, columns - first);
      std::copy_n(gate + first, count, gates);
      activate_gates(kernels_, ffn, gates, count);
      kernels_.activate(ffn.activation, ffn.clamp_limit, gate + first, up + first, out + first, count);
      for (std::int64_t i = 0; i < count; ++i) {
        if (std::fabs(gates[i]) <= *threshold) out[first + i] = 0.0f;
      }
    }
  }

  /// Panels that a task takes at least: what a tile of rows takes; of weights that are skipped a whole tile, so that
  /// memory is read in long pieces.
  [[nodiscard]] static std::int64_t task_panels(const MatmulRun& run) {
    if (run.kept.empty() && run.weight->gathers()) return Products::gathered_panels(*run.weight);
    if (run.kept.empty()) return run.rows > 1 ? 4 : 8;
    return run.weight->segments().front().tile() / kPanelRows;
  }

  /// Cuts `panels` panels times the rows into tasks fn(first panel, end panel, first row, rows, scratch). `parts`: how
  /// many matrices of that size a task multiplies. `scratch`: as Products wants it, with room behind for what a task
  /// gives.
  template <typename Function>
  void matmul_tasks(const MatmulRun& run, std::int64_t panels, std::int64_t parts, Function&& fn) {
    if (run.rows == 0) return;
    // Whole tiles of rows, which some kernels compute anyway.
    const std::int64_t row_blocks = run.weight->gathers() ? 1 : (run.rows + kMatmulRows - 1) / kMatmulRows;
    const std::int64_t block_rows = row_blocks == 1 ? run.rows : round_up((run.rows + row_blocks - 1) / row_blocks, 16);
    // Many tasks a thread, so that a slow one does not keep all waiting; whole groups of panels, so that the tiles of a
    // few rows are full. Many rows come back to the weights, which the second-level cache has to hold.
    const std::int64_t group = task_panels(run), wanted = 12 * pool_->threads();
    std::int64_t step = round_up((panels + wanted - 1) / wanted, group);
    if (run.rows > 1 && run.kept.empty()) {
      const std::int64_t inputs = std::max<std::int64_t>(run.weight->cols() * parts, 1);
      step = std::min(step, std::max(group, std::min(kMostPanels, kTaskWeights / inputs / group * group)));
    }
    const std::int64_t steps = (panels + step - 1) / step;
    const std::int64_t gathered = Products::gathered_floats(*run.weight);
    scratch_.reserve(gathered + kMatmulScratch + parts * step * kPanelRows * block_rows);
    const auto multiply = [&](std::int64_t index, std::int64_t row, int thread) {
      const std::int64_t first = index * step;
      fn(first, std::min(first + step, panels), row, std::min(block_rows, run.rows - row),
         scratch_.of(thread) + gathered);
    };
    const std::int64_t products = step * kPanelRows * run.weight->cols() * parts;
    if (row_blocks == 1 || steps >= 2 * pool_->threads()) {
      // A thread keeps its weights for all rows.
      for_each(steps, products * run.rows, kParallelProducts, [&](std::int64_t index, int thread) {
        for (std::int64_t row = 0; row < run.rows; row += block_rows) multiply(index, row, thread);
      });
    } else {
      const std::int64_t blocks = (run.rows + block_rows - 1) / block_rows;
      for_each(steps * blocks, products * block_rows, kParallelProducts,
               [&](std::int64_t task, int thread) { multiply(task / blocks, task % blocks * block_rows, thread); });
    }
  }

  [[nodiscard]] CpuLayouts layouts() const {
    return {.pairs = kernels_.products.multiply_pairs != nullptr,
            .code_tiles = kernels_.products.skip_integers != nullptr,
            .threads = pool_->threads()};
  }

  void matmul(const MatmulRun& run) {
    matmul_tasks(run, run.weight->panels(), 1,
                 [&](std::int64_t first, std::int64_t end, std::int64_t row, std::int64_t count, float* space) {
                   products_.multiply(run, first, end, row, count, space);
                 });
  }

  std::unique_ptr<ThreadPool> pool_;
  IsaLevel level_;
  KernelTable kernels_;
  InputRows inputs_;
  Products products_;
  DeviceArena weights_;
  std::unique_ptr<NeuronStore> store_;  // null: all weights are in memory
  ThreadScratch scratch_;
  NeuronFfn neuron_ffn_;
  ChosenUp chosen_up_;
  Attention attention_;
  // Kept between calls so that steps do not allocate.
  std::vector<const SequenceRows*> sequence_of_row_;
  std::vector<float> moe_logits_, moe_weights_, moe_x_, moe_scratch_, moe_out_;
  std::vector<std::uint8_t> moe_chosen_;
  std::vector<std::int64_t> moe_rows_;
};

void CpuBackend::moe(const MoeArgs& args) {
  const auto experts = static_cast<std::int64_t>(args.experts.size());
  const std::int64_t width = args.router.weight->cols();
  MILLRACE_CHECK(args.router.weight->rows() == experts && args.top_k > 0 && args.top_k <= experts,
                 "{} experts, {} router outputs, top {}", experts, args.router.weight->rows(), args.top_k);
  const auto table = static_cast<std::size_t>(args.rows * experts);
  moe_logits_.resize(table);
  moe_weights_.resize(table);
  moe_chosen_.resize(table);
  linear(args.router, args.router_x, args.rows, moe_logits_.data(), experts);
  for_each(args.rows, experts * args.top_k, kParallelElements, [&](std::int64_t row, int) {
    kernels_.route({.logits = moe_logits_.data() + row * experts,
                    .experts = static_cast<std::int32_t>(experts),
                    .top_k = args.top_k,
                    .weighting = args.weighting,
                    .expert_scale = args.expert_scale,
                    .weights = moe_weights_.data() + row * experts,
                    .chosen = moe_chosen_.data() + row * experts});
  });

  std::fill_n(args.out, args.rows * width, 0.0f);
  for (std::int64_t e = 0; e < experts; ++e) {
    moe_rows_.clear();
    for (std::int64_t row = 0; row < args.rows; ++row) {
      if (moe_chosen_[static_cast<std::size_t>(row * experts + e)] != 0) moe_rows_.push_back(row);
    }
    const GatedFfn& ffn = args.experts[static_cast<std::size_t>(e)];
    const auto total = static_cast<std::int64_t>(moe_rows_.size());
    for (std::int64_t first = 0; first < total; first += kMoeRows) {
      const std::int64_t count = std::min(kMoeRows, total - first);
      const std::int64_t* rows = moe_rows_.data() + first;
      moe_x_.resize(static_cast<std::size_t>(count * width));
      moe_out_.resize(static_cast<std::size_t>(count * width));
      moe_scratch_.resize(static_cast<std::size_t>(count * 2 * ffn.intermediate()));
      for (std::int64_t i = 0; i < count; ++i) {
        std::memcpy(moe_x_.data() + i * width, args.x + rows[i] * width,
                    static_cast<std::size_t>(width) * sizeof(float));
      }
      gated_ffn(ffn, moe_x_.data(), count, moe_scratch_.data(), moe_out_.data());
      for_each(count, width, kParallelElements, [&](std::int64_t i, int) {
        const float weight = moe_weights_[static_cast<std::size_t>(rows[i] * experts + e)];
        kernels_.accumulate(weight, moe_out_.data() + i * width, args.out + rows[i] * width, width);
      });
    }
  }
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuBackendOptions& options) {
  IsaLevel level = options.isa.value_or(best_isa_level());
  if (!isa_available(level)) {
    const std::string name = read_cpu_info().name;
    return fail("this processor ({}) does not have the ISA level {}; the best it has is {}",
                name.empty() ? "unknown" : name, isa_level_name(level), isa_level_name(best_isa_level()));
  }
  if (level == IsaLevel::amx && !request_tiles()) {
    if (options.isa) return fail("Linux does not let this process use the processor's tiles (ISA level amx)");
    level = IsaLevel::avx512_bf16;
  }
  MILLRACE_TRY(std::unique_ptr<ThreadPool> pool, ThreadPool::create(options.threads));
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(std::move(pool), level));
}

}  // namespace millrace
