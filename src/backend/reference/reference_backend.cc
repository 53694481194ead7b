#include "backend/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "backend/answer_rows.h"
#include "backend/reference/hyper_columns.h"
#include "backend/reference/reference_matrix.h"
#include "backend/reference/seen_positions.h"
#include "backend/selected_pages.h"
#include "backend/turned_queries.h"
#include "core/check.h"
#include "core/memory.h"
#include "quant/kv_codec.h"

namespace millrace {

namespace {

const ReferenceMatrix& as_reference(const PackedMatrix& matrix) {
  return static_cast<const ReferenceMatrix&>(matrix);
}

float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu_tanh: {
      constexpr float kSqrt2OverPi = 0.7978845608028654f;
      return 0.5f * x * (1.0f + std::tanh(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
    }
    case Activation::gelu_erf:
      return 0.5f * x * (1.0f + std::erf(x * 0.7071067811865476f));
    case Activation::relu:
      return x <= 0.0f ? 0.0f : x;
    case Activation::relu2:
      return x <= 0.0f ? 0.0f : x * x;
    case Activation::swiglu_clamp:
      break;
  }
  MILLRACE_CHECK(false, "swiglu_clamp needs both of its inputs");
  return 0.0f;
}

float gated(const GatedFfn& ffn, float gate, float up) {
  if (ffn.activation != Activation::swiglu_clamp) return activate(ffn.activation, gate) * up;
  const float clamped_gate = std::min(gate, ffn.clamp_limit);
  const float clamped_up = std::clamp(up, -ffn.clamp_limit, ffn.clamp_limit);
  return clamped_gate * sigmoid(1.702f * clamped_gate) * (clamped_up + 1.0f);
}

/// What the up projection's output is multiplied with.
float gate_alone(const GatedFfn& ffn, float gate) {
  return gated(ffn, gate, ffn.activation == Activation::swiglu_clamp ? 0.0f : 1.0f);
}

/// target = x / rms(x) * weight; weight null: 1. target may be x.
void rms_norm(const float* x, const float* weight, float eps, std::int64_t width, float* target) {
  float sum = 0.0f;
  for (std::int64_t i = 0; i < width; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  for (std::int64_t i = 0; i < width; ++i) target[i] = x[i] * scale * (weight != nullptr ? weight[i] : 1.0f);
}

class ReferenceBackend final : public Backend {
 public:
  [[nodiscard]] std::string numeric_class() const override { return "reference/scalar/3"; }
  Result<DeviceLimits> measure_limits() override {
    return fail("the reference backend is made for being right: it is not measured against limits");
  }
  [[nodiscard]] bool host_memory() const override { return true; }
  [[nodiscard]] std::uint64_t free_memory() const override { return available_memory(); }

  Result<Buffer> allocate(std::size_t bytes) override {
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, std::max<std::size_t>(rounded, 64));
    if (memory == nullptr) return fail("cannot allocate {} bytes of memory", bytes);
    std::memset(memory, 0, rounded);
    return Buffer{std::shared_ptr<void>(memory, [](void* p) { std::free(p); }), bytes};
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
    return pack_reference(source, format);
  }
  [[nodiscard]] std::size_t packed_bytes(const MatrixSource& source, LinearFormat) const override {
    return reference_bytes(source);
  }

  [[nodiscard]] bool chooses_neurons() const override { return true; }
  Result<std::unique_ptr<PackedNeurons>> pack_neurons(const NeuronSource& source) override {
    return pack_reference_neurons(source);
  }
  [[nodiscard]] std::size_t packed_neuron_bytes(const NeuronSource& source) const override {
    return reference_bytes(source);
  }

  [[nodiscard]] std::span<const KvFormat> kv_formats() const override { return kKvFormats; }
  [[nodiscard]] bool selects_pages() const override { return true; }
  [[nodiscard]] bool skips_inputs() const override { return true; }
  [[nodiscard]] SkipCounts skip_counts() const override { return counts_; }
  [[nodiscard]] Arithmetic attend_arithmetic(KvFormat /*format*/) const override { return Arithmetic::f32; }
  void wait() override {}

  void begin(const ForwardBatch& batch) override {
    mark_answer_rows(batch, answers_);
    positions_ = batch.positions;
  }

  void embed(const ForwardBatch& batch, const PackedMatrix& table, float scale, float* out) override {
    const std::int64_t width = table.cols();
    for (std::int64_t r = 0; r < batch.rows(); ++r) {
      const float* row = as_reference(table).row(batch.token_ids[static_cast<std::size_t>(r)]);
      for (std::int64_t i = 0; i < width; ++i) out[r * width + i] = row[i] * scale;
    }
  }

  void residual_norm(const ResidualNormArgs& args) override {
    std::vector<float> normed(static_cast<std::size_t>(args.width));
    for (std::int64_t r = 0; r < args.rows; ++r) {
      float* h = args.h + r * args.width;
      if (args.delta != nullptr) {
        const float* delta = args.delta + r * args.width;
        if (args.delta_norm != nullptr) {
          rms_norm(delta, args.delta_norm, args.eps, args.width, normed.data());
          delta = normed.data();
        }
        for (std::int64_t i = 0; i < args.width; ++i) h[i] += args.delta_scale * delta[i];
      }
      if (args.h_scale != 1.0f) {
        for (std::int64_t i = 0; i < args.width; ++i) h[i] *= args.h_scale;
      }
      if (args.norm != nullptr) rms_norm(h, args.norm, args.eps, args.width, args.out + r * args.width);
    }
  }

  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override {
    const ReferenceMatrix& weight = as_reference(*linear.weight);
    const std::int64_t cols = weight.cols();
    std::vector<float> input(static_cast<std::size_t>(cols)), kept(input.size());
    const InputSkip skip = weight.skip();
    for (std::int64_t r = 0; r < rows; ++r) {
      std::copy_n(x + r * cols, cols, kept.begin());
      if (skip.of_inputs() && is_answer(r, rows)) leave_out(skip, r, weight.rows(), kept);
      for (std::int64_t o = 0; o < weight.rows(); ++o) {
        const std::span<const std::int32_t> order = weight.input_order(o);
        if (o == 0 || weight.input_group(o) != weight.input_group(o - 1) ||
            !std::ranges::equal(order, weight.input_order(o - 1))) {
          round_inputs(weight.format(), weight.input_group(o), order, kept.data(), input);
        }
        const float* w = weight.row(o);
        float sum = 0.0f;
        for (std::int64_t c = 0; c < cols; ++c) sum += input[static_cast<std::size_t>(c)] * w[c];
        out[r * out_stride + o] = sum + (linear.bias != nullptr ? linear.bias[o] : 0.0f);
      }
    }
  }

  void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) override {
    for (const SequenceRows& sequence : batch.sequences) {
      for (std::int32_t i = 0; i < sequence.rows; ++i) rope_store_row(sequence, i, args);
      if (args.store && args.kv.key_bounds != nullptr && sequence.rows > 0) keep_key_bounds(sequence, args);
      if (args.store && args.kv.key_buckets != nullptr) keep_key_buckets(sequence, args);
    }
  }

