#include "runtime/load_model.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/reference/reference_backend.h"
#include "core/memory.h"
#include "kv/page_layout.h"
#include "model/families/family.h"
#include "model/tensor_source.h"
#include "model/weight_loader.h"
#include "quant/codec.h"
#include "quant/kv_codec.h"
#include "recipe/neuron_placement.h"
#include "runtime/attention_budgets.h"
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
          .skip = options.recipe.activations ? options.recipe.activations->of_layer(layer) : InputSkip{},
          .chosen_up = options.recipe.activations && options.recipe.activations->chooses_neurons_of(layer)};
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

/// Of a sequence, in any layer; 0: all. Where every layer has a window nothing else is dropped.
std::int64_t kept_tokens(const LoadOptions& options, const ModelConfig& config) {
  if (!options.recipe.attention.keep) return 0;
  std::int64_t most = options.recipe.attention.keep->tokens;
  bool sees_all = false;
  for (const LayerSpec& layer : config.layers) {
    sees_all = sees_all || layer.attention.window == 0;
    most = std::max(most, layer.attention.window + kPageTokens);
  }
  return sees_all ? most : 0;
}

std::int32_t groups_in_pool(const PageLayout& layout) {
  std::int32_t most = 1;
  for (const PoolShape& pool : layout.pools) most = std::max(most, pool.groups);
  return most;
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

std::string short_name(const Backend& backend) {
  const std::string name = backend.numeric_class();
  return name.substr(0, name.find('/'));
}

std::string feed_forward_name(std::size_t layer) {
  return fmt::format("model.layers.{}.mlp", layer);
}

/// Nothing for layers that have no dense feed-forward network, or whose profile is too dense to be worth it.
/// `resident`: how many neurons of each layer are in memory; empty: all.
std::optional<NeuronChoice> neuron_choice(const LoadOptions& options, const ModelConfig& config, std::size_t layer,
                                          const std::vector<std::int64_t>& resident) {
  if (!options.recipe.neurons || config.layers[layer].intermediate == 0) return std::nullopt;
  const NeuronSkipping& skipping = *options.recipe.neurons;
  NeuronChoice choice{
      .method = skipping.method, .density = skipping.density, .layer = static_cast<std::uint32_t>(layer)};
  if (skipping.method == NeuronMethod::predicted) {
    choice.profile = skipping.profiles->of_layer(feed_forward_name(layer));
    if (choice.profile->density > skipping.dense_above) return std::nullopt;
  }
  if (!resident.empty()) choice.resident = resident[layer];
  return choice;
}

Status check_neurons(const LoadOptions& options, const ModelPlan& plan) {
  if (!options.recipe.neurons) return Ok{};
  const NeuronSkipping& wanted = *options.recipe.neurons;
  if (!plan.backend->chooses_neurons()) {
    return fail("the recipe's \"activations\": the backend {} cannot choose neurons", short_name(*plan.backend));
  }
  if (wanted.method == NeuronMethod::imposed && !options.dummy) {
    return fail("the recipe's \"imposed\" neurons are made up: they are for --dummy weights alone");
  }
  if (wanted.method == NeuronMethod::predicted) {
    if (wanted.profiles == nullptr) return fail("the profile {} was not read", wanted.profile_file);
    const std::string model = model_fingerprint(plan.checkpoint);
    if (wanted.profiles->model != model) {
      return fail(
          "the profile {} is of another model ({}) than {} ({}): make one with `millrace calibrate --predictor`",
          wanted.profile_file, wanted.profiles->model, options.path.string(), model);
    }
  }
  if (std::ranges::none_of(plan.config.layers, [](const LayerSpec& layer) { return layer.intermediate > 0; })) {
    return fail("the recipe's \"activations\" are for no layer of {}", options.path.string());
  }
  for (std::size_t l = 0; l < plan.config.layers.size(); ++l) {
    const LayerSpec& layer = plan.config.layers[l];
    if (layer.intermediate == 0) continue;
    if (wanted.method == NeuronMethod::imposed) continue;
    if (!gives_zeros(layer.activation)) {
      return fail(
          "the recipe's \"activations\" choose neurons: the activation of {} gives no zeros, as relu or relu2 do",
          options.path.string());
    }
    if (wanted.method != NeuronMethod::predicted) continue;
    const auto profile = wanted.profiles->of_layer(feed_forward_name(l));
    if (profile == nullptr) return fail("the profile {} has nothing of {}", wanted.profile_file, feed_forward_name(l));
    if (profile->neurons() != layer.intermediate || profile->inputs != plan.config.hidden) {
      return fail("the profile {}: {} has {} neurons of {} inputs, the model {} of {}", wanted.profile_file,
                  profile->layer, profile->neurons(), profile->inputs, layer.intermediate, plan.config.hidden);
    }
  }
  return Ok{};
}

Status check_activation_functions(const ModelPlan& plan) {
  for (const LayerSpec& layer : plan.config.layers) {
    if (!plan.backend->activates(layer.activation)) {
      return fail("the backend {} does not have the activation of this model (relu or relu2)",
                  short_name(*plan.backend));
    }
  }
  return Ok{};
}

Status check_activations(const LoadOptions& options, const ModelPlan& plan) {
  MILLRACE_CHECK_OK(check_activation_functions(plan));
  MILLRACE_CHECK_OK(check_neurons(options, plan));
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

/// What the weights will take in memory, with as many neurons there as `resident` says.
Result<std::uint64_t> bytes_in_memory(const LoadOptions& options, const ModelPlan& plan, const TensorSource& source,
                                      const std::vector<std::int64_t>& resident) {
  WeightLoader loader(
      plan.config, plan.names, source, *plan.backend, {.input = options.compute},
      [&](const std::string& layer) { return linear_format(options, layer); },
      [&](std::size_t layer) { return neuron_choice(options, plan.config, layer, resident); });
  return loader.measure();
}

/// What each layer's neurons are, as far as they may be on disk; `others`: bytes of all other weights.
Result<std::vector<PlacedLayer>> placed_layers(const LoadOptions& options, const ModelPlan& plan,
                                               const TensorSource& source, std::uint64_t& others) {
  std::vector<std::int64_t> resident(plan.config.layers.size(), 0);
  MILLRACE_TRY(others, bytes_in_memory(options, plan, source, resident));
  std::vector<PlacedLayer> layers(resident.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto choice = neuron_choice(options, plan.config, l, {});
    if (!choice) continue;
    resident[l] = 1;
    MILLRACE_TRY(const std::uint64_t with_one, bytes_in_memory(options, plan, source, resident));
    resident[l] = 0;
    layers[l].neuron_bytes = with_one - others;
    if (layers[l].neuron_bytes == 0) continue;  // in matrices, which are among the others
    // What is imposed fires alike.
    layers[l].frequency.assign(static_cast<std::size_t>(plan.config.layers[l].intermediate), 1.0f);
    if (choice->profile != nullptr) {
      layers[l].frequency = choice->profile->frequency;
      std::ranges::sort(layers[l].frequency, std::greater());
    }
  }
  return layers;
}

/// Weights that are more than --weight-memory, of a model whose neurons are chosen: the ones that fire least go to
/// disk.
Status place_weights(const LoadOptions& options, const TensorSource& source, ModelPlan& plan) {
  if (options.weight_directory.empty()) return Ok{};
  if (!options.recipe.neurons || options.recipe.neurons->method == NeuronMethod::exact) {
    return fail("--weight-file: weights can be on disk where the recipe's \"activations\" predict neurons (hot_cold)");
  }
  if (!options.weight_memory) {
    return fail("--weight-file is for the neurons that --weight-memory does not hold: give that too");
  }
  if (plan.weight_bytes <= *options.weight_memory) return Ok{};
  std::uint64_t others = 0;
  MILLRACE_TRY(const std::vector<PlacedLayer> layers, placed_layers(options, plan, source, others));
  std::uint64_t largest = 0;
  for (const PlacedLayer& layer : layers) largest = std::max(largest, layer.neuron_bytes);
  // A part of what is left holds what was read last: what fires seldom fires several times in a row.
  constexpr std::uint64_t kLeastHeld = 256, kHeldShare = 8;
  const std::uint64_t least = kLeastHeld * largest;
  if (others + least > *options.weight_memory) {
    return fail("--weight-memory {}: weights other than neurons take {}, and {} are needed for those that are read",
                format_size(*options.weight_memory), format_size(others), format_size(least));
  }
  const std::uint64_t left = *options.weight_memory - others;
  plan.neuron_store = {
      .directory = options.weight_directory, .file_bytes = 0, .cache_bytes = std::max(least, left / kHeldShare)};
  constexpr std::int64_t kLeastOfLayer = 16;
  plan.resident_neurons = place_neurons(layers, left - plan.neuron_store.cache_bytes, kLeastOfLayer);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto on_disk = static_cast<std::uint64_t>(std::ssize(layers[l].frequency) - plan.resident_neurons[l]);
    plan.neuron_store.file_bytes += on_disk * layers[l].neuron_bytes;
  }
  MILLRACE_TRY(plan.weight_bytes, bytes_in_memory(options, plan, source, plan.resident_neurons));
  return Ok{};
}

/// What the weights will take. The recipe must not name layers in vain.
Result<std::uint64_t> measure_weights(const LoadOptions& options, const ModelPlan& plan, const TensorSource& source) {
  std::vector<std::string> layers;
  WeightLoader loader(
      plan.config, plan.names, source, *plan.backend, {.input = options.compute},
      [&](const std::string& layer) {
        layers.push_back(layer);
        return linear_format(options, layer);
      },
      [&](std::size_t layer) { return neuron_choice(options, plan.config, layer, {}); });
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
  if (options.swap_memory && !options.recipe.attention.keep) {
    return fail(
        "--swap-memory is for recipes that keep some of what sequences have (\"attention\": {{\"keep\": ...}})");
  }
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
  MILLRACE_TRY(plan.attention, attention_with_budgets(options, plan));
  MILLRACE_CHECK_OK(check_activations(options, plan));
  MILLRACE_TRY(const TensorSource source, tensor_source(options, checkpoint));
  MILLRACE_TRY(plan.weight_bytes, measure_weights(options, plan, source));
  MILLRACE_CHECK_OK(place_weights(options, source, plan));
  plan.workspace_bytes = Decoder::workspace_bytes(plan.config, step_limits(options, plan.config));
  plan.layout = make_page_layout(kv_shapes(plan.config, plan.attention), kPageTokens, kv_format(options));
  return plan;
}

Result<LoadedModel> load_model(const LoadOptions& options) {
  MILLRACE_TRY(ModelPlan plan, plan_model(options));
  LoadedModel model;
  model.path = options.path.string();
  model.generation_config = plan.checkpoint.text().generation_config;
  MILLRACE_TRY(model.memory, plan_memory({.weights = plan.weight_bytes + plan.neuron_store.cache_bytes,
                                          .workspace = plan.workspace_bytes,
                                          .kv_page_row = plan.layout.bytes_per_page_row(),
                                          .groups_in_pool = groups_in_pool(plan.layout),
                                          .page_tokens = kPageTokens,
                                          .max_position = plan.config.max_position,
                                          .available = plan.backend->free_memory(),
                                          .kv_memory = options.kv_memory,
                                          .weight_memory = options.weight_memory,
                                          .swap_memory = options.recipe.attention.keep
                                                             ? options.swap_memory.value_or(MemoryNeeds::kAnEighth)
                                                             : 0,
                                          .max_model_len = options.max_model_len,
                                          .kept_tokens = kept_tokens(options, plan.config),
                                          .sequences = options.sequences}));
  MILLRACE_TRY(model.tokenizer, load_tokenizer(plan.checkpoint));
  MILLRACE_TRY(model.chat_template, load_chat_template(plan.checkpoint));
  Backend& backend = *plan.backend;
  MILLRACE_TRY(const TensorSource source, tensor_source(options, plan.checkpoint));
  WeightLoader loader(
      plan.config, plan.names, source, backend, {.input = options.compute},
      [&](const std::string& layer) { return linear_format(options, layer); },
      [&](std::size_t layer) { return neuron_choice(options, plan.config, layer, plan.resident_neurons); });
  if (!plan.resident_neurons.empty()) MILLRACE_CHECK_OK(backend.open_neuron_store(plan.neuron_store));
  MILLRACE_TRY(ModelWeights weights, loader.load(plan.weight_bytes, options.progress));
  const Decoder::Limits limits = step_limits(options, plan.config);
  AttentionPolicy& attention = plan.attention;
  if (attention.keep && model.memory.max_sequence_tokens > plan.config.max_position) {
    attention.keep->context = plan.config.max_position;
  }
  MILLRACE_TRY(std::unique_ptr<Decoder> decoder,
               Decoder::create(std::move(plan.config), std::move(weights), backend, limits, attention));
  MILLRACE_TRY(std::unique_ptr<KvCache> cache,
               KvCache::create(plan.layout, model.memory.kv_pages, model.memory.swap_pages, backend));
  MILLRACE_TRY(model.runner, ModelRunner::create(
                                 std::move(plan.backend), std::move(decoder), std::move(cache),
                                 {.all = model.memory.max_sequence_tokens, .prompt = model.memory.max_prompt_tokens}));
  return model;
}

}  // namespace millrace
