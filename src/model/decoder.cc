#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

std::int64_t qkv_width(const AttentionSpec& spec) {
  const std::int64_t q = std::int64_t{spec.heads} * spec.head_dim;
  const std::int64_t kv = std::int64_t{spec.kv_heads} * spec.head_dim;
  if (spec.kv_source >= 0) return q;
  return spec.value_is_key ? q + kv : q + 2 * kv;
}

bool runs_side_by_side(const LayerSpec& spec) {
  return spec.intermediate > 0 && spec.moe.experts > 0;
}

/// The widest activation of each kind over all layers.
struct Widths {
  std::int64_t qkv = 0, attended = 0, scratch = 0;
  bool side_by_side = false;
};

Widths widest(const ModelConfig& config) {
  Widths widths;
  for (const LayerSpec& layer : config.layers) {
    widths.qkv = std::max(widths.qkv, qkv_width(layer.attention));
    widths.attended = std::max(widths.attended, std::int64_t{layer.attention.heads} * layer.attention.head_dim);
    widths.scratch = std::max(widths.scratch, 2 * layer.intermediate);
    widths.side_by_side |= runs_side_by_side(layer);
  }
  return widths;
}

std::size_t float_bytes(std::int64_t rows, std::int64_t width) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(width) * sizeof(float);
}

GatedFfn ffn_view(const FfnWeights& weights, const LayerSpec& spec) {
  return {weights.gate_up.view(), weights.down.view(), spec.activation, spec.clamp_limit, weights.neurons.get()};
}

}  // namespace

AttentionPolicy layer_policy(const ModelConfig& config, const AttentionPolicy& policy, std::size_t layer) {
  if (config.layers[layer].attention.window != 0) return {};
  AttentionPolicy of_layer = policy;
  const auto index = static_cast<std::int64_t>(layer);
  if (policy.prefill && index < policy.prefill->dense_layers) of_layer.prefill.reset();
  if (policy.hyper && index < policy.hyper->dense_layers) of_layer.hyper.reset();
  if (policy.decode && index < policy.decode->dense_layers) of_layer.decode.reset();
  if (of_layer.decode && !policy.budgets.tokens.empty()) of_layer.decode->tokens = policy.budgets.tokens[layer];
  if (policy.skip && index < policy.skip->dense_layers) of_layer.skip.reset();
  return of_layer;
}

std::vector<KvShape> kv_shapes(const ModelConfig& config, const AttentionPolicy& policy) {
  std::vector<KvShape> shapes;
  const auto keeps = [](const LayerSpec& layer) {  // pages that may be dropped
    return layer.attention.window == 0 && layer.attention.kv_source < 0;
  };
  const std::int64_t all = std::ranges::count_if(config.layers, keeps);
  const std::int64_t levels = !policy.keep || policy.keep->levels == 1 ? 1
                              : policy.keep->levels == 0               ? all
                                                                       : std::min(policy.keep->levels, all);
  std::int64_t keeping = 0;
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    const AttentionSpec& a = config.layers[l].attention;
    const AttentionPolicy of_layer = layer_policy(config, policy, l);
    const bool bounds = of_layer.decode && of_layer.decode->choice == PageChoice::quest;
    shapes.push_back({a.kv_heads, a.head_dim, a.window, a.kv_source, bounds});
    if (keeps(config.layers[l])) shapes.back().level = static_cast<std::int32_t>(keeping++ * levels / all);
    if (of_layer.hyper) shapes.back().key_buckets = of_layer.hyper->seed;
    if (a.kv_source < 0) continue;
    // Who reads another layer's keys selects by that one's bounds, and finds them by its buckets.
    KvShape& source = shapes[static_cast<std::size_t>(a.kv_source)];
    if (shapes.back().key_bounds) source.key_bounds = true;
    if (shapes.back().key_buckets) source.key_buckets = shapes.back().key_buckets;
  }
  return shapes;
}

