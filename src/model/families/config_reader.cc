#include "model/families/config_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace {

namespace {

constexpr std::int64_t kMaxCount = 2147483647;
constexpr std::int64_t kMaxLayers = 8192;
constexpr std::int64_t kMaxHeads = 65536;
constexpr std::int64_t kMaxExperts = 4096;
constexpr std::int64_t kMaxHeadDim = 65536;
constexpr std::int64_t kMaxAttentionWidth = 1 << 20;  // heads times head_dim

std::optional<Activation> activation_from_name(const std::string& name) {
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_fast") return Activation::gelu_tanh;
  if (name == "gelu") return Activation::gelu_erf;
  if (name == "relu") return Activation::relu;
  if (name == "relu2") return Activation::relu2;
  return std::nullopt;
}

}  // namespace

std::string shown(const nlohmann::json& value) {
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

ConfigReader::ConfigReader(const nlohmann::json& config) : inner_(&config) {
  if (!config.is_object()) {
    reject("the config is not a JSON object");
    return;
  }
  if (const auto text = config.find("text_config"); text != config.end() && text->is_object()) {
    inner_ = &*text;
    outer_ = &config;
  }
}

const nlohmann::json* ConfigReader::find(std::string_view key) const {
  for (const nlohmann::json* config : {inner_, outer_}) {
    if (config == nullptr || !config->is_object()) continue;
    const auto found = config->find(key);
    if (found != config->end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

bool ConfigReader::is_null(std::string_view key) const {
  const auto found = inner_->is_object() ? inner_->find(key) : inner_->end();
  return found != inner_->end() && found->is_null();
}

bool ConfigReader::outer_flag(std::string_view key, bool fallback) {
  if (outer_ == nullptr) return flag(key, fallback);
  ConfigReader outer(*outer_, Alone{});
  const bool value = outer.flag(key, fallback);
  if (const Status status = outer.status(); !status.ok()) reject(status.error().message);
  return value;
}

const nlohmann::json* ConfigReader::object(std::string_view key) {
  const nlohmann::json* value = find(key);
  if (value != nullptr && !value->is_object()) {
    reject(fmt::format("config: \"{}\" is {}, expected an object", key, shown(*value)));
    return nullptr;
  }
  return value;
}

void ConfigReader::reject(std::string message) {
  if (message_.empty()) message_ = std::move(message);
}

Status ConfigReader::status() const {
  if (!message_.empty()) return Error{message_};
  return Ok{};
}

std::int64_t ConfigReader::integer(std::string_view key, std::optional<std::int64_t> fallback, std::int64_t low,
                                   std::int64_t high) {
  const nlohmann::json* value = find(key);
  if (value == nullptr) {
    if (!fallback) reject(fmt::format("config: \"{}\" is missing", key));
    return fallback.value_or(low);
  }
  // Some exporters write whole numbers as floats.
  const bool whole = value->is_number_float() && std::fabs(value->get<double>()) < 9e15 &&
                     std::floor(value->get<double>()) == value->get<double>();
  const bool fits =
      value->is_number_integer() &&
      !(value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX));
  if (fits || whole) {
    const auto number = whole ? static_cast<std::int64_t>(value->get<double>()) : value->get<std::int64_t>();
    if (number >= low && number <= high) return number;
  }
  reject(fmt::format("config: \"{}\" is {}, expected a whole number from {} to {}", key, shown(*value), low, high));
  return low;
}

std::int64_t ConfigReader::count(std::string_view key, std::optional<std::int64_t> fallback) {
  return integer(key, fallback, 1, kMaxCount);
}

double ConfigReader::number(std::string_view key, std::optional<double> fallback, bool positive) {
  const nlohmann::json* value = find(key);
  const double harmless = fallback.value_or(1.0);
  if (value == nullptr) {
    if (!fallback) reject(fmt::format("config: \"{}\" is missing", key));
    return harmless;
  }
  if (value->is_number()) {
    const auto number = value->get<double>();
    if (std::isfinite(number) && std::fabs(number) < 1e30 && (!positive || number > 0.0)) return number;
  }
  reject(fmt::format("config: \"{}\" is {}, expected a {}number", key, shown(*value), positive ? "positive " : ""));
  return harmless;
}

bool ConfigReader::flag(std::string_view key, bool fallback) {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) reject(fmt::format("config: \"{}\" is {}, expected true or false", key, shown(*value)));
  return value->is_boolean() ? value->get<bool>() : fallback;
}

std::string ConfigReader::text(std::string_view key, std::optional<std::string> fallback) {
  const nlohmann::json* value = find(key);
  if (value == nullptr) {
    if (!fallback) reject(fmt::format("config: \"{}\" is missing", key));
    return fallback.value_or("");
  }
  if (!value->is_string()) {
    reject(fmt::format("config: \"{}\" is {}, expected a string", key, shown(*value)));
    return fallback.value_or("");
  }
  return value->get<std::string>();
}

std::vector<double> ConfigReader::numbers(std::string_view key) {
  const nlohmann::json* value = find(key);
  std::vector<double> result;
  if (value == nullptr) return result;
  const bool good = value->is_array() && std::all_of(value->begin(), value->end(), [](const nlohmann::json& element) {
                      return element.is_number() && std::isfinite(element.get<double>());
                    });
  if (!good) {
    reject(fmt::format("config: \"{}\" is {}, expected a list of numbers", key, shown(*value)));
    return result;
  }
  for (const nlohmann::json& element : *value) result.push_back(element.get<double>());
  return result;
}

std::vector<std::int64_t> ConfigReader::integers(std::string_view key) {
  std::vector<std::int64_t> result;
  for (const double number : numbers(key)) {
    if (std::floor(number) != number || std::fabs(number) > 1e9) {
      reject(fmt::format("config: \"{}\" holds {}, expected whole numbers", key, number));
      return {};
    }
    result.push_back(static_cast<std::int64_t>(number));
  }
  return result;
}

std::vector<std::string> ConfigReader::texts(std::string_view key) {
  const nlohmann::json* value = find(key);
  std::vector<std::string> result;
  if (value == nullptr) return result;
  const bool good = value->is_array() && std::all_of(value->begin(), value->end(),
                                                     [](const nlohmann::json& element) { return element.is_string(); });
  if (!good) {
    reject(fmt::format("config: \"{}\" is {}, expected a list of strings", key, shown(*value)));
    return result;
  }
  for (const nlohmann::json& element : *value) result.push_back(element.get<std::string>());
  return result;
}

void check_heads(ConfigReader& reader, std::int64_t heads, std::int64_t head_dim) {
  if (heads * head_dim > kMaxAttentionWidth) {
    reader.reject(fmt::format("config: {} heads of {} are more than {} in all", heads, head_dim, kMaxAttentionWidth));
  }
}

ModelConfig read_base(ConfigReader& reader, const ConfigDefaults& defaults) {
  ModelConfig config;
  config.hidden = reader.integer("hidden_size", defaults.hidden, 1, std::int64_t{1} << 24);
  config.vocab = reader.count("vocab_size", defaults.vocab);
  config.max_position = reader.count("max_position_embeddings", defaults.max_position);
  config.norm_eps = static_cast<float>(reader.number("rms_norm_eps", defaults.norm_eps));
  config.tied_head = reader.wrapped() ? reader.outer_flag("tie_word_embeddings", true)
                                      : reader.flag("tie_word_embeddings", defaults.tied_head);

  LayerSpec layer;
  const std::string activation = reader.text(defaults.activation_key, defaults.activation);
  if (const auto known = activation_from_name(activation)) {
    layer.activation = *known;
  } else {
    reader.reject(
        fmt::format("config: \"{}\" is {}, expected one of silu, swish, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, "
                    "relu, relu2",
                    defaults.activation_key, shown(activation)));
  }
  layer.intermediate = reader.integer("intermediate_size", defaults.intermediate, 1, std::int64_t{1} << 24);
  AttentionSpec& attention = layer.attention;
  attention.heads = static_cast<std::int32_t>(reader.integer("num_attention_heads", defaults.heads, 1, kMaxHeads));
  const bool as_many = reader.is_null("num_key_value_heads") || !defaults.kv_heads;
  attention.kv_heads = static_cast<std::int32_t>(
      reader.integer("num_key_value_heads", as_many ? attention.heads : *defaults.kv_heads, 1, kMaxHeads));
  const std::int64_t even_share = std::max<std::int64_t>(1, config.hidden / attention.heads);
  attention.head_dim =
      static_cast<std::int32_t>(reader.integer("head_dim", defaults.head_dim.value_or(even_share), 1, kMaxHeadDim));
  check_heads(reader, attention.heads, attention.head_dim);
  attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(attention.head_dim)));
  if (attention.heads % attention.kv_heads != 0) {
    reader.reject(fmt::format("config: {} attention heads are no multiple of {} key-value heads", attention.heads,
                              attention.kv_heads));
  }
  config.layers.assign(static_cast<std::size_t>(reader.integer("num_hidden_layers", std::nullopt, 1, kMaxLayers)),
                       layer);
  return config;
}

