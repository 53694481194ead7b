#include "convert/gguf_model_keys.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <utility>

namespace millrace {

namespace {

constexpr std::int64_t kLargest = 4294967295;  // of an integer in GGUF's usual type

struct WrittenFamily {
  std::string_view family, architecture;
};

constexpr WrittenFamily kFamilies[] = {
    {"llama", "llama"},   {"mistral", "llama"},       {"mistral3", "llama"},     {"mixtral", "llama"},
    {"qwen2", "qwen2"},   {"qwen3", "qwen3"},         {"qwen3_moe", "qwen3moe"}, {"gemma2", "gemma2"},
    {"gemma3", "gemma3"}, {"gemma3_text", "gemma3"},  {"granite", "granite"},    {"smollm3", "smollm3"},
    {"olmo2", "olmo2"},   {"ministral3", "mistral3"}, {"phi3", "phi3"},          {"glm", "chatglm"},
    {"glm4", "glm4"},
};

/// The layers' rope: that of the layers with full attention where there are several.
const RopeSpec* main_rope(const ModelConfig& model) {
  const RopeSpec* found = nullptr;
  for (const LayerSpec& layer : model.layers) {
    if (layer.attention.rope < 0) continue;
    const RopeSpec* rope = &model.ropes[static_cast<std::size_t>(layer.attention.rope)];
    if (layer.attention.window == 0) return rope;
    if (found == nullptr) found = rope;
  }
  return found;
}

std::int64_t window_of(const ModelConfig& model) {
  std::int64_t window = 0;
  for (const LayerSpec& layer : model.layers) window = std::max(window, layer.attention.window);
  return window;
}

/// A number of the config that ModelConfig holds only in another form.
double number_of(const nlohmann::json& config, const char* key, double fallback) {
  const auto found = config.find(key);
  return found != config.end() && found->is_number() ? found->get<double>() : fallback;
}

/// Sets keys below the architecture's name.
class ModelKeys {
 public:
  ModelKeys(GgufMetadataWriter& metadata, std::string_view architecture, const ModelConfig& model,
            const nlohmann::json& config)
      : metadata_(&metadata), architecture_(architecture), model_(&model), config_(&config) {}

  Status set() {
    MILLRACE_CHECK_OK(set_sizes());
    MILLRACE_CHECK_OK(set_experts());
    MILLRACE_CHECK_OK(set_ropes());
    set_windows();
    set_scales();
    if (!too_large_.empty()) return fail("{} of this model is more than GGUF can say", too_large_);
    return Ok{};
  }

 private:
  [[nodiscard]] std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  void integer(std::string_view name, std::int64_t value) {
    if (value < 0 || value > kLargest) {
      too_large_ = name;
      return;
    }
    metadata_->set_uint32(key(name), static_cast<std::uint64_t>(value));
  }
  void number(std::string_view name, double value) { metadata_->set_float(key(name), value); }

  [[nodiscard]] const LayerSpec& first() const { return model_->layers.front(); }

  Status set_sizes() {
    const AttentionSpec& attention = first().attention;
    integer("block_count", static_cast<std::int64_t>(model_->layers.size()));
    // As the config says it; a scaled rope makes the model's own longer.
    const RopeSpec* rope = main_rope(*model_);
    integer("context_length", rope != nullptr ? rope->max_position : model_->max_position);
    integer("embedding_length", model_->hidden);
    MILLRACE_TRY(const std::int64_t dense, width());
    integer("feed_forward_length", dense);
    integer("attention.head_count", attention.heads);
    integer("attention.head_count_kv", attention.kv_heads);
    integer("attention.key_length", attention.head_dim);
    integer("attention.value_length", attention.head_dim);
    number("attention.layer_norm_rms_epsilon", model_->norm_eps);
    integer("vocab_size", model_->vocab);
    return Ok{};
  }

