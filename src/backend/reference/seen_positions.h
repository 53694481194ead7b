// What rows see of the past, in plain loops: the oracle for selected blocks and pages.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/selected_pages.h"
#include "core/check.h"
#include "quant/kv_codec.h"

namespace millrace {

/// The key of kv head `head` at `position`, or its value. Args: RopeStoreArgs or AttendArgs.
template <typename Args>
KvSlot kv_slot(const Args& args, std::span<const std::int32_t> table, std::int64_t position, std::int32_t head,
               bool key) {
  const KvLayer& kv = args.kv;
  const auto page_index = static_cast<std::size_t>(position / kv.page_tokens);
  MILLRACE_CHECK(page_index < table.size() && table[page_index] >= 0, "position {} has no page", position);
  std::byte* page = kv.pages + static_cast<std::size_t>(table[page_index]) * kv.page_bytes;
  const auto bytes = static_cast<std::ptrdiff_t>(kv_element_bytes(kv.format)),
             row_bytes =
                 bytes * static_cast<std::ptrdiff_t>(kv_elements(kv.format, static_cast<std::size_t>(args.head_dim)));
  const std::int64_t slots = std::int64_t{head} * kv.page_tokens, slot = position % kv.page_tokens;
  KvSlot at;
  at.elements = page + (key ? kv.key_offset : kv.value_offset) + slots * row_bytes + slot * (key ? bytes : row_bytes);
  at.step = key ? kv.page_tokens * bytes : bytes;
  at.scale = reinterpret_cast<float*>(page + (key ? kv.key_scale_offset : kv.value_scale_offset)) + slots + slot;
  at.middle = at.scale + std::int64_t{args.kv_heads} * kv.page_tokens;
  return at;
}

/// The largest and smallest number that the keys of a page have in each dimension, of pages that the rows fill.
void keep_key_bounds(const SequenceRows& sequence, const RopeStoreArgs& args);

/// Of one sequence in one step. Both must stay.
class SeenPositions {
 public:
  SeenPositions(const AttendArgs& args, const SequenceRows& sequence);

  /// The positions that the queries of a row (from the sequence's first on) and kv head see, ascending.
  std::vector<std::int64_t> of(std::int32_t row, std::int32_t kv_head);

 private:
  void choose_blocks(const PromptBlock& block, std::int32_t kv_head);
  [[nodiscard]] std::vector<float> block_shares(const PromptBlock& block, std::int32_t kv_head) const;
  [[nodiscard]] std::vector<float> page_scores(std::int32_t row, std::int32_t kv_head,
                                               const PageCandidates& candidates) const;
  [[nodiscard]] const float* query(std::int64_t row, std::int32_t head) const;

  const AttendArgs* args_;
  const SequenceRows* sequence_;
  std::span<const std::int32_t> table_;
  RowParts parts_;
  // Chosen for the rows of a block and a kv head: the last that was asked for.
  std::int64_t block_ = -1;
  std::int32_t kv_head_ = -1;
  std::vector<std::int64_t> past_;  // positions
};

}  // namespace millrace
