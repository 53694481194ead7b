// How the memory of a node is shared out before anything is loaded. What does not fit is refused here, with the
// figures.
#pragma once

#include <cstdint>
#include <optional>

#include "core/result.h"

namespace millrace {

struct MemoryNeeds {
  std::uint64_t weights = 0;        // bytes of the packed weights
  std::uint64_t workspace = 0;      // bytes of activations
  std::uint64_t kv_page_row = 0;    // bytes of one page in every cache group
  std::int32_t groups_in_pool = 1;  // the most cache groups that take pages from one pool
  std::int32_t page_tokens = 16;
  std::int64_t max_position = 0;                                    // the model's context
  std::uint64_t available = 0;                                      // bytes that the machine has left
  std::optional<std::uint64_t> kv_memory = {}, weight_memory = {};  // what the operator set
  static constexpr std::uint64_t kAnEighth = ~std::uint64_t{0};
  std::uint64_t swap_memory = 0;  // of the KV memory, bytes for sequences that wait
  std::optional<std::int64_t> max_model_len = {};
  // Of a sequence that answers, positions that stay in memory beside those of a page; 0: all of them. Answers may go on
  // beyond the model's context then, where max_model_len says so.
  std::int64_t kept_tokens = 0;
  std::int64_t sequences = 1;  // that run at once
};

struct MemoryPlan {
  std::uint64_t weights = 0, workspace = 0, kv = 0;
  std::int32_t kv_pages = 0;                                    // for each cache group
  std::int32_t swap_pages = 0;                                  // and behind them
  std::int64_t max_sequence_tokens = 0, max_prompt_tokens = 0;  // prompt and answer together, prompt alone
};

/// KV memory: what the operator set; else enough for all sequences at the longest length allowed, but at most half of
/// what weights and activations leave, and enough for one where max_model_len asks for its length. Errors name every
/// figure that matters.
Result<MemoryPlan> plan_memory(const MemoryNeeds& needs);

}  // namespace millrace