  /// Of the dense layers; where all have experts, what the config says of dense ones, or the experts' own.
  [[nodiscard]] Result<std::int64_t> width() const {
    for (const LayerSpec& layer : model_->layers) {
      if (layer.intermediate > 0) return layer.intermediate;
    }
    // Which no layer uses, so that nothing has looked at it.
    const double said = number_of(*config_, "intermediate_size", static_cast<double>(first().moe.intermediate));
    if (!(said >= 0.0 && said <= static_cast<double>(kLargest)) || said != std::floor(said)) {
      return fail("config: intermediate_size is {}, expected an integer from 0 to {}", said, kLargest);
    }
    return static_cast<std::int64_t>(said);
  }

  Status set_experts() {
    const MoeSpec& moe = model_->layers.back().moe;
    const bool all =
        std::ranges::all_of(model_->layers, [&](const LayerSpec& layer) { return layer.moe.experts == moe.experts; });
    if (!all) return fail("some layers of this model have experts and some have none, which llama.cpp does not read");
    if (moe.experts == 0) return Ok{};
    integer("expert_count", moe.experts);
    integer("expert_used_count", moe.top_k);
    if (architecture_ == "qwen3moe") integer("expert_feed_forward_length", moe.intermediate);
    return Ok{};
  }

  Status set_ropes() {
    const RopeSpec* rope = main_rope(*model_);
    if (rope == nullptr) return Ok{};
    number("rope.freq_base", rope->theta);
    integer("rope.dimension_count", rope->rotary_dim);
    for (const LayerSpec& layer : model_->layers) {
      if (layer.attention.rope < 0 || layer.attention.window == 0) continue;
      const RopeSpec& sliding = model_->ropes[static_cast<std::size_t>(layer.attention.rope)];
      if (sliding != *rope) number("rope.freq_base_swa", sliding.theta);
    }
    switch (rope->scaling) {
      case RopeScaling::none:
      case RopeScaling::llama3:  // which is a tensor
        return Ok{};
      case RopeScaling::linear:
        metadata_->set_text(key("rope.scaling.type"), "linear");
        number("rope.scaling.factor", rope->factor);
        return Ok{};
      case RopeScaling::yarn:
        set_yarn(*rope);
        return Ok{};
      case RopeScaling::dynamic:
      case RopeScaling::longrope:
      case RopeScaling::proportional:
        break;
    }
    return fail("the scaling of this model's rope (dynamic, longrope or proportional) is not written as GGUF");
  }

  void set_yarn(const RopeSpec& rope) {
    metadata_->set_text(key("rope.scaling.type"), "yarn");
    number("rope.scaling.factor", rope.factor);
    integer("rope.scaling.original_context_length", rope.original_max_position);
    if (rope.attention_factor != 0.0) number("rope.scaling.yarn_attn_factor", rope.attention_factor);
    number("rope.scaling.yarn_beta_fast", rope.beta_fast);
    number("rope.scaling.yarn_beta_slow", rope.beta_slow);
    if (architecture_ != "mistral3") return;
    if (rope.mscale_all_dim != 0.0) number("rope.scaling.yarn_log_multiplier", rope.mscale_all_dim);
    number("attention.temperature_scale", first().attention.temperature_beta);
  }

  void set_windows() {
    const std::int64_t window = window_of(*model_);
    if (window == 0) return;
    integer("attention.sliding_window", window);
    if (architecture_ != "gemma3") return;
    std::vector<bool> slides;
    bool usual = true;  // five of six layers, which need not be said
    for (const LayerSpec& layer : model_->layers) {
      slides.push_back(layer.attention.window > 0);
      usual = usual && slides.back() == (slides.size() % 6 != 0);
    }
    if (!usual) metadata_->set_flags(key("attention.sliding_window_pattern"), slides);
  }

  void set_scales() {
    if (architecture_ == "gemma2") number("attn_logit_softcapping", first().attention.softcap);
    if (model_->logit_softcap > 0.0f) number("final_logit_softcapping", model_->logit_softcap);
    if (architecture_ != "granite") return;
    number("attention.scale", number_of(*config_, "attention_multiplier", 1.0));
    number("embedding_scale", number_of(*config_, "embedding_multiplier", 1.0));
    number("residual_scale", number_of(*config_, "residual_multiplier", 1.0));
    number("logit_scale", number_of(*config_, "logits_scaling", 1.0));
  }