Decoder::Decoder(ModelConfig config, ModelWeights weights, Backend& backend, Limits limits)
    : config_(std::move(config)), weights_(std::move(weights)), backend_(&backend), limits_(limits) {
  for (const RopeSpec& rope : config_.ropes) frequencies_.push_back(rope_frequencies(rope, 0));
}

bool Decoder::skips_inputs() const {
  const auto skips = [](const LinearWeights& linear) {
    return linear.weight != nullptr && linear.weight->skip() != InputSkip{};
  };
  return std::ranges::any_of(weights_.layers, [&](const LayerWeights& layer) {
    return skips(layer.qkv) || skips(layer.out) || skips(layer.ffn.gate_up) || skips(layer.ffn.down) ||
           layer.ffn.neurons != nullptr;
  });
}

std::size_t Decoder::workspace_bytes(const ModelConfig& config, const Limits& limits) {
  const Widths widths = widest(config);
  std::int64_t width = 3 * config.hidden + widths.qkv + widths.attended + widths.scratch;
  if (widths.side_by_side) width += 2 * config.hidden;
  if (config.per_layer_input > 0) {
    width += 2 * config.per_layer_input * static_cast<std::int64_t>(config.layers.size());
  }
  for (const RopeSpec& rope : config.ropes) width += rope.rotary_dim;
  for (const LayerSpec& layer : config.layers) width += layer.attention.temperature_beta != 0.0f ? 1 : 0;
  return float_bytes(limits.max_rows, width) + float_bytes(limits.max_logit_rows, config.hidden + config.vocab);
}

Result<std::unique_ptr<Decoder>> Decoder::create(ModelConfig config, ModelWeights weights, Backend& backend,
                                                 Limits limits, const AttentionPolicy& policy) {
  std::unique_ptr<Decoder> decoder(new Decoder(std::move(config), std::move(weights), backend, limits));
  for (std::size_t l = 0; l < decoder->config_.layers.size(); ++l) {
    const AttentionPolicy of_layer = layer_policy(decoder->config_, policy, l);
    decoder->layer_policies_.push_back(of_layer);
    if (of_layer.prefill) decoder->policy_.prefill = of_layer.prefill;
    if (of_layer.hyper) decoder->policy_.hyper = of_layer.hyper;
    if (of_layer.decode) decoder->policy_.decode = of_layer.decode;
    if (of_layer.keep) decoder->policy_.keep = of_layer.keep;
    if (of_layer.skip) decoder->policy_.skip = of_layer.skip;
  }
  MILLRACE_CHECK_OK(decoder->allocate());
  return decoder;
}

Status Decoder::allocate() {
  const Widths widths = widest(config_);
  const auto rows_of = [this](Buffer& buffer, std::int64_t rows, std::int64_t width) -> Status {
    MILLRACE_TRY(buffer, backend_->allocate(float_bytes(rows, width)));
    return Ok{};
  };
  const std::int64_t rows = limits_.max_rows;
  for (Buffer* buffer : {&h_, &x_, &delta_}) MILLRACE_CHECK_OK(rows_of(*buffer, rows, config_.hidden));
  MILLRACE_CHECK_OK(rows_of(qkv_, rows, widths.qkv));
  MILLRACE_CHECK_OK(rows_of(attended_, rows, widths.attended));
  MILLRACE_CHECK_OK(rows_of(scratch_, rows, widths.scratch));
  MILLRACE_CHECK_OK(rows_of(gathered_, limits_.max_logit_rows, config_.hidden));
  MILLRACE_CHECK_OK(rows_of(logits_, limits_.max_logit_rows, config_.vocab));
  if (widths.side_by_side) {
    MILLRACE_CHECK_OK(rows_of(router_x_, rows, config_.hidden));
    MILLRACE_CHECK_OK(rows_of(moe_out_, rows, config_.hidden));
  }
  if (config_.per_layer_input > 0) {
    const std::int64_t width = config_.per_layer_input * static_cast<std::int64_t>(config_.layers.size());
    MILLRACE_CHECK_OK(rows_of(per_layer_, rows, width));
    MILLRACE_CHECK_OK(rows_of(per_layer_scratch_, rows, width));
  }
  cos_.resize(config_.ropes.size());
  sin_.resize(config_.ropes.size());
  for (std::size_t i = 0; i < config_.ropes.size(); ++i) {
    MILLRACE_CHECK_OK(rows_of(cos_[i], rows, config_.ropes[i].rotary_dim / 2));
    MILLRACE_CHECK_OK(rows_of(sin_[i], rows, config_.ropes[i].rotary_dim / 2));
  }
  q_scale_.resize(config_.layers.size());
  for (std::size_t l = 0; l < config_.layers.size(); ++l) {
    if (config_.layers[l].attention.temperature_beta != 0.0f) MILLRACE_CHECK_OK(rows_of(q_scale_[l], rows, 1));
  }
  return Ok{};
}

