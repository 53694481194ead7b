#include "runtime/memory_plan.h"

#include <algorithm>
#include <limits>

#include "core/memory.h"

namespace millrace {

namespace {

/// Hostile configs ask for more than 64 bits count. What is capped here is far beyond any machine, and refused as such.
constexpr std::uint64_t kEnough = std::uint64_t{1} << 62;

std::uint64_t sum(std::uint64_t a, std::uint64_t b) {
  return std::min(kEnough, std::min(kEnough, a) + std::min(kEnough, b));
}

std::uint64_t product(std::uint64_t a, std::uint64_t b) {
  return a != 0 && b > kEnough / a ? kEnough : a * b;
}

std::uint64_t pages_for(std::int64_t tokens, std::int32_t page_tokens) {
  return static_cast<std::uint64_t>((tokens + page_tokens - 1) / page_tokens);
}

constexpr std::int64_t kLongest = std::int64_t{1} << 40;  // tokens of a sequence

}  // namespace

Result<MemoryPlan> plan_memory(const MemoryNeeds& needs) {
  if (needs.weight_memory && needs.weights > *needs.weight_memory) {
    return fail("the weights take {}, more than the {} of --weight-memory", format_size(needs.weights),
                format_size(*needs.weight_memory));
  }
  const std::uint64_t fixed = sum(needs.weights, needs.workspace);
  if (fixed > needs.available) {
    return fail("the model needs {} ({} of weights, {} of activations), but only {} of memory is available",
                format_size(fixed), format_size(needs.weights), format_size(needs.workspace),
                format_size(needs.available));
  }
  if (needs.max_model_len && *needs.max_model_len < 1) {
    return fail("--max-model-len is {}, expected 1 or more", *needs.max_model_len);
  }
  const bool beyond = needs.kept_tokens > 0 && needs.max_model_len.value_or(0) > needs.max_position;
  if (beyond && needs.kept_tokens + needs.page_tokens > needs.max_position / needs.page_tokens * needs.page_tokens) {
    return fail(
        "--max-model-len {} is more than the model's context of {} tokens: what stays of a sequence with this recipe, "
        "{} "
        "and a page of {}, must fit into it",
        *needs.max_model_len, needs.max_position, needs.kept_tokens, needs.page_tokens);
  }
  const std::int64_t wanted_tokens = std::min(needs.max_model_len.value_or(needs.max_position), needs.max_position);
  const std::int64_t wanted_positions = wanted_tokens + (beyond ? needs.page_tokens : 0);  // a page of the answer
  const std::uint64_t wanted = product(pages_for(wanted_positions, needs.page_tokens), needs.kv_page_row);
  const std::uint64_t left = needs.available - fixed;
  const std::uint64_t for_all = std::min(product(wanted, static_cast<std::uint64_t>(needs.sequences)), left / 2);
  const std::uint64_t budget = needs.kv_memory.value_or(needs.max_model_len ? std::max(wanted, for_all) : for_all);
  if (budget > left) {
    return fail("{} of KV memory do not fit: {} of memory is available, weights and activations take {}",
                format_size(budget), format_size(needs.available), format_size(fixed));
  }
  // What nobody asked for does not stand in the way of the longest sequence.
  const bool by_memory = needs.kv_memory && !needs.max_model_len;
  const std::uint64_t to_spare = by_memory ? budget : budget - std::min(budget, wanted);
  const std::uint64_t swap =
      needs.swap_memory == MemoryNeeds::kAnEighth ? std::min(budget / 8, to_spare) : needs.swap_memory;
  if (swap > budget) {
    return fail("--swap-memory is {}, a part of the KV memory, which is {}", format_size(swap), format_size(budget));
  }
  // Pages of a pool have numbers of 32 bits.
  const std::uint64_t all = std::min<std::uint64_t>(
      budget / needs.kv_page_row,
      static_cast<std::uint64_t>(std::numeric_limits<std::int32_t>::max() / needs.groups_in_pool));
  const std::uint64_t swap_pages = std::min(all, swap / needs.kv_page_row), pages = all - swap_pages;
  if (pages == 0) {
    return fail("{} of KV memory hold no page: a page of {} tokens takes {}", format_size(budget), needs.page_tokens,
                format_size(needs.kv_page_row));
  }
  const std::int64_t capacity = static_cast<std::int64_t>(pages) * needs.page_tokens;
  if (needs.max_model_len && capacity < wanted_positions) {
    return fail("--max-model-len {} needs {} of KV memory, --kv-memory gives {} ({} tokens)", *needs.max_model_len,
                format_size(wanted), format_size(budget), capacity);
  }
  return MemoryPlan{
      .weights = needs.weights,
      .workspace = needs.workspace,
      .kv = all * needs.kv_page_row,
      .kv_pages = static_cast<std::int32_t>(pages),
      .swap_pages = static_cast<std::int32_t>(swap_pages),
      .max_sequence_tokens = beyond ? std::min(*needs.max_model_len, kLongest) : std::min(wanted_tokens, capacity),
      .max_prompt_tokens = std::min(wanted_tokens, capacity)};
}

}  // namespace millrace