  GgufMetadataWriter* metadata_;
  std::string_view architecture_;
  const ModelConfig* model_;
  const nlohmann::json* config_;
  std::string too_large_;  // key of an integer that has no room, if any
};

/// What is the same under another name, or said elsewhere, made equal.
ModelConfig comparable(ModelConfig model) {
  model.family.clear();
  model.architecture.clear();
  model.tied_head = false;  // the tensors tell
  const std::set<std::int32_t> ids(model.eos_ids.begin(), model.eos_ids.end());
  model.eos_ids.assign(ids.begin(), ids.end());
  for (RopeSpec& rope : model.ropes) {
    if (rope.scaling != RopeScaling::llama3) continue;
    const RopeSpec plain;
    rope.scaling = RopeScaling::none;
    rope.factor = plain.factor;
    rope.low_freq_factor = plain.low_freq_factor;
    rope.high_freq_factor = plain.high_freq_factor;
    rope.original_max_position = rope.max_position;
  }
  return model;
}

bool same_sizes(const LayerSpec& a, const LayerSpec& b) {
  return a.attention.heads == b.attention.heads && a.attention.kv_heads == b.attention.kv_heads &&
         a.attention.head_dim == b.attention.head_dim && a.intermediate == b.intermediate;
}

}  // namespace

Result<std::string_view> gguf_architecture_of(const ModelConfig& model) {
  std::string known;
  for (const WrittenFamily& row : kFamilies) {
    if (row.family == model.family) return row.architecture;
    known += (known.empty() ? "" : ", ") + std::string(row.family);
  }
  return fail("models of the family {} are not written as GGUF; these are: {}", model.family, known);
}

Status set_model_keys(GgufMetadataWriter& metadata, std::string_view architecture, const ModelConfig& model,
                      const nlohmann::json& config) {
  const auto text = config.find("text_config");
  const bool wrapped = text != config.end() && text->is_object();
  return ModelKeys(metadata, architecture, model, wrapped ? *text : config).set();
}

std::vector<float> rope_divisors(const ModelConfig& model) {
  const RopeSpec* rope = main_rope(model);
  if (rope == nullptr || rope->scaling != RopeScaling::llama3) return {};
  RopeSpec plain = *rope;
  plain.scaling = RopeScaling::none;
  const RopeFrequencies scaled = rope_frequencies(*rope, 0), unscaled = rope_frequencies(plain, 0);
  std::vector<float> divisors(scaled.inv_freq.size());
  for (std::size_t i = 0; i < divisors.size(); ++i) divisors[i] = unscaled.inv_freq[i] / scaled.inv_freq[i];
  return divisors;
}

std::string difference(const ModelConfig& written, const ModelConfig& read) {
  const ModelConfig a = comparable(written), b = comparable(read);
  if (a == b) return "";
  if (a.hidden != b.hidden || a.vocab != b.vocab || a.layers.size() != b.layers.size()) return "sizes of the model";
  if (a.max_position != b.max_position) return "its context";
  if (a.norm_eps != b.norm_eps) return "the epsilon of its norms";
  if (a.ropes != b.ropes) return "its rope";
  if (a.eos_ids != b.eos_ids) return "the tokens that end a text";
  for (std::size_t l = 0; l < a.layers.size(); ++l) {
    const LayerSpec &one = a.layers[l], &other = b.layers[l];
    if (one == other) continue;
    if (!same_sizes(one, other)) return fmt::format("sizes of layer {}", l);
    if (one.attention.window != other.attention.window) return fmt::format("the attention window of layer {}", l);
    if (one.attention.rope != other.attention.rope) return fmt::format("the rope of layer {}", l);
    if (one.attention != other.attention) return fmt::format("the attention of layer {}", l);
    if (one.moe != other.moe) return fmt::format("the experts of layer {}", l);
    return fmt::format("layer {}", l);
  }
  return "scales of its embedding or logits";
}

}  // namespace millrace