MoeSpec read_moe(ConfigReader& reader, std::string_view experts_key, std::optional<std::int64_t> experts,
                 std::string_view top_k_key, std::optional<std::int64_t> top_k, std::string_view intermediate_key) {
  MoeSpec moe;
  moe.experts = static_cast<std::int32_t>(reader.integer(experts_key, experts, 1, kMaxExperts));
  moe.top_k = static_cast<std::int32_t>(reader.integer(top_k_key, top_k, 1, kMaxExperts));
  moe.intermediate = reader.integer(intermediate_key, std::nullopt, 1, std::int64_t{1} << 24);
  if (moe.top_k > moe.experts) {
    reader.reject(fmt::format("config: \"{}\" is {}, but there are {} experts", top_k_key, moe.top_k, moe.experts));
  }
  return moe;
}

std::int32_t add_rope(ModelConfig& config, const RopeSpec& rope) {
  const auto found = std::find(config.ropes.begin(), config.ropes.end(), rope);
  const auto index = static_cast<std::int32_t>(found - config.ropes.begin());
  if (found == config.ropes.end()) config.ropes.push_back(rope);
  return index;
}

void set_rope(ModelConfig& config, const RopeSpec& rope) {
  // Scaling exists to go beyond the context that the model was trained with. Some configs name the context that it
  // gives, some the one that it starts from.
  const double factor = std::max(rope.factor, 1.0);
  auto context = static_cast<double>(config.max_position);
  if (rope.scaling == RopeScaling::dynamic || rope.scaling == RopeScaling::linear) context *= factor;
  if (rope.scaling == RopeScaling::yarn) {
    context = std::max(context, static_cast<double>(rope.original_max_position) * factor);
  }
  config.max_position = static_cast<std::int64_t>(std::min(context, static_cast<double>(kMaxCount)));
  const std::int32_t index = add_rope(config, rope);
  for (LayerSpec& layer : config.layers) layer.attention.rope = index;
}

std::int64_t read_window(ConfigReader& reader, std::optional<std::int64_t> fallback) {
  if (reader.is_null("sliding_window")) return 0;
  if (!reader.has("sliding_window")) return fallback.value_or(0);
  return reader.integer("sliding_window", std::nullopt, 1, kMaxCount);
}

std::vector<bool> sliding_layers(ConfigReader& reader, std::size_t layers,
                                 const std::function<bool(std::size_t)>& is_sliding) {
  std::vector<bool> sliding(layers);
  const std::vector<std::string> types = reader.texts("layer_types");
  if (types.empty()) {
    for (std::size_t l = 0; l < layers; ++l) sliding[l] = is_sliding(l);
    return sliding;
  }
  if (types.size() != layers) {
    reader.reject(fmt::format("config: \"layer_types\" has {} entries for {} layers", types.size(), layers));
    return sliding;
  }
  for (std::size_t l = 0; l < layers; ++l) {
    sliding[l] = types[l] == "sliding_attention";
    if (!sliding[l] && types[l] != "full_attention") {
      reader.reject(fmt::format("config: layer {} is of type {}, expected full_attention or sliding_attention", l,
                                shown(types[l])));
    }
  }
  return sliding;
}

}  // namespace millrace
