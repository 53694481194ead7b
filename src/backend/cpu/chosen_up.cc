#include "backend/cpu/chosen_up.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/neuron_panels.h"
#include "backend/cpu/parallel.h"

namespace millrace {

namespace {

constexpr std::int64_t kTogether = 2 * kPanelRows;  // neurons: as many panels as tiles take

/// Bytes that stand side by side for an output of a panel.
std::int64_t bytes_together(const CpuMatrix::Segment& segment) {
  return segment.stored.paired || segment.stored.format == QuantFormat::f32 ? 4 : 2;
}

std::int64_t gathered_floats(const CpuMatrix::Segment& segment) {
  const std::int64_t bytes = kTogether / kPanelRows * gathered_panel_bytes(segment) + kGatheredPadding;
  return round_up(bytes, 64) / static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

void CpuMatrix::part_up() {
  Segment& gate = segments_.front();
  const PackedSegment& stored = gate.stored;
  const bool plain =
      stored.format == QuantFormat::f32 || stored.format == QuantFormat::bf16 || stored.format == QuantFormat::f16;
  // Codes of eight bits are half as many bytes to save for as much work: with them nothing was gained.
  if (gate.coded != nullptr || gate.integers || !plain || gate.tile() > 0 || rows_ % 2 != 0) return;
  gate.stored.rows = rows_ / 2;
  Segment up = gate;
  up.first_row = gate.stored.rows;
  up.first_panel = gate.panels();
  up.row_bytes = gathered_panel_bytes(gate) / kPanelRows;
  segments_.push_back(up);
}

void part_outputs(const CpuMatrix::Segment& segment, std::byte* panel) {
  const std::int64_t size = bytes_together(segment), row_bytes = segment.row_bytes;
  const std::vector<std::byte> together(panel, panel + row_bytes * kPanelRows);
  for (std::int64_t at = 0; at < row_bytes; at += size) {
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      std::memcpy(panel + r * row_bytes + at, together.data() + at * kPanelRows + r * size,
                  static_cast<std::size_t>(size));
    }
  }
}

void activate_gates(const KernelTable& kernels, const GatedFfn& ffn, float* gates, std::int64_t count) {
  // The gate by itself is what it gives with an up that counts as one.
  constexpr std::int64_t kPiece = 256;
  float ones[kPiece];
  std::fill_n(ones, kPiece, ffn.activation == Activation::swiglu_clamp ? 0.0f : 1.0f);
  for (std::int64_t first = 0; first < count; first += kPiece) {
    kernels.activate(ffn.activation, ffn.clamp_limit, gates + first, ones, gates + first,
                     std::min(kPiece, count - first));
  }
}

void ChosenUp::begin(std::int64_t rows, std::int64_t neurons) {
  rows_ = rows;
  neurons_ = neurons;
  gates_.resize(static_cast<std::size_t>(rows * neurons));
  chosen_.resize(gates_.size());
}

void ChosenUp::choose(const GatedFfn& ffn, float threshold, std::int64_t row, std::int64_t first, std::int64_t count) {
  constexpr std::int64_t kPiece = 256;
  float values[kPiece];
  for (std::int64_t at = 0; at < count; at += kPiece) {
    const std::int64_t some = std::min(kPiece, count - at);
    std::copy_n(gates(row, first + at), some, values);
    activate_gates(kernels_, ffn, values, some);
    std::uint8_t* const target = chosen_.data() + row * neurons_ + first + at;
    for (std::int64_t i = 0; i < some; ++i) target[i] = std::fabs(values[i]) <= threshold ? 0 : 1;
  }
}

void ChosenUp::multiply(const GatedFfn& ffn, const MatmulRun& run, float* hidden, std::int64_t stride) {
  some_.assign(chosen_.begin(), chosen_.begin() + neurons_);
  for (std::int64_t r = 1; r < rows_; ++r) {
    for (std::int64_t i = 0; i < neurons_; ++i) {
      some_[static_cast<std::size_t>(i)] |= chosen_[static_cast<std::size_t>(r * neurons_ + i)];
    }
  }
  // Without branches, which nothing could predict.
  list_.resize(static_cast<std::size_t>(neurons_ + 1));
  std::size_t listed = 0;
  for (std::int64_t i = 0; i < neurons_; ++i) {
    list_[listed] = static_cast<std::int32_t>(i);
    listed += some_[static_cast<std::size_t>(i)];
  }
  list_.resize(listed);
  for (std::int64_t r = 0; r < rows_; ++r) std::fill_n(hidden + r * stride, neurons_, 0.0f);
  const auto count = static_cast<std::int64_t>(listed);
  const CpuMatrix::Segment& up = *run.weight->chosen_up();
  scratch_.reserve(gathered_floats(up) + kMatmulScratch + 2 * rows_ * kTogether);
  // Many tasks a thread, so that a slow one does not keep all waiting.
  const std::int64_t wanted = 12 * pool_.threads(), step = round_up((count + wanted - 1) / wanted, kTogether);
  for_each(pool_, step > 0 ? (count + step - 1) / step : 0, step * run.weight->cols() * rows_, kParallelProducts,
           [&](std::int64_t task, int thread) {
             const std::int64_t end = std::min((task + 1) * step, count);
             for (std::int64_t first = task * step; first < end; first += kTogether) {
               multiply_some(ffn, run, first, end, hidden, stride, scratch_.of(thread));
             }
           });
}

/// Places from `begin` on of the list; those behind them, before `end`, come next.
void ChosenUp::multiply_some(const GatedFfn& ffn, const MatmulRun& run, std::int64_t begin, std::int64_t end,
                             float* hidden, std::int64_t stride, float* memory) {
  const CpuMatrix::Segment& up = *run.weight->chosen_up();
  const std::int64_t count = std::min(kTogether, end - begin), next = std::min(kPanelRows, end - begin - count);
  float* const space = memory + gathered_floats(up);
  float* const ups = space + kMatmulScratch;
  float* const gates = ups + rows_ * kTogether;
  const std::byte* rows[kTogether + kPanelRows];
  float bias[kTogether] = {};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t neuron = list_[static_cast<std::size_t>(begin + i)];
    rows[i] = up.row(neuron);
    if (run.bias != nullptr) bias[i] = run.bias[up.first_row + neuron];
    for (std::int64_t r = 0; r < rows_; ++r) gates[r * kTogether + i] = *this->gates(r, neuron);
  }
  for (std::int64_t i = count; i < count + next; ++i) rows[i] = up.row(list_[static_cast<std::size_t>(begin + i)]);
  const GatheredPanels panels =
      gather_rows(up, {rows, static_cast<std::size_t>(count)}, nullptr, reinterpret_cast<std::byte*>(memory),
                  {rows + count, static_cast<std::size_t>(next)});
  products_.multiply_segment(run.to(ups, kTogether, 0, 0), up, panels.weight, panels.codes ? &*panels.codes : nullptr,
                             0, (count + kPanelRows - 1) / kPanelRows,
                             {.out = ups, .bias = run.bias != nullptr ? bias : nullptr, .row = 0, .count = rows_},
                             space);
  for (std::int64_t r = 0; r < rows_; ++r) {
    float* const gate = gates + r * kTogether;
    kernels_.activate(ffn.activation, ffn.clamp_limit, gate, ups + r * kTogether, gate, count);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t neuron = list_[static_cast<std::size_t>(begin + i)];
      if (chosen_[static_cast<std::size_t>(r * neurons_ + neuron)] != 0) hidden[r * stride + neuron] = gate[i];
    }
  }
}

}  // namespace millrace
