// What a model's attention, keys and values were like on a text: sections of a profile (activation_profile.h). Pure.
//
//   "attention": {"version": 1,
//     "layers": [{"layer": 0, "rows": 2976, "sinks": [a number a head], "recent": […], "between": […], "pages": […]},
//                …]},
//   "kv": {"version": 1,
//     "layers": [{"layer": 0, "rows": 65536, "keys": {"largest": [a number a kv head], "rms": […],
//                 "largest_ratio": […], "rms_ratio": […]}, "values": {…}}, …]}
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/result.h"

namespace millrace {

/// What version 1 means by its words, in positions.
inline constexpr std::int64_t kProfilePage = 16, kProfileSinks = 16, kProfileRecent = 64;
inline constexpr double kProfileMass = 0.9;

struct AttentionProfile {
  /// Means over some rows, for each query head. What a row gives to a sink of the model's own (AttendArgs::sinks),
  /// which is no position, is in the sum of the softmax and in none of these: shares may come to less than 1.
  struct Layer {
    std::int64_t layer = 0;  // of the model
    std::int64_t rows = 0;
    std::vector<double> sinks;    // share of the first positions,
    std::vector<double> recent;   // of the most recent, the row's own among them,
    std::vector<double> between;  // and of all others that it sees
    std::vector<double> pages;    // the fewest that have kProfileMass of what positions have
  };

  std::vector<Layer> layers;  // ascending

  /// Null where it has nothing of that layer of the model.
  [[nodiscard]] const Layer* of_layer(std::int64_t layer) const;
};

struct KvProfile {
  /// For each kv head.
  struct Numbers {
    std::vector<double> largest;  // magnitude
    std::vector<double> rms;      // root of the mean square
    // Of the channel in which it is largest, over the median of those that are not zero: what one scale suffers from.
    std::vector<double> largest_ratio, rms_ratio;
  };
  struct Layer {
    std::int64_t layer = 0;  // of the model; one that reads another layer's keys has none
    std::int64_t rows = 0;
    Numbers keys, values;
  };

  std::vector<Layer> layers;  // ascending
};

/// Errors name `where`, the section, and the place: another version, keys that are not known, numbers that are not what
/// they are for.
Result<AttentionProfile> parse_attention_profile(const nlohmann::ordered_json& section, const std::string& where);
Result<KvProfile> parse_kv_profile(const nlohmann::ordered_json& section, const std::string& where);

nlohmann::ordered_json attention_profile_json(const AttentionProfile& profile);
nlohmann::ordered_json kv_profile_json(const KvProfile& profile);

}  // namespace millrace