const Buffer& Decoder::forward(const ForwardBatch& batch, std::span<const KvLayer> kv) {
  const std::int64_t rows = batch.rows();
  MILLRACE_CHECK(rows > 0 && rows <= limits_.max_rows, "{} rows, limit {}", rows, limits_.max_rows);
  MILLRACE_CHECK(static_cast<std::int64_t>(batch.logit_rows.size()) <= limits_.max_logit_rows, "{} logit rows",
                 batch.logit_rows.size());
  MILLRACE_CHECK(kv.size() == config_.layers.size(), "{} KV layers", kv.size());

  backend_->begin(batch);
  prepare_rotations(batch);
  prepare_turns(batch);
  backend_->embed(batch, *weights_.embedding, config_.embedding_scale, h_.floats());
  if (config_.per_layer_input > 0) prepare_per_layer_inputs(batch);

  ResidualNormArgs step{.rows = rows, .width = config_.hidden, .h = h_.floats(), .eps = config_.norm_eps};
  // A block's output is added to the residual stream in the same pass that normalises it for the next block.
  const auto add_and_norm = [&](const float* delta, const Vector* delta_norm, float h_scale, const Vector* norm) {
    step.delta = delta;
    step.delta_norm = delta_norm != nullptr ? delta_norm->get() : nullptr;
    step.delta_scale = config_.residual_scale;
    step.h_scale = h_scale;
    step.norm = norm != nullptr ? norm->get() : nullptr;
    step.out = x_.floats();
    if (delta != nullptr || h_scale != 1.0f || step.norm != nullptr) backend_->residual_norm(step);
    return step.norm != nullptr ? x_.floats()
                                : h_.floats();  // without a norm (OLMo 2) the block reads the stream itself
  };

  const float* x = add_and_norm(nullptr, nullptr, 1.0f, &weights_.layers.front().attention_norm);
  for (std::size_t l = 0; l < config_.layers.size(); ++l) {
    const LayerWeights& w = weights_.layers[l];
    attention_block(batch, l, kv[l], x);
    x = add_and_norm(delta_.floats(), &w.attention_post_norm, 1.0f, &w.ffn_norm);
    const float* delta = feed_forward_block(rows, l, x);
    const bool last = l + 1 == config_.layers.size();
    const Vector& next_norm = last ? weights_.final_norm : weights_.layers[l + 1].attention_norm;
    if (config_.per_layer_input > 0) {
      add_and_norm(delta, &w.ffn_post_norm, 1.0f, nullptr);
      per_layer_block(rows, l);
      x = add_and_norm(delta_.floats(), &w.per_layer_post_norm, w.layer_scale, last ? nullptr : &next_norm);
    } else {
      x = add_and_norm(delta, &w.ffn_post_norm, w.layer_scale, last ? nullptr : &next_norm);
    }
  }
  head(batch);
  return logits_;
}

std::int32_t Decoder::Turns::add(const RopeFrequencies& frequencies, std::int64_t by) {
  const auto row = static_cast<std::int32_t>(cos.size() / frequencies.inv_freq.size());
  for (const float frequency : frequencies.inv_freq) {
    const double angle = static_cast<double>(by) * static_cast<double>(frequency);
    cos.push_back(static_cast<float>(std::cos(angle)));
    sin.push_back(static_cast<float>(std::sin(angle)));
  }
  return row;
}

