// What attention reads of the past and what is kept of it, as a recipe says it; without one, everything.
#pragma once

#include <optional>

#include "recipe/block_selection.h"
#include "recipe/chunk_skipping.h"
#include "recipe/hyper_attention.h"
#include "recipe/kv_retention.h"
#include "recipe/page_budgets.h"
#include "recipe/page_selection.h"

namespace millrace {

struct AttentionPolicy {
  std::optional<BlockSelection> prefill = {};  // rows of prompts, or
  std::optional<HyperAttention> hyper = {};    // likewise: one of the two at most
  std::optional<PageSelection> decode = {};    // rows of answers,
  PageBudgets budgets = {};                    // which may read more in some layers than in others
  std::optional<KvRetention> keep = {};        // of all layers together
  std::optional<ChunkSkipping> skip = {};      // all rows

  /// Whether rows of prompts and of answers read in the same way.
  [[nodiscard]] bool reads_alike() const { return !prefill && !hyper && !decode && !keep; }
  [[nodiscard]] bool reads_all() const { return reads_alike() && !skip; }
};

}  // namespace millrace
