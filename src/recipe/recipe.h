// Recipe: the lossy methods of one model on one kind of hardware, as a file says them. Pure.
//
//   {"millrace_recipe": 1, "weights": {"default": "int8", "model.layers.0.*": "stored"}, "kv": {"format": "int8"},
//    "attention": {"prefill": {"select": "xattention", "mass": 0.9}, "decode": {"select": "quest", "tokens": 1024}}}
//
// "weights" says the format of each linear layer by its name (model/weight_builder.h). Of the patterns that match, in
// which * stands for any text, the last one decides; "default" is for what none matches. A default of 4 bits makes the
// head (lm_head) int8, or int8.a16: it is the layer that rounding harms most, and there is one of it. "inputs": "int8"
// rounds inputs of layers that stay as they are stored, where that is as integer codes, also where the checkpoint does
// not ask for it. "kv" says the format of keys and values; without it they have that of the computation. "attention"
// says what rows of prompts ("prefill", recipe/block_selection.h, recipe/hyper_attention.h) and of answers ("decode",
// recipe/page_selection.h) read of the past, and what is kept of it ("keep", recipe/kv_retention.h); without it they
// read everything, and all is kept. "activations" says which inputs of linear layers rows of answers leave out
// (recipe/input_skipping.h): {"method": "teal", "profile": "FILE", "density": 0.5}, or {"method": "teal",
// "thresholds": {"*": 0.02}}, or by lot {"method": "teal", "imposed": 0.5}; or which neurons they compute
// (recipe/neuron_choice.h): {"method": "hot_cold", "profile": "FILE"}, {"method": "hot_cold", "imposed": 0.1}, or
// {"method": "relu"}.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "quant/codes.h"
#include "quant/kv_format.h"
#include "recipe/attention_policy.h"
#include "recipe/input_skipping.h"
#include "recipe/neuron_choice.h"

namespace millrace {

/// How the weights of a linear layer are held. Nothing: as they are stored.
using WeightFormat = std::optional<CodeFormat>;

struct WeightRule {
  std::string pattern;
  WeightFormat format;
};

struct Recipe {
  WeightFormat default_weights;
  std::vector<WeightRule> weights;  // in the order of the file
  std::optional<KvFormat> kv_format;
  AttentionPolicy attention;
  std::optional<InputSkipping> activations;
  std::optional<NeuronSkipping> neurons;  // of "activations" too, which say one of the two
  bool byte_inputs = false;               // of layers that stay as stored

  [[nodiscard]] WeightFormat weights_of(std::string_view layer) const;
  [[nodiscard]] bool lossless() const;
};

/// Errors name `name` and the place: not JSON, another version, a key or a format that is not known. A recipe never
/// half-applies.
Result<Recipe> parse_recipe(std::string_view text, const std::string& name);

/// Whether `pattern`, in which * stands for any text, matches all of `text`.
bool matches(std::string_view pattern, std::string_view text);

}  // namespace millrace