void Decoder::prepare_turns(const ForwardBatch& batch) {
  constexpr std::size_t kKnown = 8192;  // rows of a rotation that are no longer asked for, at most
  turns_.resize(config_.ropes.size());
  if (batch.turns.empty()) return;
  for (std::size_t i = 0; i < turns_.size(); ++i) {
    Turns& turns = turns_[i];
    const bool by_sequence = rope_depends_on_length(config_.ropes[i]);
    if (by_sequence || turns.row_of.size() > kKnown + batch.turns.size()) {
      turns.row_of.clear();
      turns.cos.clear();
      turns.sin.clear();
    }
    if (!by_sequence) {
      turns.rows.clear();
      for (const std::int64_t by : batch.turns) {
        const auto [known, is_new] = turns.row_of.try_emplace(by, 0);
        if (is_new) known->second = turns.add(frequencies_[i], by);
        turns.rows.push_back(known->second);
      }
    } else {
      turns.rows.assign(batch.sequences.size() * batch.turns.size(), -1);
      for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
        const SequenceRows& sequence = batch.sequences[s];
        const RopeFrequencies own = rope_frequencies(config_.ropes[i], sequence.admission_length);
        for (const std::span<const MovedPages> moved : sequence.moved) {
          for (const MovedPages& pages : moved) {
            if (pages.by == 0) continue;
            const auto turn = std::ranges::lower_bound(batch.turns, pages.by) - batch.turns.begin();
            std::int32_t& row = turns.rows[s * batch.turns.size() + static_cast<std::size_t>(turn)];
            if (row < 0) row = turns.add(own, pages.by);
          }
        }
      }
    }
    turns.view = {config_.ropes[i].rotary_dim, turns.cos, turns.sin, turns.rows, by_sequence};
  }
}

void Decoder::prepare_rotations(const ForwardBatch& batch) {
  for (std::size_t i = 0; i < config_.ropes.size(); ++i) {
    const auto half = static_cast<std::size_t>(config_.ropes[i].rotary_dim / 2);
    host_cos_.resize(static_cast<std::size_t>(batch.rows()) * half);
    host_sin_.resize(host_cos_.size());
    for (const SequenceRows& sequence : batch.sequences) {
      RopeFrequencies own;
      if (rope_depends_on_length(config_.ropes[i])) {
        own = rope_frequencies(config_.ropes[i], sequence.admission_length);
      }
      const RopeFrequencies& frequencies = own.inv_freq.empty() ? frequencies_[i] : own;
      for (std::int32_t r = 0; r < sequence.rows; ++r) {
        const std::int64_t position = sequence.first_position + r;
        const std::size_t row = static_cast<std::size_t>(sequence.first_row + r) * half;
        if (position >= config_.max_position) {  // far out angles in float are no angles
          for (std::size_t j = 0; j < half; ++j) {
            const double angle = static_cast<double>(position) * static_cast<double>(frequencies.inv_freq[j]);
            host_cos_[row + j] = static_cast<float>(std::cos(angle)) * frequencies.scale;
            host_sin_[row + j] = static_cast<float>(std::sin(angle)) * frequencies.scale;
          }
          continue;
        }
        for (std::size_t j = 0; j < half; ++j) {  // as transformers does
          const float angle = static_cast<float>(position) * frequencies.inv_freq[j];
          host_cos_[row + j] = std::cos(angle) * frequencies.scale;
          host_sin_[row + j] = std::sin(angle) * frequencies.scale;
        }
      }
    }
    backend_->write(cos_[i], 0, std::as_bytes(std::span(host_cos_)));
    backend_->write(sin_[i], 0, std::as_bytes(std::span(host_sin_)));
  }
  for (std::size_t l = 0; l < config_.layers.size(); ++l) {
    const AttentionSpec& spec = config_.layers[l].attention;
    if (spec.temperature_beta == 0.0f) continue;
    host_q_scale_.resize(static_cast<std::size_t>(batch.rows()));
    for (std::size_t r = 0; r < host_q_scale_.size(); ++r) {
      const std::int64_t whole = batch.positions[r] / spec.temperature_length;
      const auto steps = static_cast<float>(whole);
      host_q_scale_[r] = 1.0f + spec.temperature_beta * std::log(1.0f + steps);
    }
    backend_->write(q_scale_[l], 0, std::as_bytes(std::span(host_q_scale_)));
  }
}

