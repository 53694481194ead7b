// What attention reads of the past, as a recipe says it; without one, everything.
#pragma once

#include <optional>

#include "recipe/block_selection.h"
#include "recipe/hyper_attention.h"
#include "recipe/page_selection.h"

namespace millrace {

struct AttentionPolicy {
  std::optional<BlockSelection> prefill = {};  // rows of prompts, or
  std::optional<HyperAttention> hyper = {};    // likewise: one of the two at most
  std::optional<PageSelection> decode = {};    // rows of answers

  [[nodiscard]] bool reads_all() const { return !prefill && !hyper && !decode; }
};

}  // namespace millrace
