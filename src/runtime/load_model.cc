#include "runtime/load_model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/reference/reference_backend.h"
#include "kv/page_layout.h"
#include "model/families/family.h"
#include "model/tensor_source.h"
#include "model/weight_loader.h"
#include "quant/codec.h"
#include "quant/kv_codec.h"
#include "runtime/model_fingerprint.h"

namespace millrace {

namespace {

constexpr std::int32_t kPageTokens = 16;

Result<std::unique_ptr<Backend>> make_backend(const LoadOptions& options) {
  if (options.backend == "reference") return make_reference_backend();
  if (options.backend == "cuda") return make_cuda_backend({.threads = options.threads});
  CpuBackendOptions cpu{.threads = options.threads};
  for (const IsaLevel level : kIsaLevels) {
    if (options.backend == fmt::format("cpu:{}", isa_level_name(level))) cpu.isa = level;
  }
  return make_cpu_backend(cpu);
}

Result<TensorSource> tensor_source(const LoadOptions& options, const Checkpoint& checkpoint) {
  if (options.dummy) return TensorSource::dummy(checkpoint.config());
  return TensorSource::of_checkpoint(checkpoint);
}

LinearFormat linear_format(const LoadOptions& options, const std::string& layer) {
  return {.input = options.compute,
          .codes = options.recipe.weights_of(layer),
          .integer_blocks = options.integer_blocks || options.recipe.byte_inputs,
          .byte_inputs = options.recipe.byte_inputs,
          .skip = options.recipe.activations ? options.recipe.activations->of_layer(layer) : InputSkip{}};
}

KvFormat kv_format(const LoadOptions& options) {
  return options.recipe.kv_format.value_or(options.compute == DType::bf16 ? KvFormat::bf16 : KvFormat::f32);
}

Status check_kv_format(const LoadOptions& options, const Backend& backend) {
  const auto formats = backend.kv_formats();
  if (std::ranges::find(formats, kv_format(options)) != formats.end()) return Ok{};
  return fail("keys and values in {}: the backend {} has {}", kv_format_name(kv_format(options)),
              backend.numeric_class().substr(0, backend.numeric_class().find('/')), kv_format_names(formats));
}

Status check_selection(const LoadOptions& options, const Backend& backend) {
  if (options.recipe.attention.reads_all() || backend.selects_pages()) return Ok{};
  return fail("the recipe's \"attention\": the backend {} cannot select what attention reads",
              backend.numeric_class().substr(0, backend.numeric_class().find('/')));
}

/// Where prompts are computed in blocks, a step must have room for one beside the sequences that answer, and for its
/// logits, which may be wanted.
Decoder::Limits step_limits(const LoadOptions& options, const ModelConfig& config) {
  Decoder::Limits limits = options.limits;
  bool selects = false;
  for (std::size_t l = 0; l < config.layers.size(); ++l) {
    selects = selects || layer_policy(config, options.recipe.attention, l).prefill.has_value();
  }
  if (!selects) return limits;
  limits.max_logit_rows += kQueryBlock;
  limits.max_rows = std::max((limits.max_rows + kQueryBlock - 1) / kQueryBlock * kQueryBlock, limits.max_logit_rows);
  return limits;
}

Status check_activations(const LoadOptions& options, const ModelPlan& plan) {
  const std::optional<InputSkipping>& wanted = options.recipe.activations;
  if (!wanted) return Ok{};
  if (!plan.backend->skips_inputs()) {
    const std::string backend = plan.backend->numeric_class();
    return fail("the recipe's \"activations\": the backend {} cannot leave out inputs",
                backend.substr(0, backend.find('/')));
  }
  if (wanted->profile_file.empty()) return Ok{};
  if (wanted->profile == nullptr) return fail("the profile {} was not read", wanted->profile_file);
  const std::string model = model_fingerprint(plan.checkpoint);
  if (wanted->profile->model == model) return Ok{};
  return fail("the profile {} is of another model ({}) than {} ({}): make one with `millrace calibrate`",
              wanted->profile_file, wanted->profile->model, options.path.string(), model);
}

/// That what a recipe says of activations is of layers that there are.
Status check_skipped_layers(const LoadOptions& options, const std::vector<std::string>& layers) {
  if (!options.recipe.activations) return Ok{};
  const InputSkipping& skipping = *options.recipe.activations;
  for (const ThresholdRule& rule : skipping.thresholds) {
    if (std::ranges::none_of(
            layers, [&](const auto& layer) { return skipping.covers(layer) && matches(rule.pattern, layer); })) {
      return fail("the recipe's pattern \"{}\" of \"activations\" matches no layer of {} that the method is for",
                  rule.pattern, options.path.string());
    }
  }
  for (const std::string& layer : layers) {
    if (!skipping.profile_file.empty() && skipping.covers(layer) && skipping.of_layer(layer) == InputSkip{}) {
      return fail("the profile {} has nothing of {}", skipping.profile_file, layer);
    }
  }
  if (std::ranges::none_of(layers, [&](const auto& layer) { return skipping.of_layer(layer) != InputSkip{}; })) {
    return fail("the recipe's \"activations\" are for no layer of {}", options.path.string());
  }
  return Ok{};
}

/// What the weights will take. The recipe must not name layers in vain.
Result<std::uint64_t> measure_weights(const LoadOptions& options, const ModelPlan& plan, const TensorSource& source) {
  std::vector<std::string> layers;
  WeightLoader loader(plan.config, plan.names, source, *plan.backend, {.input = options.compute},
                      [&](const std::string& layer) {
                        layers.push_back(layer);
                        return linear_format(options, layer);
                      });
  MILLRACE_TRY(const std::uint64_t bytes, loader.measure());
  for (const WeightRule& rule : options.recipe.weights) {
    const auto named = [&](const std::string& layer) { return matches(rule.pattern, layer); };
    if (std::ranges::none_of(layers, named)) {
      return fail("the recipe's pattern \"{}\" matches no linear layer of {}; it has layers such as {}", rule.pattern,
                  options.path.string(), layers.empty() ? "none" : layers.back());
    }
  }
  MILLRACE_CHECK_OK(check_skipped_layers(options, layers));
  return bytes;
}

/// GGUF files hold the factors of Llama 3's rope as a tensor: each frequency is divided by its own.
Status read_rope_factors(const Checkpoint& checkpoint, ModelConfig& config) {
  const StoredTensor* factors = checkpoint.find("rope_freqs.weight");
  if (factors == nullptr) return Ok{};
  for (RopeSpec& rope : config.ropes) {
    if (factors->format != QuantFormat::f32 || factors->elements() != rope.rotary_dim / 2) {
      return fail("{}: tensor rope_freqs.weight is not {} numbers of type f32", checkpoint.path(), rope.rotary_dim / 2);
    }
    rope.freq_divisors.resize(static_cast<std::size_t>(factors->elements()));
    dequantize(factors->format, factors->data.data(), rope.freq_divisors.data(), rope.freq_divisors.size());
    for (const float divisor : rope.freq_divisors) {
      if (!(divisor > 0.0f)) return fail("{}: tensor rope_freqs.weight holds {}", checkpoint.path(), divisor);
    }
  }
  return Ok{};
}

}  // namespace

std::string resolve_backend(const std::string& name) {
  if (name != "auto") return name;
  return cuda_available() ? "cuda" : "cpu";
}

Result<std::optional<Tokenizer>> load_tokenizer(const Checkpoint& checkpoint) {
  if (checkpoint.text().tokenizer_json.empty()) return std::optional<Tokenizer>();
  auto tokenizer = Tokenizer::from_json(checkpoint.text().tokenizer_json);
  if (!tokenizer.ok()) return fail("{}: {}", checkpoint.path(), tokenizer.error().message);
  return std::optional<Tokenizer>(std::move(*tokenizer));
}

Result<std::optional<ChatTemplate>> load_chat_template(const Checkpoint& checkpoint) {
  if (checkpoint.text().chat_template.empty()) return std::optional<ChatTemplate>();
  auto chat_template = ChatTemplate::create(checkpoint.text().chat_template, checkpoint.text().tokenizer_config);
  if (!chat_template.ok()) return fail("{}: chat template: {}", checkpoint.path(), chat_template.error().message);
  return std::optional<ChatTemplate>(std::move(*chat_template));
}

Result<ModelPlan> plan_model(const LoadOptions& options) {
  ModelPlan plan;
  MILLRACE_TRY(plan.checkpoint,
               options.dummy ? Checkpoint::open_config_only(options.path) : Checkpoint::open(options.path));
  const Checkpoint& checkpoint = plan.checkpoint;
  MILLRACE_TRY(plan.config, parse_model_config(checkpoint.config(), checkpoint.text().generation_config));
  MILLRACE_TRY(plan.names, parse_tensor_names(checkpoint.config(), plan.config));
  MILLRACE_CHECK_OK(read_rope_factors(checkpoint, plan.config));
  MILLRACE_TRY(plan.backend, make_backend(options));
  if (options.wrap_backend) plan.backend = options.wrap_backend(std::move(plan.backend));
  MILLRACE_CHECK_OK(check_kv_format(options, *plan.backend));
  MILLRACE_CHECK_OK(check_selection(options, *plan.backend));
  MILLRACE_CHECK_OK(check_activations(options, plan));
  MILLRACE_TRY(const TensorSource source, tensor_source(options, checkpoint));
  MILLRACE_TRY(plan.weight_bytes, measure_weights(options, plan, source));
  plan.workspace_bytes = Decoder::workspace_bytes(plan.config, step_limits(options, plan.config));
  plan.layout = make_page_layout(kv_shapes(plan.config, options.recipe.attention), kPageTokens, kv_format(options));
  return plan;
}

Result<LoadedModel> load_model(const LoadOptions& options) {
  MILLRACE_TRY(ModelPlan plan, plan_model(options));
  LoadedModel model;
  model.path = options.path.string();
  model.generation_config = plan.checkpoint.text().generation_config;
  MILLRACE_TRY(model.memory, plan_memory({.weights = plan.weight_bytes,
                                          .workspace = plan.workspace_bytes,
                                          .kv_page_row = plan.layout.bytes_per_page_row(),
                                          .page_tokens = kPageTokens,
                                          .max_position = plan.config.max_position,
                                          .available = plan.backend->free_memory(),
                                          .kv_memory = options.kv_memory,
                                          .weight_memory = options.weight_memory,
                                          .swap_memory = options.recipe.attention.keep
                                                             ? options.swap_memory.value_or(MemoryNeeds::kAnEighth)
                                                             : 0,
                                          .max_model_len = options.max_model_len,
                                          .sequences = options.sequences}));
  MILLRACE_TRY(model.tokenizer, load_tokenizer(plan.checkpoint));
  MILLRACE_TRY(model.chat_template, load_chat_template(plan.checkpoint));
  Backend& backend = *plan.backend;
  MILLRACE_TRY(const TensorSource source, tensor_source(options, plan.checkpoint));
  WeightLoader loader(plan.config, plan.names, source, backend, {.input = options.compute},
                      [&](const std::string& layer) { return linear_format(options, layer); });
  MILLRACE_TRY(ModelWeights weights, loader.load(plan.weight_bytes, options.progress));
  const Decoder::Limits limits = step_limits(options, plan.config);
  MILLRACE_TRY(std::unique_ptr<Decoder> decoder,
               Decoder::create(std::move(plan.config), std::move(weights), backend, limits, options.recipe.attention));
  MILLRACE_TRY(std::unique_ptr<KvCache> cache,
               KvCache::create(plan.layout, model.memory.kv_pages, model.memory.swap_pages, backend));
  MILLRACE_TRY(model.runner, ModelRunner::create(std::move(plan.backend), std::move(decoder), std::move(cache),
                                                 model.memory.max_sequence_tokens));
  return model;
}

}  // namespace millrace