void Decoder::attention_block(const ForwardBatch& batch, std::size_t layer, const KvLayer& kv, const float* x) {
  const AttentionSpec& spec = config_.layers[layer].attention;
  const LayerWeights& w = weights_.layers[layer];
  const std::int64_t rows = batch.rows();
  const std::int64_t width = qkv_width(spec);
  backend_->linear(w.qkv.view(), x, rows, qkv_.floats(), width);

  RopeStoreArgs store{.qkv = qkv_.floats(),
                      .qkv_width = width,
                      .heads = spec.heads,
                      .kv_heads = spec.kv_heads,
                      .head_dim = spec.head_dim,
                      .store = spec.kv_source < 0,
                      .value_is_key = spec.value_is_key,
                      .value_norm = spec.value_norm,
                      .norm = spec.qk_norm,
                      .q_norm = w.q_norm.get(),
                      .k_norm = w.k_norm.get(),
                      .eps = config_.norm_eps,
                      .q_scale = q_scale_[layer].floats(),
                      .kv = kv};
  if (spec.rope >= 0) {
    const auto rope = static_cast<std::size_t>(spec.rope);
    store.rotary_dim = config_.ropes[rope].rotary_dim;
    store.cos = cos_[rope].floats();
    store.sin = sin_[rope].floats();
  }
  backend_->rope_store(batch, store);

  const AttentionPolicy& policy = layer_policies_[layer];
  backend_->attend(
      batch,
      {.q = qkv_.floats(),
       .q_stride = width,
       .out = attended_.floats(),
       .heads = spec.heads,
       .kv_heads = spec.kv_heads,
       .head_dim = spec.head_dim,
       .window = spec.window,
       .scale = spec.scale,
       .softcap = spec.softcap,
       .sinks = w.sinks.get(),
       .kv = kv,
       .selection = policy.decode ? &*policy.decode : nullptr,
       .prompt_selection = policy.prefill ? &*policy.prefill : nullptr,
       .hyper = policy.hyper ? &*policy.hyper : nullptr,
       .turns = spec.rope >= 0 && !batch.turns.empty() ? &turns_[static_cast<std::size_t>(spec.rope)].view : nullptr,
       .skip_margin = policy.skip ? policy.skip->margin() : std::numeric_limits<float>::infinity(),
       .layer = static_cast<std::uint32_t>(layer)});
  backend_->linear(w.out.view(), attended_.floats(), rows, delta_.floats(), config_.hidden);
}

const float* Decoder::feed_forward_block(std::int64_t rows, std::size_t layer, const float* x) {
  const LayerSpec& spec = config_.layers[layer];
  const LayerWeights& w = weights_.layers[layer];
  if (spec.intermediate > 0) backend_->gated_ffn(ffn_view(w.ffn, spec), x, rows, scratch_.floats(), delta_.floats());
  if (spec.moe.experts == 0) return delta_.floats();

  std::vector<GatedFfn> experts;
  experts.reserve(w.experts.size());
  for (const FfnWeights& expert : w.experts) experts.push_back(ffn_view(expert, spec));
  MoeArgs moe{.rows = rows,
              .router_x = x,
              .x = x,
              .out = delta_.floats(),
              .router = w.router.view(),
              .expert_scale = w.expert_scale.get(),
              .top_k = spec.moe.top_k,
              .weighting = spec.moe.weighting,
              .experts = experts};
  if (!runs_side_by_side(spec)) {
    backend_->moe(moe);
    return delta_.floats();
  }

  // Gemma 4: router and experts read the residual stream through norms of their own, beside the dense part.
  const auto norm_of = [&](float* source, const Vector& weight, float* target) {
    backend_->residual_norm({.rows = rows,
                             .width = config_.hidden,
                             .h = source,
                             .norm = weight.get(),
                             .eps = config_.norm_eps,
                             .out = target});
  };
  norm_of(h_.floats(), w.router_norm, router_x_.floats());
  norm_of(h_.floats(), w.moe_norm, x_.floats());  // x is no longer needed: the dense part has run
  moe.router_x = router_x_.floats();
  moe.x = x_.floats();
  moe.out = moe_out_.floats();
  backend_->moe(moe);
  norm_of(delta_.floats(), w.dense_post_norm, x_.floats());
  norm_of(moe_out_.floats(), w.moe_post_norm, router_x_.floats());
  backend_->combine(1.0f, x_.floats(), 1.0f, router_x_.floats(), delta_.floats(), rows * config_.hidden);
  return delta_.floats();
}

