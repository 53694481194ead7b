#include <algorithm>
#include <cmath>

#include "model/families/config_reader.h"

namespace millrace {

namespace {

/// The object that describes the rope, whichever transformers wrote it, and the keys around it.
class RopeParameters {
 public:
  RopeParameters(ConfigReader& reader, std::string_view layer_type) : reader_(&reader) {
    const nlohmann::json* parameters = rope_parameters(reader);
    if (parameters != nullptr && !layer_type.empty()) {
      const auto own = parameters->find(layer_type);
      if (own != parameters->end()) {
        nested_ = true;
        parameters = own->is_object() ? &*own : nullptr;
      }
    }
    if (parameters != nullptr) parameters_ = ConfigReader(*parameters);
  }

  RopeParameters(const RopeParameters&) = delete;  // parameters_ may point into it
  RopeParameters& operator=(const RopeParameters&) = delete;

  ConfigReader& own() { return parameters_; }
  [[nodiscard]] bool nested() const { return nested_; }

  /// A number of the rope itself, or of the config around it.
  double number(std::string_view key, double fallback) {
    return parameters_.has(key) ? parameters_.number(key, fallback) : reader_->number(key, fallback);
  }

 private:
  ConfigReader* reader_;
  nlohmann::json none_ = nlohmann::json::object();
  ConfigReader parameters_{none_};
  bool nested_ = false;
};

std::optional<RopeScaling> scaling_from_name(const std::string& name) {
  if (name == "default" || name == "mrope") return RopeScaling::none;
  if (name == "linear") return RopeScaling::linear;
  if (name == "dynamic") return RopeScaling::dynamic;
  if (name == "llama3") return RopeScaling::llama3;
  if (name == "yarn") return RopeScaling::yarn;
  if (name == "longrope" || name == "su") return RopeScaling::longrope;
  if (name == "proportional") return RopeScaling::proportional;
  return std::nullopt;
}

std::vector<double> factors(ConfigReader& own, std::string_view key, std::int32_t rotary_dim) {
  std::vector<double> list = own.numbers(key);
  if (list.size() != static_cast<std::size_t>(rotary_dim / 2)) {
    own.reject(fmt::format("config: rope: \"{}\" has {} numbers, expected {}", key, list.size(), rotary_dim / 2));
  }
  for (const double factor : list) {
    if (!(factor > 0.0 && factor < 1e30)) own.reject(fmt::format("config: rope: \"{}\" holds {}", key, factor));
  }
  return list;
}

void read_scaling(RopeParameters& parameters, RopeSpec& rope) {
  ConfigReader& own = parameters.own();
  const auto context = static_cast<double>(rope.max_position);
  switch (rope.scaling) {
    case RopeScaling::none:
      return;
    case RopeScaling::linear:
      rope.factor = own.number("factor", std::nullopt);
      return;
    case RopeScaling::proportional:
      rope.factor = own.number("factor", 1.0);
      return;
    case RopeScaling::dynamic:
      rope.factor = own.number("factor", std::nullopt);
      if (rope.rotary_dim < 4)
        own.reject(fmt::format("config: rope: dynamic needs more than {} dims", rope.rotary_dim));
      return;
    case RopeScaling::llama3:
      rope.factor = own.number("factor", std::nullopt);
      rope.low_freq_factor = own.number("low_freq_factor", std::nullopt);
      rope.high_freq_factor = own.number("high_freq_factor", std::nullopt);
      if (rope.high_freq_factor <= rope.low_freq_factor) {
        own.reject(fmt::format("config: rope: high_freq_factor {} is not above low_freq_factor {}",
                               rope.high_freq_factor, rope.low_freq_factor));
      }
      return;
    case RopeScaling::yarn:
      rope.factor = own.number("factor", context / static_cast<double>(rope.original_max_position));
      rope.attention_factor = own.number("attention_factor", 0.0);
      rope.beta_fast = own.number("beta_fast", 32.0);
      rope.beta_slow = own.number("beta_slow", 1.0);
      rope.mscale = own.number("mscale", 0.0, false);
      rope.mscale_all_dim = own.number("mscale_all_dim", 0.0, false);
      rope.truncate = own.flag("truncate", true);
      return;
    case RopeScaling::longrope:
      rope.factor = own.number("factor", context / static_cast<double>(rope.original_max_position));
      rope.attention_factor = own.number("attention_factor", 0.0);
      rope.short_factor = factors(own, "short_factor", rope.rotary_dim);
      rope.long_factor = factors(own, "long_factor", rope.rotary_dim);
      return;
  }
}

}  // namespace

const nlohmann::json* rope_parameters(ConfigReader& reader) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const nlohmann::json* parameters = reader.object(key);
    if (parameters != nullptr && !parameters->empty()) return parameters;
  }
  return nullptr;
}

RopeSpec read_rope(ConfigReader& reader, const ConfigDefaults& defaults, std::int32_t head_dim,
                   std::string_view layer_type) {
  RopeParameters parameters(reader, layer_type);
  ConfigReader& own = parameters.own();
  RopeSpec rope;
  rope.max_position = reader.count("max_position_embeddings", defaults.max_position);
  const std::string type = own.text(own.has("rope_type") ? "rope_type" : "type", "default");
  if (const auto scaling = scaling_from_name(type)) {
    rope.scaling = *scaling;
  } else {
    reader.reject(fmt::format(
        "config: rope type {} is not supported (default, linear, dynamic, llama3, yarn, longrope, proportional)",
        shown(type)));
  }
  rope.theta = parameters.number("rope_theta", defaults.theta);
  if (!(rope.theta > 1.0)) reader.reject(fmt::format("config: rope_theta is {}, expected more than 1", rope.theta));
  rope.partial_rotary_factor = parameters.number("partial_rotary_factor", defaults.partial_rotary_factor);
  if (rope.partial_rotary_factor > 1.0) {
    reader.reject(fmt::format("config: partial_rotary_factor is {}, expected up to 1", rope.partial_rotary_factor));
    rope.partial_rotary_factor = 1.0;
  }
  rope.rotary_dim = rope.scaling == RopeScaling::proportional
                        ? head_dim
                        : static_cast<std::int32_t>(head_dim * rope.partial_rotary_factor);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0) {
    reader.reject(fmt::format("config: {} rotated dims of a head of {}: expected an even number, 2 or more",
                              rope.rotary_dim, head_dim));
    rope.rotary_dim = 2;
  }
  // The share says nothing beyond rotary_dim, except where the pairs that stand still are spread over the head.
  if (rope.scaling != RopeScaling::proportional) rope.partial_rotary_factor = 1.0;

  // Some have the original length beside the rope's parameters, and there it counts.
  ConfigReader& holder = reader.has("original_max_position_embeddings") && !parameters.nested() ? reader : own;
  rope.original_max_position = defaults.original_max_position
                                   ? reader.count("original_max_position_embeddings", defaults.original_max_position)
                                   : holder.count("original_max_position_embeddings", rope.max_position);
  const bool needs_original =
      rope.scaling == RopeScaling::llama3 || rope.scaling == RopeScaling::yarn || rope.scaling == RopeScaling::longrope;
  if (!needs_original) rope.original_max_position = rope.max_position;
  read_scaling(parameters, rope);
  if (const Status status = own.status(); !status.ok()) reader.reject(status.error().message);
  return rope;
}

}  // namespace millrace
