#include "backend/cpu/neuron_prompts.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/neuron_panels.h"
#include "backend/cpu/parallel.h"
#include "core/check.h"

namespace millrace {

namespace {

constexpr std::int64_t kGatheredBytes = std::int64_t{1} << 20;  // that the second-level cache holds beside the rows

/// Panels of gate, and as many of up, that a task takes.
std::int64_t row_panels(const CpuMatrix::Segment& shape) {
  std::int64_t panels = 4;
  while (panels > 2 && 2 * panels * gathered_panel_bytes(shape) > kGatheredBytes) panels /= 2;
  return panels;
}

/// Panels of down: where they may, pieces of a neuron that memory gives at once.
std::int64_t column_panels(const CpuMatrix::Segment& shape, std::int64_t threads) {
  constexpr std::int64_t kPiece = 256, kLine = 64;  // bytes
  const std::int64_t of_input = shape.integers ? kPanelRows : shape.stored.format == QuantFormat::f32 ? 64 : 32;
  const std::int64_t all = shape.panels();
  std::int64_t panels = kPiece / of_input;
  while (panels > 1 && panels * of_input > kLine &&
         (panels * gathered_panel_bytes(shape) > kGatheredBytes || panels * 2 * threads > all)) {
    panels /= 2;
  }
  return panels;
}

std::int64_t floats_of(std::int64_t bytes) {
  return round_up(bytes, 64) / static_cast<std::int64_t>(sizeof(float));
}

/// Rows that meet panels at a time: whole tiles.
std::int64_t rows_together(std::int64_t rows) {
  const std::int64_t blocks = (rows + kMatmulRows - 1) / kMatmulRows;
  return blocks <= 1 ? rows : round_up((rows + blocks - 1) / blocks, 16);
}

const CpuNeurons& weights_of(const GatedFfn& ffn) {
  return static_cast<const CpuNeurons&>(*ffn.neurons);
}

}  // namespace

void NeuronPrompts::run(const GatedFfn& ffn, std::span<const std::int64_t> rows, bool all, const float* x,
                        float* scratch, float* out) {
  const std::int64_t count = std::ssize(rows);
  if (all) return run_rows(ffn, count, x, scratch, out);
  const std::int64_t inputs = ffn.neurons->inputs(), outputs = ffn.neurons->outputs();
  x_.resize(static_cast<std::size_t>(count * inputs));
  out_.resize(static_cast<std::size_t>(count * outputs));
  for (std::int64_t r = 0; r < count; ++r) {
    std::copy_n(x + rows[static_cast<std::size_t>(r)] * inputs, inputs, x_.data() + r * inputs);
  }
  run_rows(ffn, count, x_.data(), scratch, out_.data());
  for (std::int64_t r = 0; r < count; ++r) {
    std::copy_n(out_.data() + r * outputs, outputs, out + rows[static_cast<std::size_t>(r)] * outputs);
  }
}

void NeuronPrompts::run_rows(const GatedFfn& ffn, std::int64_t rows, const float* x, float* scratch, float* out) {
  const CpuNeurons& weights = weights_of(ffn);
  const std::int64_t neurons = weights.neurons(), most = weights.most_at_once();
  const bool codes = weights.form()->down == NeuronElement::int8, whole = most >= neurons;
  // Parts begin where the kernels begin a block of inputs. Sums of codes of so few neurons are exact as floats.
  constexpr std::int64_t kExactCodes = 1024;
  const std::int64_t blocks = most / kNeuronBlock * kNeuronBlock;
  const std::int64_t step = whole ? neurons : codes ? std::min(blocks, kExactCodes) : blocks;
  // Rows a power of two apart would lie in few sets of the caches.
  const std::int64_t stride = std::min(neurons + kPanelRows, 2 * neurons);
  const MatmulRun run =
      inputs_.prepare({.weight = &weights.gate_up_shape(), .x = x, .x_stride = weights.inputs(), .rows = rows});
  if (codes && !whole) {
    // Codes of hidden numbers have one scale for all of a row: it must be known before the first of them counts.
    for (std::int64_t first = 0; first < neurons; first += step) {
      const std::int64_t end = std::min(neurons, first + step);
      locate(weights, first, end);
      compute_hidden(ffn, run, {first, end, scratch + first, stride});
    }
    return add_codes(ffn, rows, scratch, stride, step, out);
  }
  for (std::int64_t first = 0; first < neurons; first += step) {
    const Part part{first, std::min(neurons, first + step), scratch, stride};
    locate(weights, part.first, part.end);
    // The inputs stay as they are only until others are prepared.
    compute_hidden(
        ffn,
        first == 0
            ? run
            : inputs_.prepare({.weight = &weights.gate_up_shape(), .x = x, .x_stride = weights.inputs(), .rows = rows}),
        part);
    add_outputs(ffn, rows, part, out);
  }
}

void NeuronPrompts::locate(const CpuNeurons& weights, std::int64_t first, std::int64_t end) {
  const std::vector<std::int32_t>& places = weights.places();
  places_.assign(places.begin() + first, places.begin() + end);
  bundles_.resize(places_.size());
  weights.locate(places_, pool_, bundles_.data());
}

void NeuronPrompts::compute_hidden(const GatedFfn& ffn, const MatmulRun& run, const Part& part) {
  const CpuNeurons& weights = weights_of(ffn);
  const CpuMatrix::Segment& shape = weights.gate_up_shape().segments().front();
  const std::int64_t group = row_panels(shape), width = group * kPanelRows, neurons = part.end - part.first;
  const std::int64_t bytes = group * gathered_panel_bytes(shape);
  const std::int64_t gathered = floats_of(2 * bytes + kGatheredPadding), together = rows_together(run.rows);
  scratch_.reserve(gathered + kMatmulScratch + 2 * together * width);
  const std::int64_t up = weights.form()->up;
  const float* const bias = ffn.gate_up.bias;
  const auto task = [&](std::int64_t index, int thread) {
    const std::int64_t first = index * width, count = std::min(width, neurons - first);
    float* const memory = scratch_.of(thread);
    float* const space = memory + gathered;
    float* const gates = space + kMatmulScratch;
    float* const ups = gates + together * width;
    std::vector<const std::byte*> rows(static_cast<std::size_t>(count));
    std::vector<float> scales(static_cast<std::size_t>(2 * width), 1.0f);
    for (std::int64_t i = 0; i < count && shape.integers; ++i) {
      const auto place = static_cast<std::size_t>(places_[static_cast<std::size_t>(first + i)]);
      scales[static_cast<std::size_t>(i)] = weights.gate_scales()[place];
      scales[static_cast<std::size_t>(width + i)] = weights.up_scales()[place];
    }
    auto* const target = reinterpret_cast<std::byte*>(memory);
    std::copy_n(bundles_.begin() + first, count, rows.begin());
    const GatheredPanels gate = gather_rows(shape, rows, scales.data(), target);
    for (const std::byte*& row : rows) row += up;
    const GatheredPanels of_up = gather_rows(shape, rows, scales.data() + width, target + bytes);
    const std::int64_t neuron = part.first + first, panels = (count + kPanelRows - 1) / kPanelRows;
    for (std::int64_t row = 0; row < run.rows; row += together) {
      const std::int64_t some = std::min(together, run.rows - row);
      const auto multiply = [&](const GatheredPanels& by, float* to, std::int64_t output) {
        products_.multiply_segment(
            run.to(to, count, 0, 0), shape, by.weight, by.codes ? &*by.codes : nullptr, 0, panels,
            {.out = to, .bias = bias != nullptr ? bias + output : nullptr, .row = row, .count = some}, space);
      };
      multiply(gate, gates, neuron);
      multiply(of_up, ups, weights.neurons() + neuron);
      for (std::int64_t r = 0; r < some; ++r) {
        kernels_.activate(ffn.activation, ffn.clamp_limit, gates + r * count, ups + r * count,
                          part.hidden + (row + r) * part.stride + first, count);
      }
    }
  };
  for_each(pool_, (neurons + width - 1) / width, width * 2 * weights.inputs() * run.rows, kParallelProducts, task);
}

void NeuronPrompts::multiply_down(const CpuNeurons& weights, const MatmulRun& run, const float* scales, bool resume) {
  const CpuMatrix::Segment& shape = run.weight->segments().front();
  const std::int64_t group = column_panels(shape, pool_.threads()), width = group * kPanelRows;
  const std::int64_t outputs = weights.outputs(), at = weights.form()->down_at;
  const std::int64_t of_output = shape.integers ? 1 : shape.stored.format == QuantFormat::f32 ? 4 : 2;
  const std::int64_t gathered = floats_of(group * gathered_panel_bytes(shape) + kGatheredPadding);
  const std::int64_t together = rows_together(run.rows);
  scratch_.reserve(gathered + kMatmulScratch);
  const auto task = [&](std::int64_t index, int thread) {
    const std::int64_t first = index * width, count = std::min(width, outputs - first);
    float* const memory = scratch_.of(thread);
    const GatheredPanels panels =
        gather_columns(shape, bundles_, at + first * of_output, count, shape.integers ? scales + first : nullptr,
                       reinterpret_cast<std::byte*>(memory));
    for (std::int64_t row = 0; row < run.rows; row += together) {
      products_.multiply_segment(run, shape, panels.weight, panels.codes ? &*panels.codes : nullptr, 0,
                                 (count + kPanelRows - 1) / kPanelRows,
                                 {.out = run.out + row * run.out_stride + first,
                                  .bias = run.bias != nullptr ? run.bias + first : nullptr,
                                  .row = row,
                                  .count = std::min(together, run.rows - row),
                                  .resume = resume},
                                 memory + gathered);
    }
  };
  for_each(pool_, (outputs + width - 1) / width, width * run.weight->cols() * run.rows, kParallelProducts, task);
}

void NeuronPrompts::add_outputs(const GatedFfn& ffn, std::int64_t rows, const Part& part, float* out) {
  const CpuNeurons& weights = weights_of(ffn);
  const auto shape = weights.down_shape(part.end - part.first);
  const bool last = part.end == weights.neurons();
  const MatmulRun run = inputs_.prepare({.weight = shape.get(),
                                         .bias = last ? ffn.down.bias : nullptr,
                                         .x = part.hidden,
                                         .x_stride = part.stride,
                                         .rows = rows,
                                         .out = out,
                                         .out_stride = weights.outputs()});
  multiply_down(weights, run, weights.down_scales().data(), part.first > 0);
}

/// Of codes that are not all in memory: exact sums of parts, scaled as the dense kernels scale those of all.
void NeuronPrompts::add_codes(const GatedFfn& ffn, std::int64_t rows, const float* hidden, std::int64_t stride,
                              std::int64_t step, float* out) {
  const CpuNeurons& weights = weights_of(ffn);
  const std::int64_t neurons = weights.neurons(), outputs = weights.outputs();
  const auto shape = weights.down_shape(neurons);
  const MatmulRun all = inputs_.prepare({.weight = shape.get(), .x = hidden, .x_stride = stride, .rows = rows});
  const IntegerInputs codes = all.integers;
  sums_.assign(static_cast<std::size_t>(rows * outputs), 0);
  ones_.assign(static_cast<std::size_t>(std::max(rows + kInputRowPadding, round_up(outputs, kPanelRows))), 1.0f);
  for (std::int64_t first = 0; first < neurons; first += step) {
    const std::int64_t end = std::min(neurons, first + step);
    locate(weights, first, end);
    const auto of_part = weights.down_shape(end - first);
    MatmulRun run = all;
    run.weight = of_part.get();
    run.out = out;
    run.out_stride = outputs;
    run.integers.codes += first;
    run.integers.sums += first / kInputBlock;
    run.integers.totals += first / kInputBlock;
    run.integers.scales = ones_.data();
    multiply_down(weights, run, ones_.data(), false);
    for (std::size_t i = 0; i < sums_.size(); ++i) sums_[i] += static_cast<std::int32_t>(out[i]);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      const auto i = static_cast<std::size_t>(r * outputs + o);
      const float sum =
          static_cast<float>(sums_[i]) * weights.down_scales()[static_cast<std::size_t>(o)] * codes.scales[r];
      out[i] = ffn.down.bias != nullptr ? sum + ffn.down.bias[o] : sum;
    }
  }
}

}  // namespace millrace