void Decoder::prepare_per_layer_inputs(const ForwardBatch& batch) {
  const std::int64_t rows = batch.rows();
  const auto layers = static_cast<std::int64_t>(config_.layers.size());
  const std::int64_t width = config_.per_layer_input * layers;
  // Norms ignore the scale of their input but for eps, so the projection's 1 / sqrt(hidden) becomes eps * hidden.
  backend_->linear({weights_.per_layer_model_projection.get(), nullptr}, h_.floats(), rows, per_layer_scratch_.floats(),
                   width);
  backend_->residual_norm({.rows = rows * layers,
                           .width = config_.per_layer_input,
                           .h = per_layer_scratch_.floats(),
                           .norm = weights_.per_layer_norm.get(),
                           .eps = config_.norm_eps * static_cast<float>(config_.hidden),
                           .out = per_layer_scratch_.floats()});
  backend_->embed(batch, *weights_.per_layer_embedding, std::sqrt(static_cast<float>(config_.per_layer_input)),
                  per_layer_.floats());
  constexpr float kHalfPower = 0.70710678118654752f;
  backend_->combine(kHalfPower, per_layer_scratch_.floats(), kHalfPower, per_layer_.floats(), per_layer_.floats(),
                    rows * width);
}

void Decoder::per_layer_block(std::int64_t rows, std::size_t layer) {
  const LayerWeights& w = weights_.layers[layer];
  const std::int64_t width = config_.per_layer_input;
  backend_->linear({w.per_layer_gate.get(), nullptr}, h_.floats(), rows, per_layer_scratch_.floats(), width);
  backend_->activate_multiply(config_.layers[layer].activation, per_layer_scratch_.floats(),
                              per_layer_.floats() + static_cast<std::int64_t>(layer) * width,
                              width * static_cast<std::int64_t>(config_.layers.size()), rows, width);
  backend_->linear({w.per_layer_projection.get(), nullptr}, per_layer_scratch_.floats(), rows, delta_.floats(),
                   config_.hidden);
}

void Decoder::head(const ForwardBatch& batch) {
  if (batch.wants_hidden) {
    backend_->residual_norm({.rows = batch.rows(),
                             .width = config_.hidden,
                             .h = h_.floats(),
                             .norm = weights_.final_norm.get(),
                             .eps = config_.norm_eps,
                             .out = x_.floats()});
  }
  const auto rows = static_cast<std::int64_t>(batch.logit_rows.size());
  if (rows == 0) return;
  backend_->gather_rows(h_.floats(), batch.logit_rows, config_.hidden, gathered_.floats());
  backend_->residual_norm({.rows = rows,
                           .width = config_.hidden,
                           .h = gathered_.floats(),
                           .norm = weights_.final_norm.get(),
                           .eps = config_.norm_eps,
                           .out = gathered_.floats()});
  const PackedMatrix* matrix = weights_.head != nullptr ? weights_.head.get() : weights_.embedding.get();
  backend_->linear({matrix, nullptr}, gathered_.floats(), rows, logits_.floats(), config_.vocab);
  if (config_.logit_scale != 1.0f || config_.logit_softcap != 0.0f) {
    backend_->scale_softcap(logits_.floats(), rows * config_.vocab, config_.logit_scale, config_.logit_softcap);
  }
}

}  // namespace millrace
