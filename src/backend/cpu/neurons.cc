#include "backend/cpu/neurons.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "core/float16.h"

namespace millrace {

namespace {

std::int64_t element_bytes(NeuronElement element) {
  switch (element) {
    case NeuronElement::f32:
      return 4;
    case NeuronElement::int8:
      return 1;
    case NeuronElement::f16:
    case NeuronElement::bf16:
      break;
  }
  return 2;
}

/// What a matrix can be held as; nothing where its scales are shared by several neurons.
std::optional<NeuronElement> element_of(const MatrixSource& source, const LinearFormat& format) {
  if (format.codes) {
    const bool whole = format.codes->kind == CodeKind::int8 && format.codes->group == 0 && !format.codes->float_inputs;
    return whole ? std::optional(NeuronElement::int8) : std::nullopt;
  }
  if (source.pieces.empty()) return std::nullopt;
  const QuantFormat first = source.pieces.front().format;
  if (!std::ranges::all_of(source.pieces, [&](const MatrixPiece& piece) { return piece.format == first; }))
    return std::nullopt;
  if (!is_plain(first)) return std::nullopt;
  if (format.input == DType::bf16) return NeuronElement::bf16;
  if (first == QuantFormat::f32) return NeuronElement::f32;
  if (first == QuantFormat::f16) return NeuronElement::f16;
  return first == QuantFormat::bf16 ? std::optional(NeuronElement::bf16) : std::nullopt;
}

std::optional<CpuNeurons::Form> form_of(const NeuronSource& source) {
  const auto gate_up = element_of(source.gate_up, source.gate_up_format),
             down = element_of(source.down, source.down_format);
  if (!gate_up || !down) return std::nullopt;
  CpuNeurons::Form form{.gate_up = *gate_up, .down = *down};
  form.round_inputs = source.gate_up_format.input == DType::bf16 && *gate_up != NeuronElement::int8;
  form.round_hidden = source.down_format.input == DType::bf16 && *down != NeuronElement::int8;
  form.cols = round_up(source.gate_up.cols(), kNeuronBlock);
  form.outputs = round_up(source.down.rows(), kNeuronBlock);
  form.up = form.cols * element_bytes(*gate_up);
  form.down_at = 2 * form.up;
  form.bytes = form.down_at + form.outputs * element_bytes(*down);
  if (source.choice.resident < source.down.cols()) form.bytes = round_up(form.bytes, NeuronStore::kAlign);
  return form;
}

/// Elements as they are stored; of codes there is nothing to convert.
void store_floats(NeuronElement element, const float* values, std::int64_t count, std::byte* target) {
  if (element == NeuronElement::f32) {
    std::memcpy(target, values, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  for (std::int64_t k = 0; k < count; ++k) {
    const std::uint16_t bits = element == NeuronElement::f16 ? float_to_f16(values[k]) : float_to_bf16(values[k]);
    std::memcpy(target + 2 * k, &bits, sizeof bits);
  }
}

/// An output of a matrix, converted to what it is held as.
struct ConvertedRow {
  std::vector<float> values;
  std::vector<std::int8_t> codes;

  explicit ConvertedRow(std::int64_t cols) : values(static_cast<std::size_t>(cols)), codes(values.size()) {}

  /// The bytes, and the scale of codes in `scale`. Error: a weight that is not finite cannot be rounded.
  Status read(const MatrixSource& source, std::int64_t row, NeuronElement element, std::byte* target, float* scale) {
    read_row(source, row, values.data());
    const auto cols = static_cast<std::int64_t>(values.size());
    if (element != NeuronElement::int8) {
      store_floats(element, values.data(), cols, target);
      return Ok{};
    }
    if (!std::ranges::all_of(values, [](float value) { return value - value == 0.0f; }))
      return fail("weight of output {} is not finite: it cannot be rounded to int8", row);
    std::uint8_t zero = 0;
    float unit = 1.0f;
    quantize_row({}, values.data(), cols, {codes.data(), scale, &zero, &unit});
    std::memcpy(target, codes.data(), codes.size());
    return Ok{};
  }
};

/// Runs tasks that can fail; the first error that came.
template <typename Function>
Status run_all(ThreadPool& pool, std::int64_t tasks, Function&& fn) {
  std::mutex mutex;
  std::optional<Error> error;
  pool.run(tasks, [&](std::int64_t task, int) {
    Status status = fn(task);
    if (status.ok()) return;
    const std::lock_guard lock(mutex);
    if (!error) error = std::move(status).error();
  });
  if (error) return *std::move(error);
  return Ok{};
}

/// A matrix of the same numbers as other layers have it, without weights.
std::unique_ptr<CpuMatrix> shape_of(NeuronElement element, bool round, std::int64_t rows, std::int64_t cols,
                                    CpuLayouts layouts) {
  MatrixPiece piece{.format = QuantFormat::f32, .rows = rows, .cols = cols};
  if (element == NeuronElement::f16) piece.format = QuantFormat::f16;
  if (element == NeuronElement::bf16) piece.format = QuantFormat::bf16;
  LinearFormat format{.input = round ? DType::bf16 : DType::f32};
  if (element == NeuronElement::int8) format.codes = CodeFormat{};
  return CpuMatrix::laid_out({.pieces = {piece}}, format, layouts);
}

MatrixSource bf16_source(const std::vector<std::uint16_t>& values, std::int64_t rows, std::int64_t cols,
                         std::vector<std::int32_t> order) {
  return {.pieces = {{.format = QuantFormat::bf16,
                      .data = reinterpret_cast<const std::byte*>(values.data()),
                      .rows = rows,
                      .cols = cols,
                      .row_order = std::move(order)}}};
}

}  // namespace

std::size_t CpuNeurons::packed_bytes(const NeuronSource& source, CpuLayouts layouts) {
  std::size_t bytes = 0;
  const std::int64_t neurons = source.down.cols();
  if (const NeuronProfile* profile = source.choice.profile.get()) {
    bytes += CpuMatrix::packed_bytes(bf16_source(profile->in, profile->rank, profile->inputs, {}), {}, layouts) +
             CpuMatrix::packed_bytes(bf16_source(profile->out, neurons, profile->rank, {}), {}, layouts) +
             static_cast<std::size_t>(neurons) * sizeof(float);
  }
  const std::optional<Form> form = form_of(source);
  if (!form) {
    return bytes + CpuMatrix::packed_bytes(source.gate_up, source.gate_up_format, layouts) +
           CpuMatrix::packed_bytes(source.down, source.down_format, layouts);
  }
  if (form->gate_up == NeuronElement::int8) bytes += 2 * static_cast<std::size_t>(neurons) * sizeof(float);
  if (form->down == NeuronElement::int8) {
    bytes += static_cast<std::size_t>(round_up(source.down.rows(), kPanelRows)) * sizeof(float);
  }
  return bytes + static_cast<std::size_t>(std::min(neurons, source.choice.resident) * form->bytes);
}

Result<std::unique_ptr<CpuNeurons>> CpuNeurons::pack(const NeuronSource& source, CpuLayouts layouts, ThreadPool& pool,
                                                     DeviceArena& arena, NeuronStore* store) {
  std::unique_ptr<CpuNeurons> packed(new CpuNeurons());
  packed->choice_ = source.choice;
  packed->neurons_ = source.down.cols();
  packed->inputs_ = source.gate_up.cols();
  packed->outputs_ = source.down.rows();
  packed->bytes_ = packed_bytes(source, layouts);
  packed->form_ = form_of(source);
  MILLRACE_CHECK(source.gate_up.rows() == 2 * packed->neurons_, "{} outputs of gate and up for {} neurons",
                 source.gate_up.rows(), packed->neurons_);
  if (packed->form_) {
    packed->order_ = neuron_order(source.choice, packed->neurons_);
    packed->places_.resize(packed->order_.size());
    for (std::size_t place = 0; place < packed->order_.size(); ++place) {
      packed->places_[static_cast<std::size_t>(packed->order_[place])] = static_cast<std::int32_t>(place);
    }
    packed->layouts_ = layouts;
    packed->gate_up_ =
        shape_of(packed->form_->gate_up, packed->form_->round_inputs, 2 * packed->neurons_, packed->inputs_, layouts);
    packed->resident_ = std::min(packed->neurons_, source.choice.resident);
    if (packed->resident_ < packed->neurons_) packed->store_ = store;
    MILLRACE_CHECK(packed->resident_ == packed->neurons_ || store != nullptr, "neurons on disk, without a store");
    MILLRACE_CHECK_OK(packed->pack_bundles(source, pool, arena));
  } else {
    packed->order_.resize(static_cast<std::size_t>(packed->neurons_));
    std::iota(packed->order_.begin(), packed->order_.end(), 0);
    MILLRACE_TRY(packed->gate_up_, CpuMatrix::pack(source.gate_up, source.gate_up_format, layouts, pool, arena));
    MILLRACE_TRY(packed->down_, CpuMatrix::pack(source.down, source.down_format, layouts, pool, arena));
  }
  packed->always_.assign(static_cast<std::size_t>(packed->neurons_), 0);
  if (const NeuronProfile* profile = source.choice.profile.get()) {
    for (std::size_t place = 0; place < packed->order_.size(); ++place) {
      const float frequency = profile->frequency[static_cast<std::size_t>(packed->order_[place])];
      packed->always_[place] = double{frequency} >= profile->hot ? 1 : 0;
    }
    MILLRACE_CHECK_OK(packed->pack_predictor(layouts, pool, arena));
  }
  packed->hot_ = std::ranges::count(packed->always_, 1);
  return packed;
}

Status CpuNeurons::pack_predictor(CpuLayouts layouts, ThreadPool& pool, DeviceArena& arena) {
  const NeuronProfile& profile = *choice_.profile;
  MILLRACE_CHECK(profile.neurons() == neurons_ && profile.inputs == inputs_, "a predictor of another shape");
  const MatrixSource in = bf16_source(profile.in, profile.rank, inputs_, {}),
                     out = bf16_source(profile.out, neurons_, profile.rank, order_);
  MILLRACE_TRY(predictor_in_, CpuMatrix::pack(in, {}, layouts, pool, arena));
  MILLRACE_TRY(predictor_out_, CpuMatrix::pack(out, {}, layouts, pool, arena));
  for (const std::int32_t neuron : order_) predictor_bias_.push_back(profile.bias[static_cast<std::size_t>(neuron)]);
  return Ok{};
}

std::unique_ptr<CpuMatrix> CpuNeurons::down_shape(std::int64_t cols) const {
  return shape_of(form_->down, form_->round_hidden, outputs_, cols, layouts_);
}

std::byte* CpuNeurons::bundle(std::int64_t place) const {
  return static_cast<std::byte*>(memory_.get()) + place * form_->bytes;
}

void CpuNeurons::locate(std::span<const std::int32_t> places, ThreadPool& pool, const std::byte** bundles) const {
  offsets_.clear();
  wanted_.clear();
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (places[i] < resident_) {
      bundles[i] = bundle(places[i]);
    } else {
      offsets_.push_back(stored_at_ + (places[i] - resident_) * form_->bytes);
      wanted_.push_back(i);
    }
  }
  if (offsets_.empty()) return;
  fetched_.resize(offsets_.size());
  store_->fetch(offsets_, form_->bytes, pool, fetched_.data());
  for (std::size_t k = 0; k < wanted_.size(); ++k) bundles[wanted_[k]] = fetched_[k];
}

Status CpuNeurons::pack_bundles(const NeuronSource& source, ThreadPool& pool, DeviceArena& arena) {
  const auto all = static_cast<std::size_t>(neurons_ * form_->bytes),
             resident = static_cast<std::size_t>(resident_ * form_->bytes);
  if (store_ == nullptr) {
    MILLRACE_TRY(memory_, arena.allocate(all, "neurons"));
    MILLRACE_CHECK_OK(pack_rows(source, pool));
    return pack_columns(source, pool);
  }
  // Aligned as the disk wants it. The part that stays moves, the rest is written.
  MILLRACE_TRY(const std::shared_ptr<void> memory, allocate_device_memory(all + NeuronStore::kAlign, "neurons"));
  auto* const start = static_cast<std::byte*>(memory.get());
  const auto shift = static_cast<std::size_t>(NeuronStore::kAlign) -
                     reinterpret_cast<std::uintptr_t>(start) % static_cast<std::size_t>(NeuronStore::kAlign);
  memory_ = std::shared_ptr<void>(memory, start + shift);
  MILLRACE_CHECK_OK(pack_rows(source, pool));
  MILLRACE_CHECK_OK(pack_columns(source, pool));
  MILLRACE_TRY(stored_at_, store_->append(bundle(resident_), neurons_ - resident_, form_->bytes));
  MILLRACE_TRY(std::shared_ptr<void> kept, arena.allocate(resident, "neurons"));
  if (resident > 0) std::memcpy(kept.get(), memory_.get(), resident);
  memory_ = std::move(kept);
  return Ok{};
}

Status CpuNeurons::pack_rows(const NeuronSource& source, ThreadPool& pool) {
  constexpr std::int64_t kTogether = 16;
  const bool codes = form_->gate_up == NeuronElement::int8;
  const auto count = static_cast<std::size_t>(neurons_);
  std::vector<float> gate_scales(count), up_scales(count);
  const Status status = run_all(pool, (neurons_ + kTogether - 1) / kTogether, [&](std::int64_t task) -> Status {
    ConvertedRow row(inputs_);
    for (std::int64_t place = task * kTogether; place < std::min(neurons_, (task + 1) * kTogether); ++place) {
      const auto p = static_cast<std::size_t>(place);
      MILLRACE_CHECK_OK(row.read(source.gate_up, order_[p], form_->gate_up, bundle(place), &gate_scales[p]));
      MILLRACE_CHECK_OK(
          row.read(source.gate_up, neurons_ + order_[p], form_->gate_up, bundle(place) + form_->up, &up_scales[p]));
    }
    return Ok{};
  });
  if (codes) {
    gate_scales_ = std::move(gate_scales);
    up_scales_ = std::move(up_scales);
  }
  return status;
}

/// Some outputs at a time, so that what goes to a neuron is not written one by one.
Status CpuNeurons::pack_columns(const NeuronSource& source, ThreadPool& pool) {
  constexpr std::int64_t kTogether = 32;
  const std::int64_t size = element_bytes(form_->down);
  std::vector<float> scales(static_cast<std::size_t>(round_up(outputs_, kPanelRows)));
  const Status status = run_all(pool, (outputs_ + kTogether - 1) / kTogether, [&](std::int64_t task) -> Status {
    ConvertedRow row(neurons_);
    const std::int64_t first = task * kTogether, end = std::min(outputs_, first + kTogether);
    std::vector<std::byte> rows(static_cast<std::size_t>(kTogether * neurons_ * size));
    for (std::int64_t o = first; o < end; ++o) {
      MILLRACE_CHECK_OK(row.read(source.down, o, form_->down, rows.data() + (o - first) * neurons_ * size,
                                 &scales[static_cast<std::size_t>(o)]));
    }
    for (std::int64_t place = 0; place < neurons_; ++place) {
      std::byte* target = bundle(place) + form_->down_at + first * size;
      const std::byte* from = rows.data() + order_[static_cast<std::size_t>(place)] * size;
      for (std::int64_t o = first; o < end; ++o, target += size, from += neurons_ * size) {
        std::memcpy(target, from, static_cast<std::size_t>(size));
      }
    }
    return Ok{};
  });
  if (form_->down == NeuronElement::int8) down_scales_ = std::move(scales);
  return status;
}

}  // namespace millrace
