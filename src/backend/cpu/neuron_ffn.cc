#include "backend/cpu/neuron_ffn.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/answer_rows.h"
#include "backend/cpu/parallel.h"
#include "core/check.h"
#include "core/float16.h"

namespace millrace {

namespace {

constexpr std::int64_t kTaskNeurons = 64;
// At most: sums of a few rows stay in the first-level cache.
constexpr std::int64_t kTaskOutputs = NeuronCodeSumTask::kMostOutputs;

const CpuNeurons& weights_of(const GatedFfn& ffn) {
  return static_cast<const CpuNeurons&>(*ffn.neurons);
}

}  // namespace

void NeuronFfn::begin(const ForwardBatch& batch) {
  mark_answer_rows(batch, answers_);
  positions_ = batch.positions;
}

void NeuronFfn::choose(const CpuNeurons& weights, const float* x, std::int64_t rows, float* space,
                       const Multiply& multiply) {
  MILLRACE_CHECK(rows == static_cast<std::int64_t>(answers_.size()), "{} rows of inputs, {} of the batch", rows,
                 answers_.size());
  const std::int64_t neurons = weights.neurons();
  mask_.assign(static_cast<std::size_t>(rows * neurons), 1);
  const NeuronChoice& choice = weights.choice();
  if (choice.method == NeuronMethod::exact || std::ranges::find(answers_, 1) == answers_.end()) return;
  const bool predicted = choice.method == NeuronMethod::predicted;
  if (predicted) {
    // Rows of prompts are predicted too, where there are some beside those of answers: a few of a hundred parts.
    rank_.resize(static_cast<std::size_t>(rows * weights.predictor_in()->rows()));
    multiply({weights.predictor_in(), nullptr}, x, rows, rank_.data());
    for (float& value : rank_) value = std::max(value, 0.0f);
    multiply({weights.predictor_out(), weights.predictor_bias().data()}, rank_.data(), rows, space);
  }
  // Pieces of a row, since many a step has one row.
  constexpr std::int64_t kPiece = 1024;
  const std::int64_t pieces = (neurons + kPiece - 1) / kPiece;
  for_each(pool_, rows * pieces, 8 * kPiece, kParallelElements, [&](std::int64_t task, int) {
    const std::int64_t row = task / pieces, first = task % pieces * kPiece;
    if (answers_[static_cast<std::size_t>(row)] == 0) return;
    std::uint8_t* const mask = mask_.data() + row * neurons;
    const std::int64_t position = positions_[static_cast<std::size_t>(row)];
    for (std::int64_t place = first; place < std::min(neurons, first + kPiece); ++place) {
      const auto p = static_cast<std::size_t>(place);
      const bool fires = predicted ? space[row * neurons + place] > 0.0f
                                   : imposed_fires(choice.layer, weights.order()[p], position, choice.density);
      mask[place] = fires || weights.always()[p] != 0 ? 1 : 0;
    }
  });
}

void NeuronFfn::count(const CpuNeurons& weights, std::int64_t row) {
  if (answers_[static_cast<std::size_t>(row)] == 0) return;
  const std::int64_t neurons = weights.neurons(), size = 2 * weights.inputs() + weights.outputs();
  const std::uint8_t* const chosen = mask(row, neurons);
  counts_.kept += static_cast<double>(std::count(chosen, chosen + neurons, 1) * size);
  counts_.all += static_cast<double>(neurons * size);
}

void NeuronFfn::run(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out,
                    const Multiply& multiply) {
  const CpuNeurons& weights = weights_of(ffn);
  choose(weights, x, rows, scratch, multiply);
  Rows choosing, others;
  for (std::int64_t row = 0; row < rows; ++row) {
    (answers_[static_cast<std::size_t>(row)] != 0 ? choosing : others).index.push_back(row);
  }
  if (!others.index.empty()) prompts_.run(ffn, others.index, choosing.index.empty(), x, scratch, out);
  if (!choosing.index.empty()) run_rows(ffn, choosing, x, scratch, out);
}

void NeuronFfn::run_rows(const GatedFfn& ffn, const Rows& rows, const float* x, float* scratch, float* out) {
  const CpuNeurons& weights = weights_of(ffn);
  const std::int64_t count = std::ssize(rows.index);
  take_inputs(weights, rows, x);
  list_neurons(weights, rows);
  const std::int64_t places = std::ssize(places_), most = weights.most_at_once();
  fires_.assign(places_.size(), 0);
  const bool codes = weights.form()->down == NeuronElement::int8;
  const auto sums = static_cast<std::size_t>(count * weights.outputs());
  sums_.assign(codes ? 0 : sums, 0.0f);
  code_sums_.assign(codes ? sums : 0, 0);
  if (!codes || places <= most) {
    // A part at a time from gate to down: sums go on where those of the part before end, whatever parts there are.
    for (std::int64_t first = 0; first < places; first += most) {
      const std::int64_t end = std::min(places, first + most);
      Part part = take_part(weights, first, end, scratch, end - first);
      compute_hidden(ffn, rows, part, fires_.data() + first);
      drop_zeros(weights, rows, part, fires_.data() + first);
      round_hidden(weights, count, part);
      add_part(weights, count, part);
    }
  } else {
    // Codes of hidden numbers have one scale for all of a row: it must be known before the first of them counts.
    for (std::int64_t first = 0; first < places; first += most) {
      const std::int64_t end = std::min(places, first + most);
      compute_hidden(ffn, rows, take_part(weights, first, end, scratch + first, places), fires_.data() + first);
    }
    Part all{.places = places_, .hidden = scratch, .stride = places};
    bundles_.resize(places_.size());
    drop_zeros(weights, rows, all, fires_.data());
    round_hidden(weights, count, all);
    places_ = all.places;
    for (std::int64_t first = 0; first < std::ssize(places_); first += most) {
      const std::int64_t end = std::min<std::int64_t>(std::ssize(places_), first + most);
      add_part(weights, count, take_part(weights, first, end, scratch + first, all.stride), first);
    }
  }
  write_outputs(ffn, rows, out);
}

NeuronFfn::Part NeuronFfn::take_part(const CpuNeurons& weights, std::int64_t first, std::int64_t end, float* hidden,
                                     std::int64_t stride) {
  Part part{.places = {places_.begin() + first, places_.begin() + end}, .hidden = hidden, .stride = stride};
  bundles_.resize(part.places.size());
  weights.locate(part.places, pool_, bundles_.data());
  return part;
}

void NeuronFfn::round_to_codes(const float* values, std::int64_t stride, std::int64_t count, std::int64_t rows,
                               CodeRows& target) {
  const std::int64_t padded = std::max(round_up(count, kNeuronBlock), kNeuronBlock), blocks = padded / kInputBlock;
  target.stride = padded;
  target.codes.resize(static_cast<std::size_t>(rows * padded));
  target.scales.resize(static_cast<std::size_t>(rows));
  target.sums.resize(static_cast<std::size_t>(rows * (2 * blocks + 1)));
  for_each(pool_, rows, 4 * padded, kParallelElements, [&](std::int64_t row, int) {
    std::int32_t* const sums = target.sums.data() + row * (2 * blocks + 1);
    float shift = 0.0f, tile_scale = 0.0f, tile_shift = 0.0f;
    kernels_.quantize({.x = values + row * stride,
                       .cols = count,
                       .padded_cols = padded,
                       .group = 0,
                       .codes = target.codes.data() + row * padded,
                       .sums = sums,
                       .totals = sums + blocks,
                       .scales = target.scales.data() + row,
                       .shifts = &shift,
                       .tile_scales = &tile_scale,
                       .tile_shifts = &tile_shift});
  });
}

/// Copies the rows as the kernels want them: padded, rounded.
void NeuronFfn::take_inputs(const CpuNeurons& weights, const Rows& rows, const float* x) {
  const CpuNeurons::Form& form = *weights.form();
  const auto count = static_cast<std::int64_t>(rows.index.size());
  x_.resize(static_cast<std::size_t>(count * form.cols));
  for_each(pool_, count, 4 * form.cols, kParallelElements, [&](std::int64_t i, int) {
    float* const target = x_.data() + i * form.cols;
    std::copy_n(x + rows.index[static_cast<std::size_t>(i)] * weights.inputs(), weights.inputs(), target);
    std::fill(target + weights.inputs(), target + form.cols, 0.0f);
    for (std::int64_t k = 0; form.round_inputs && k < weights.inputs(); ++k) target[k] = round_to_bf16(target[k]);
  });
  if (form.gate_up == NeuronElement::int8) {
    round_to_codes(x_.data(), form.cols, weights.inputs(), count, x_codes_);
  }
}

void NeuronFfn::list_neurons(const CpuNeurons& weights, const Rows& rows) {
  const std::int64_t neurons = weights.neurons();
  some_.assign(static_cast<std::size_t>(neurons), 0);
  for (const std::int64_t row : rows.index) {
    const std::uint8_t* const chosen = mask(row, neurons);
    for (std::int64_t place = 0; place < neurons; ++place) some_[static_cast<std::size_t>(place)] |= chosen[place];
  }
  // Without branches, which nothing could predict.
  places_.resize(static_cast<std::size_t>(neurons + 1));
  std::size_t count = 0;
  for (std::int64_t place = 0; place < neurons; ++place) {
    places_[count] = static_cast<std::int32_t>(place);
    count += some_[static_cast<std::size_t>(place)];
  }
  places_.resize(count);
  const bool exact = weights.choice().method == NeuronMethod::exact;
  for (const std::int64_t row : rows.index) {
    const std::uint8_t* const chosen = mask(row, neurons);
    const std::int64_t gates = exact ? neurons : std::count(chosen, chosen + neurons, 1);
    counts_.kept += static_cast<double>(gates * weights.inputs());
    counts_.all += static_cast<double>(neurons * (2 * weights.inputs() + weights.outputs()));
  }
}

/// hidden: act(gate) * up. fires [places]: 1 where some row's gate gives more than zero.
void NeuronFfn::compute_hidden(const GatedFfn& ffn, const Rows& rows, const Part& part, std::uint8_t* fires) {
  const CpuNeurons& weights = weights_of(ffn);
  const CpuNeurons::Form& form = *weights.form();
  const std::int64_t neurons = weights.neurons(), count = std::ssize(rows.index), places = std::ssize(part.places);
  const bool codes = form.gate_up == NeuronElement::int8, zeros = gives_zeros(ffn.activation);
  const auto place_of = [&](std::int64_t i) {
    return static_cast<std::size_t>(part.places[static_cast<std::size_t>(i)]);
  };
  const auto computes = [&](std::int64_t r, std::size_t place) {
    return mask(rows.index[static_cast<std::size_t>(r)], neurons)[place] != 0;
  };
  const auto scaled = [&](float sum, std::int64_t row, const std::vector<float>& scales, std::size_t place, bool up) {
    const auto neuron = static_cast<std::size_t>(weights.order()[place] + (up ? neurons : 0));
    if (codes) sum = sum * scales[place] * x_codes_.scales[static_cast<std::size_t>(row)];
    return ffn.gate_up.bias != nullptr ? sum + ffn.gate_up.bias[neuron] : sum;
  };
  const auto task = [&](std::int64_t index, int thread) {
    const std::int64_t first = index * kTaskNeurons, size = std::min(kTaskNeurons, places - first);
    Gates& own = gates_[static_cast<std::size_t>(thread)];
    own.gate.resize(static_cast<std::size_t>(count * kTaskNeurons));
    own.up.assign(own.gate.size(), 0.0f);
    own.sums.resize(codes ? own.gate.size() : 0);
    own.weights.resize(static_cast<std::size_t>(2 * kTaskNeurons));
    const std::byte** const of_neurons = own.weights.data();
    const auto multiply = [&](const std::byte* const* of, std::int64_t number, float* target) {
      if (!codes) {
        kernels_.multiply_neurons({.element = form.gate_up,
                                   .weights = of,
                                   .count = number,
                                   .cols = form.cols,
                                   .x = x_.data(),
                                   .x_stride = form.cols,
                                   .rows = count,
                                   .out = target,
                                   .out_stride = kTaskNeurons});
        return;
      }
      kernels_.products.multiply_neuron_codes({.weights = of,
                                               .count = number,
                                               .cols = form.cols,
                                               .x = x_codes_.codes.data(),
                                               .x_stride = x_codes_.stride,
                                               .rows = count,
                                               .out_stride = kTaskNeurons,
                                               .out = own.sums.data()});
      for (std::int64_t i = 0; i < count * kTaskNeurons; ++i) {
        target[i] = static_cast<float>(own.sums[static_cast<std::size_t>(i)]);
      }
    };
    multiply(bundles_.data() + first, size, own.gate.data());
    // Gates that give zero in every row need no up.
    std::int64_t kept = 0;
    std::int64_t of_kept[kTaskNeurons];
    for (std::int64_t i = 0; i < size; ++i) {
      const std::size_t place = place_of(first + i);
      bool some = false;
      for (std::int64_t r = 0; r < count; ++r) {
        float& gate = own.gate[static_cast<std::size_t>(r * kTaskNeurons + i)];
        gate = scaled(gate, r, weights.gate_scales(), place, false);
        some = some || (computes(r, place) && !(zeros && gate <= 0.0f));
      }
      if (!some) continue;
      fires[first + i] = 1;
      of_kept[kept] = i;
      of_neurons[kept++] = bundles_[static_cast<std::size_t>(first + i)] + form.up;
    }
    float* const ups = own.up.data();
    multiply(of_neurons, kept, ups);
    for (std::int64_t r = 0; r < count; ++r) {
      float* const up = ups + r * kTaskNeurons;
      // From the last on, since none lies before its place among the kept.
      for (std::int64_t k = kept; k-- > 0;) {
        up[of_kept[k]] = scaled(up[k], r, weights.up_scales(), place_of(first + of_kept[k]), true);
      }
      float* const target = part.hidden + r * part.stride + first;
      kernels_.activate(ffn.activation, ffn.clamp_limit, own.gate.data() + r * kTaskNeurons, up, target, size);
      for (std::int64_t i = 0; i < size; ++i) {
        if (fires[first + i] == 0 || !computes(r, place_of(first + i))) target[i] = 0.0f;
      }
    }
  };
  for_each(pool_, (places + kTaskNeurons - 1) / kTaskNeurons, kTaskNeurons * 2 * form.cols * count, kParallelProducts,
           task);
}

/// Neurons that are zero in every row take no part in the sums.
void NeuronFfn::drop_zeros(const CpuNeurons& weights, const Rows& rows, Part& part, const std::uint8_t* fires) {
  const std::int64_t count = std::ssize(rows.index), places = std::ssize(part.places);
  for (std::int64_t r = 0; r < count; ++r) {
    const float* const row = part.hidden + r * part.stride;
    const std::int64_t fired = places - std::count(row, row + places, 0.0f);
    counts_.kept += static_cast<double>(fired * (weights.inputs() + weights.outputs()));
  }
  std::vector<std::int32_t> from;
  for (std::int64_t i = 0; i < places; ++i) {
    if (fires[i] != 0) from.push_back(static_cast<std::int32_t>(i));
  }
  const std::int64_t kept = std::ssize(from);
  if (kept == places) return;
  for (std::int64_t r = 0; r < count; ++r) {  // ascending: a row moves to where rows before it were
    for (std::int64_t k = 0; k < kept; ++k) {
      part.hidden[r * kept + k] = part.hidden[r * part.stride + from[static_cast<std::size_t>(k)]];
    }
  }
  for (std::size_t k = 0; k < from.size(); ++k) {
    const auto old = static_cast<std::size_t>(from[k]);
    part.places[k] = part.places[old];
    bundles_[k] = bundles_[old];
  }
  part.places.resize(from.size());
  bundles_.resize(from.size());
  part.stride = kept;
}

void NeuronFfn::round_hidden(const CpuNeurons& weights, std::int64_t rows, const Part& part) {
  const CpuNeurons::Form& form = *weights.form();
  const std::int64_t count = std::ssize(part.places);
  if (form.down == NeuronElement::int8) return round_to_codes(part.hidden, part.stride, count, rows, hidden_codes_);
  if (!form.round_hidden) return;
  for_each(pool_, rows, 4 * count, kParallelElements, [&](std::int64_t row, int) {
    float* const values = part.hidden + row * part.stride;
    for (std::int64_t k = 0; k < count; ++k) values[k] = round_to_bf16(values[k]);
  });
}

void NeuronFfn::add_part(const CpuNeurons& weights, std::int64_t rows, const Part& part, std::int64_t from) {
  const CpuNeurons::Form& form = *weights.form();
  const std::int64_t outputs = weights.outputs(), count = std::ssize(part.places);
  for (const std::byte*& bundle : bundles_) bundle += form.down_at;
  // As many tasks as threads, and whole blocks: where the borders lie has no influence on results.
  const std::int64_t parts = std::max<std::int64_t>(pool_.threads(), (outputs + kTaskOutputs - 1) / kTaskOutputs);
  const std::int64_t step = round_up((outputs + parts - 1) / parts, kNeuronBlock);
  for_each(pool_, (outputs + step - 1) / step, step * count * rows, kParallelProducts, [&](std::int64_t task, int) {
    const std::int64_t first = task * step, some = std::min(step, outputs - first);
    if (form.down == NeuronElement::int8) {
      kernels_.products.add_neuron_codes({.weights = bundles_.data(),
                                          .count = count,
                                          .first = first,
                                          .outputs = some,
                                          .h = hidden_codes_.codes.data() + from,
                                          .h_stride = hidden_codes_.stride,
                                          .rows = rows,
                                          .out_stride = outputs,
                                          .out = code_sums_.data() + first});
      return;
    }
    kernels_.add_neurons({.element = form.down,
                          .weights = bundles_.data(),
                          .count = count,
                          .first = first,
                          .outputs = some,
                          .h = part.hidden,
                          .h_stride = part.stride,
                          .rows = rows,
                          .out = sums_.data() + first,
                          .out_stride = outputs});
  });
}

void NeuronFfn::write_outputs(const GatedFfn& ffn, const Rows& rows, float* out) {
  const CpuNeurons& weights = weights_of(ffn);
  const std::int64_t outputs = weights.outputs();
  const bool codes = weights.form()->down == NeuronElement::int8;
  for_each(pool_, std::ssize(rows.index), outputs, kParallelElements, [&](std::int64_t r, int) {
    float* const target = out + rows.index[static_cast<std::size_t>(r)] * outputs;
    for (std::int64_t o = 0; o < outputs; ++o) {
      const auto i = static_cast<std::size_t>(r * outputs + o);
      const float sum = codes ? static_cast<float>(code_sums_[i]) * weights.down_scales()[static_cast<std::size_t>(o)] *
                                    hidden_codes_.scales[static_cast<std::size_t>(r)]
                              : sums_[i];
      target[o] = ffn.down.bias != nullptr ? sum + ffn.down.bias[o] : sum;
    }
  });
}

}  // namespace millrace