  void attend(const ForwardBatch& batch, const AttendArgs& args) override {
    for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
      const SequenceRows& sequence = batch.sequences[s];
      SeenPositions positions(args, sequence);
      HyperColumns columns(args, sequence);
      for (std::int32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
        for (std::int32_t i = 0; i < sequence.rows; ++i) {
          const std::int32_t group = args.heads / args.kv_heads, first = kv_head * group;
          if (columns.has(i)) {
            for (std::int32_t head = first; head < first + group; ++head) {
              const HyperColumns::Columns of_query = columns.of(i, head);
              attend_row(sequence, i, head, of_query.positions, of_query.log_weights, args, {}, {});
            }
            continue;
          }
          const std::vector<std::int64_t> seen = positions.of(i, kv_head);
          const std::span<const MovedPages> moved =
              turns_queries(args, sequence) ? sequence.moved_in(args.kv.group) : std::span<const MovedPages>();
          const bool measured =
              batch.masses != nullptr && args.window == 0 && sequence.first_position + i >= sequence.measured_from;
          const std::span<std::uint64_t> masses =
              measured ? batch.masses->of(static_cast<std::size_t>(args.kv.group), s) : std::span<std::uint64_t>();
          for (std::int32_t head = first; head < first + group; ++head) {
            std::vector<float> turned(moved.size() * static_cast<std::size_t>(args.head_dim));
            const float* const q = args.q + (sequence.first_row + i) * args.q_stride + head * args.head_dim;
            for (std::size_t m = 0; m + 1 < moved.size(); ++m) {
              turn_query(batch, s, *args.turns, moved[m].by, q, args.head_dim,
                         turned.data() + m * static_cast<std::size_t>(args.head_dim));
            }
            if (!moved.empty()) std::copy_n(q, args.head_dim, turned.end() - args.head_dim);
            attend_row(sequence, i, head, seen, {}, args, masses, {moved, turned.data()});
          }
        }
      }
    }
  }

  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override {
    const std::int64_t width = ffn.intermediate();
    const auto* neurons = static_cast<const ReferenceNeurons*>(ffn.neurons);
    const Linear gate_up{neurons != nullptr ? neurons->gate_up.get() : ffn.gate_up.weight, ffn.gate_up.bias},
        down{neurons != nullptr ? neurons->down.get() : ffn.down.weight, ffn.down.bias};
    linear(gate_up, x, rows, scratch, 2 * width);
    std::vector<float> hidden(static_cast<std::size_t>(rows * width));
    const std::optional<float> threshold = down.weight->skip().gate_threshold;
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* gate = scratch + r * 2 * width;
      for (std::int64_t i = 0; i < width; ++i) {
        float& value = hidden[static_cast<std::size_t>(r * width + i)];
        value = gated(ffn, gate[i], gate[width + i]);
        if (threshold && is_answer(r, rows) && std::fabs(gate_alone(ffn, gate[i])) <= *threshold) value = 0.0f;
      }
      if (neurons != nullptr && is_answer(r, rows)) choose_neurons(*neurons, x, r, hidden.data() + r * width);
    }
    linear(down, hidden.data(), rows, out, down.weight->rows());
  }

  void moe(const MoeArgs& args) override {
    const auto experts = static_cast<std::size_t>(args.router.weight->rows());
    const std::int64_t width = args.router.weight->cols();
    std::vector<float> logits(experts), scratch, expert_out(static_cast<std::size_t>(width));
    for (std::int64_t r = 0; r < args.rows; ++r) {
      linear(args.router, args.router_x + r * width, 1, logits.data(), static_cast<std::int64_t>(experts));
      const std::vector<float> weights = expert_weights(args, logits);
      float* out = args.out + r * width;
      std::fill(out, out + width, 0.0f);
      for (std::size_t e = 0; e < experts; ++e) {
        if (weights[e] == 0.0f) continue;
        const GatedFfn& ffn = args.experts[e];
        scratch.resize(static_cast<std::size_t>(2 * ffn.intermediate()));
        gated_ffn(ffn, args.x + r * width, 1, scratch.data(), expert_out.data());
        for (std::int64_t i = 0; i < width; ++i) out[i] += weights[e] * expert_out[static_cast<std::size_t>(i)];
      }
    }
  }

  void activate_multiply(Activation activation, float* gate, const float* other, std::int64_t other_stride,
                         std::int64_t rows, std::int64_t width) override {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < width; ++i) {
        float& value = gate[r * width + i];
        value = activate(activation, value) * other[r * other_stride + i];
      }
    }
  }

  void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) override {
    for (std::int64_t i = 0; i < count; ++i) out[i] = y != nullptr ? a * x[i] + b * y[i] : a * x[i];
  }

  void gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width, float* out) override {
    for (std::size_t i = 0; i < indices.size(); ++i) {
      std::memcpy(out + static_cast<std::int64_t>(i) * width, x + indices[i] * width,
                  static_cast<std::size_t>(width) * sizeof(float));
    }
  }

  void scale_softcap(float* x, std::int64_t count, float scale, float softcap) override {
    for (std::int64_t i = 0; i < count; ++i) {
      x[i] = softcap != 0.0f ? softcap * std::tanh(scale * x[i] / softcap) : scale * x[i];
    }
  }

 private:
  /// Row `row` of `rows`, which must be those of the batch.
  [[nodiscard]] bool is_answer(std::int64_t row, std::int64_t rows) const {
    MILLRACE_CHECK(rows == static_cast<std::int64_t>(answers_.size()), "{} rows, {} of the batch", rows,
                   answers_.size());
    return answers_[static_cast<std::size_t>(row)] != 0;
  }

  /// Neurons of a row of an answer that are not chosen become zero.
  void choose_neurons(const ReferenceNeurons& weights, const float* x, std::int64_t row, float* hidden) {
    const NeuronChoice& choice = weights.choice;
    const std::int64_t neurons = weights.neurons();
    std::vector<float> scores(static_cast<std::size_t>(neurons));
    if (choice.method == NeuronMethod::predicted) {
      std::vector<float> rank(static_cast<std::size_t>(weights.predictor_in->rows()));
      linear({weights.predictor_in.get(), nullptr}, x + row * weights.inputs(), 1, rank.data(),
             weights.predictor_in->rows());
      for (float& value : rank) value = std::max(value, 0.0f);
      linear({weights.predictor_out.get(), choice.profile->bias.data()}, rank.data(), 1, scores.data(), neurons);
    }
    std::int64_t gates = 0, fired = 0;
    for (std::int64_t i = 0; i < neurons; ++i) {
      const auto n = static_cast<std::size_t>(i);
      bool chosen = true;
      if (choice.method == NeuronMethod::predicted) {
        chosen = scores[n] > 0.0f || double{choice.profile->frequency[n]} >= choice.profile->hot;
      } else if (choice.method == NeuronMethod::imposed) {
        chosen = imposed_fires(choice.layer, i, positions_[static_cast<std::size_t>(row)], choice.density);
      }
      if (!chosen) hidden[i] = 0.0f;
      gates += chosen ? 1 : 0;
      fired += hidden[i] != 0.0f ? 1 : 0;
    }
    const std::int64_t rest = weights.inputs() + weights.outputs();
    counts_.kept += static_cast<double>(gates * weights.inputs() + fired * rest);
    counts_.all += static_cast<double>(neurons * (weights.inputs() + rest));
  }

  void leave_out(const InputSkip& skip, std::int64_t row, std::int64_t outputs, std::vector<float>& x) {
    const std::int64_t position = positions_[static_cast<std::size_t>(row)];
    std::int64_t input = 0;
    for (float& value : x) {
      const bool drawn = !skip.drawn || skip.drawn->keeps(position, input++);
      if (!drawn || std::fabs(value) <= *skip.of_inputs()) value = 0.0f;
      counts_.kept += value != 0.0f ? static_cast<double>(outputs) : 0.0;
      counts_.all += static_cast<double>(outputs);
    }
  }

  static void normalize_heads(float* x, const float* weight, const RopeStoreArgs& args, std::int32_t heads) {
    if (args.norm == NormScope::all_heads) {
      rms_norm(x, weight, args.eps, std::int64_t{heads} * args.head_dim, x);
    } else if (args.norm == NormScope::per_head) {
      for (std::int32_t h = 0; h < heads; ++h) {
        rms_norm(x + h * args.head_dim, weight, args.eps, args.head_dim, x + h * args.head_dim);
      }
    }
  }

  static void rotate_heads(float* x, std::int64_t row, const RopeStoreArgs& args, std::int32_t heads) {
    if (args.cos == nullptr) return;
    const std::int32_t half = args.rotary_dim / 2;
    const float* cos = args.cos + row * half;
    const float* sin = args.sin + row * half;
    for (std::int32_t h = 0; h < heads; ++h) {
      float* head = x + h * args.head_dim;
      for (std::int32_t i = 0; i < half; ++i) {
        const float a = head[i];
        const float b = head[i + half];
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = b * cos[i] + a * sin[i];
      }
    }
  }

  static void rope_store_row(const SequenceRows& sequence, std::int32_t index, const RopeStoreArgs& args) {
    const std::int64_t row = sequence.first_row + index;
    const std::int64_t position = sequence.first_place(args.kv.group) + index;
    float* q = args.qkv + row * args.qkv_width;
    const std::int32_t q_width = args.heads * args.head_dim;
    const std::int32_t kv_width = args.kv_heads * args.head_dim;
    normalize_heads(q, args.q_norm, args, args.heads);
    rotate_heads(q, row, args, args.heads);
    if (args.q_scale != nullptr) {
      for (std::int32_t i = 0; i < q_width; ++i) q[i] *= args.q_scale[row];
    }
    if (!args.store) return;
    float* k = q + q_width;
    std::vector<float> v(args.value_is_key ? k : k + kv_width, (args.value_is_key ? k : k + kv_width) + kv_width);
    normalize_heads(k, args.k_norm, args, args.kv_heads);
    rotate_heads(k, row, args, args.kv_heads);
    const auto table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)];
    for (std::int32_t h = 0; h < args.kv_heads; ++h) {
      float* value = v.data() + h * args.head_dim;
      if (args.value_norm) rms_norm(value, nullptr, args.eps, args.head_dim, value);
      encode_kv(args.kv.format, k + h * args.head_dim, args.head_dim, kv_slot(args, table, position, h, true));
      encode_kv(args.kv.format, value, args.head_dim, kv_slot(args, table, position, h, false));
    }
  }

  /// The queries of a row and head for the pages that have moved, [moved][head_dim].
  struct Turned {
    std::span<const MovedPages> moved = {};
    const float* queries = nullptr;
  };

  /// `log_weights`: of the positions; none: each weighs 1.
  static void attend_row(const SequenceRows& sequence, std::int32_t index, std::int32_t head,
                         std::span<const std::int64_t> seen, std::span<const float> log_weights, const AttendArgs& args,
                         std::span<std::uint64_t> masses, const Turned& turned) {
    const std::int64_t row = sequence.first_row + index;
    const std::int32_t kv_head = head / (args.heads / args.kv_heads);
    const auto table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)];
    const float* q = args.q + row * args.q_stride + head * args.head_dim;

    // By chunks of what it reads, one after the other.
    const float margin = turned.moved.empty() ? args.skip_margin : std::numeric_limits<float>::infinity();
    const auto leave_out = [&](std::vector<float>& scores, std::size_t chunk, float before) {
      const auto own = std::span(scores).subspan(chunk);
      if (!(*std::ranges::max_element(own) < before - margin)) return false;
      std::ranges::fill(own, -std::numeric_limits<float>::infinity());
      return true;
    };
    std::vector<float> scores;
    float largest = args.sinks != nullptr ? args.sinks[head] : -std::numeric_limits<float>::infinity();
    for (const std::int64_t t : seen) {
      for (std::size_t m = 0; m < turned.moved.size() && turned.moved[m].first <= t / args.kv.page_tokens; ++m) {
        q = turned.queries + m * static_cast<std::size_t>(args.head_dim);
      }
      const KvSlot key = kv_slot(args, table, t, kv_head, true);
      float dot = 0.0f;
      for (std::int32_t i = 0; i < args.head_dim; ++i) {
        dot += q[i] * decode_kv(args.kv.format, key, i);
      }
      float score = dot * args.scale;
      if (args.softcap != 0.0f) score = args.softcap * std::tanh(score / args.softcap);
      if (!log_weights.empty()) score += log_weights[scores.size()];
      scores.push_back(score);
      if (scores.size() % kAttentionChunk != 0 && scores.size() != seen.size()) continue;
      const std::size_t chunk = (scores.size() - 1) / kAttentionChunk * kAttentionChunk;
      if (margin == std::numeric_limits<float>::infinity() || !leave_out(scores, chunk, largest)) {
        largest =
            std::max(largest, *std::max_element(scores.begin() + static_cast<std::ptrdiff_t>(chunk), scores.end()));
      }
    }
    float sum = args.sinks != nullptr ? std::exp(args.sinks[head] - largest) : 0.0f;
    for (float& score : scores) {
      score = std::exp(score - largest);
      sum += score;
    }
    float* out = args.out + row * args.heads * args.head_dim + head * args.head_dim;
    std::fill(out, out + args.head_dim, 0.0f);
    float of_page = 0.0f;
    for (std::size_t s = 0; s < seen.size(); ++s) {
      const float weight = scores[s] / sum;
      of_page += weight;
      const std::int64_t page = seen[s] / args.kv.page_tokens;
      if (s + 1 == seen.size() || seen[s + 1] / args.kv.page_tokens != page) {
        if (!masses.empty()) masses[static_cast<std::size_t>(page)] += mass_units(of_page);
        of_page = 0.0f;
      }
      if (weight == 0.0f && margin < std::numeric_limits<float>::infinity()) continue;
      const KvSlot value = kv_slot(args, table, seen[s], kv_head, false);
      for (std::int32_t i = 0; i < args.head_dim; ++i) {
        out[i] += weight * decode_kv(args.kv.format, value, i);
      }
    }
  }

  /// The weight of every expert, 0 for those not chosen. Equal logits: the lower index is chosen.
  static std::vector<float> expert_weights(const MoeArgs& args, const std::vector<float>& logits) {
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    order.resize(static_cast<std::size_t>(args.top_k));
    const float largest = logits[order.front()];
    float all = 0.0f, chosen = 0.0f;
    for (const float logit : logits) all += std::exp(logit - largest);
    for (const std::size_t e : order) chosen += std::exp(logits[e] - largest);
    const float divisor = args.weighting == ExpertWeighting::softmax_then_top_k ? all : chosen;
    std::vector<float> weights(logits.size(), 0.0f);
    for (const std::size_t e : order) {
      weights[e] =
          std::exp(logits[e] - largest) / divisor * (args.expert_scale != nullptr ? args.expert_scale[e] : 1.0f);
    }
    return weights;
  }

  std::vector<std::uint8_t> answers_;    // of the batch
  std::vector<std::int64_t> positions_;  // of its rows
  SkipCounts counts_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend() {
  return std::make_unique<ReferenceBackend>();
}

}  // namespace millrace
