// Which rows read some of the past only, asked by every backend and by who counts what they read.
#pragma once

#include <algorithm>

#include "backend/backend.h"
#include "kv/block_choice.h"
#include "kv/hyper_choice.h"
#include "kv/page_choice.h"

namespace millrace {

/// Whether queries are turned for some of the pages that the sequence's rows read, which is all that it has.
inline bool turns_queries(const AttendArgs& args, const SequenceRows& sequence) {
  return args.turns != nullptr && sequence.rows > 0 && !sequence.moved_in(args.kv.group).empty();
}

/// What the row at `position`, of an answer, may leave out; where that is nothing, all() of it. A row that selects is
/// followed by such rows alone.
inline PageCandidates candidates_of(const AttendArgs& args, const SequenceRows& sequence, std::int64_t position) {
  if (args.selection == nullptr || position < sequence.answer_place(args.kv.group)) return {};
  if (!sequence.moved_in(args.kv.group).empty()) return {};
  return page_candidates(*args.selection, position, args.kv.page_tokens);
}

/// A sequence's rows [first, end) of a prompt, which lie in one block of rows, and what they may leave out.
struct PromptBlock {
  std::int64_t first = 0, end = 0;
  BlockCandidates candidates;

  [[nodiscard]] std::int64_t rows() const { return end - first; }
};

/// The block with the sequence's row `first`, which is its first. Rows outside of prompts, and those that read
/// everything, have a block of no rows.
inline PromptBlock prompt_block(const AttendArgs& args, const SequenceRows& sequence, std::int64_t first) {
  const std::int64_t position = sequence.first_place(args.kv.group) + first;
  PromptBlock block{.first = first, .end = first, .candidates = {}};
  if (args.prompt_selection == nullptr || position >= sequence.answer_place(args.kv.group)) return block;
  block.candidates = block_candidates(*args.prompt_selection, position);
  if (!block.candidates.all()) {
    block.end = std::min({first + kQueryBlock, static_cast<std::int64_t>(sequence.rows),
                          sequence.answer_place(args.kv.group) - sequence.first_place(args.kv.group)});
  }
  return block;
}

/// A sequence's rows, from the first on: [0, prompt_all) read everything, [prompt_all, prompt_end) blocks, or
/// approximate,
/// [prompt_end, answer_all) everything, and the rest pages.
struct RowParts {
  std::int64_t prompt_all = 0, prompt_end = 0, answer_all = 0;
};

inline RowParts parts_of(const AttendArgs& args, const SequenceRows& sequence) {
  const std::int64_t rows = sequence.rows;
  const std::int64_t of_prompt =
      std::clamp<std::int64_t>(sequence.answer_place(args.kv.group) - sequence.first_place(args.kv.group), 0, rows);
  RowParts parts{.prompt_all = of_prompt, .prompt_end = of_prompt, .answer_all = rows};
  if (args.hyper != nullptr) {
    parts.prompt_all = std::clamp<std::int64_t>(hyper_begin(*args.hyper) - sequence.first_position, 0, of_prompt);
  }
  if (args.prompt_selection != nullptr) {
    // Steps hold whole blocks, so that the first row of one is known by its place.
    parts.prompt_all = 0;
    while (parts.prompt_all < of_prompt && prompt_block(args, sequence, parts.prompt_all).rows() == 0) {
      parts.prompt_all = std::min(parts.prompt_all + kQueryBlock, of_prompt);
    }
  }
  while (parts.answer_all > of_prompt &&
         !candidates_of(args, sequence, sequence.first_place(args.kv.group) + parts.answer_all - 1).all()) {
    --parts.answer_all;
  }
  if (parts.prompt_all == of_prompt) parts.prompt_all = parts.prompt_end = parts.answer_all;  // one after the other
  return parts;
}

/// Whether all rows of the sequence read all that they see, with queries as they are.
inline bool reads_all(const AttendArgs& args, const SequenceRows& sequence) {
  return !turns_queries(args, sequence) && parts_of(args, sequence).prompt_all == sequence.rows;
}

}  // namespace millrace
