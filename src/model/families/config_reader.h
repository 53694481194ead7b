// Reads a checkpoint's config with every value checked. The first thing that is wrong is remembered and reading goes on
// with harmless values, so that a family reads like a list of its fields; status() tells at the end.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "model/config.h"

namespace millrace {

/// A value in a message: short, and on one line whatever the file holds.
std::string shown(const nlohmann::json& value);

/// A key that is null counts as absent, as in transformers.
class ConfigReader {
 public:
  /// `config` must outlive the reader. A multimodal config's text_config is read first, then the config around it.
  explicit ConfigReader(const nlohmann::json& config);

  /// An integer in [low, high]; `fallback` where the key is absent, an error where there is none.
  std::int64_t integer(std::string_view key, std::optional<std::int64_t> fallback, std::int64_t low, std::int64_t high);
  /// A count of something that exists: 1 to 2^31 - 1.
  std::int64_t count(std::string_view key, std::optional<std::int64_t> fallback = std::nullopt);
  /// A finite number, of which `positive` demands more than 0.
  double number(std::string_view key, std::optional<double> fallback, bool positive = true);
  bool flag(std::string_view key, bool fallback);
  std::string text(std::string_view key, std::optional<std::string> fallback);
  /// Empty where the key is absent.
  std::vector<double> numbers(std::string_view key);
  std::vector<std::int64_t> integers(std::string_view key);
  std::vector<std::string> texts(std::string_view key);

  /// The value of a key; null where it is absent or null.
  [[nodiscard]] const nlohmann::json* find(std::string_view key) const;
  /// Whether there is a text_config with a config around it.
  [[nodiscard]] bool wrapped() const { return outer_ != nullptr; }
  /// A flag of the config around the text_config, whatever that says.
  bool outer_flag(std::string_view key, bool fallback);
  [[nodiscard]] bool has(std::string_view key) const { return find(key) != nullptr; }
  /// True where the key is there and null, which some families tell from its absence.
  [[nodiscard]] bool is_null(std::string_view key) const;
  /// The object under a key, or null; an error where it is something else.
  const nlohmann::json* object(std::string_view key);

  /// Remembers `message` unless an earlier one is kept.
  void reject(std::string message);
  [[nodiscard]] Status status() const;

 private:
  struct Alone {};
  ConfigReader(const nlohmann::json& config, Alone /*without text_config*/) : inner_(&config) {}

  const nlohmann::json* inner_;
  const nlohmann::json* outer_ = nullptr;
  std::string message_;
};

/// Where a family differs from the rule in what its config may leave out. Absent: the key is required.
struct ConfigDefaults {
  std::optional<std::int64_t> vocab = {}, hidden = {}, intermediate = {}, heads = {};
  std::optional<std::int64_t> kv_heads = {}, head_dim = {};  // absent: heads, hidden / heads
  std::int64_t max_position = 2048;
  // Where a family takes the length that its rope was trained with from, if its config does not say: absent, from the
  // rope's parameters, else max_position.
  std::optional<std::int64_t> original_max_position = {};
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  double norm_eps = 1e-6;
  bool tied_head = false;
  std::string activation_key = "hidden_act";
  std::string activation = "silu";
};

/// Refuses heads that are wider, all together, than any model's.
void check_heads(ConfigReader& reader, std::int64_t heads, std::int64_t head_dim);

/// What nearly every family has: sizes, and as many equal layers with full attention, scale 1 / sqrt(head_dim), a dense
/// gated feed-forward and no rotation yet.
ModelConfig read_base(ConfigReader& reader, const ConfigDefaults& defaults);

/// The rotary embedding of a head, from rope_parameters (transformers 5) or rope_theta and rope_scaling (before).
/// `layer_type`: the key under which rope_parameters hold the layers' own ones; empty: they are for all layers.
RopeSpec read_rope(ConfigReader& reader, const ConfigDefaults& defaults, std::int32_t head_dim,
                   std::string_view layer_type = "");

/// The object that describes the rope, rope_scaling before rope_parameters, as in transformers; null where there is
/// none or an empty one.
const nlohmann::json* rope_parameters(ConfigReader& reader);

/// The experts of a layer, weighted by a softmax over all of them, normalised over the chosen.
MoeSpec read_moe(ConfigReader& reader, std::string_view experts_key, std::optional<std::int64_t> experts,
                 std::string_view top_k_key, std::optional<std::int64_t> top_k, std::string_view intermediate_key);

/// Adds a rope to the config, or finds an equal one that is there; returns its index.
std::int32_t add_rope(ModelConfig& config, const RopeSpec& rope);

/// One rope for all layers.
void set_rope(ModelConfig& config, const RopeSpec& rope);

/// sliding_window of a family that has one; 0 where it is absent, null or switched off.
std::int64_t read_window(ConfigReader& reader, std::optional<std::int64_t> fallback);

/// Which layers slide: layer_types, checked; where the config has none, what `is_sliding(layer)` says.
std::vector<bool> sliding_layers(ConfigReader& reader, std::size_t layers,
                                 const std::function<bool(std::size_t)>& is_sliding);

}  // namespace millrace
