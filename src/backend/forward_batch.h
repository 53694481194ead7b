// The device inputs of one step: a ragged batch of token rows, prefill and decode mixed. The decoder and the backends
// see nothing else of a request.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kv/moved_pages.h"
#include "kv/page_masses.h"

namespace millrace {

/// Consecutive rows of a ForwardBatch that belong to one sequence.
struct SequenceRows {
  std::int32_t first_row = 0;
  std::int32_t rows = 0;
  std::int64_t first_position = 0;    // position of the first row in its sequence; the rows follow without gaps
  std::int64_t admission_length = 0;  // prompt length: fixes the rope regime (dynamic, longrope) for the whole sequence
  // Rows from this position on are of an answer: they may select pages (AttendArgs) and leave out inputs
  // (LinearFormat).
  std::int64_t answer_begin = std::numeric_limits<std::int64_t>::max();
  // One page table a cache group. Entry p holds the page of places [p * page_tokens, (p + 1) * page_tokens), or -1
  // where the group's window has moved on and the page was given back. Valid for the duration of the step.
  std::vector<std::span<const std::int32_t>> page_tables = {};
  // [groups], or empty: positions before first_position that a table holds no more. Its entries have closed up, so that
  // rows stand, and attend, at places that are less than their positions by so many: multiples of page_tokens.
  std::vector<std::int64_t> dropped = {};
  // What the rows at and behind this position give to the pages of each group without a window is added to
  // ForwardBatch::masses.
  std::int64_t measured_from = std::numeric_limits<std::int64_t>::max();
  // [groups], or empty: how the rows see the entries of their tables, where these do not count as they stand
  // (MovedPages; the first is for entry 0, the last has moved by 0). Such rows are of an answer, and read all of it.
  std::vector<std::span<const MovedPages>> moved = {};

  /// Of the first row, in the page table of a group.
  [[nodiscard]] std::int64_t first_place(std::int32_t group) const {
    return dropped.empty() ? first_position : first_position - dropped[static_cast<std::size_t>(group)];
  }
  /// Rows at and behind this place are of an answer.
  [[nodiscard]] std::int64_t answer_place(std::int32_t group) const {
    return dropped.empty() ? answer_begin : answer_begin - dropped[static_cast<std::size_t>(group)];
  }
  [[nodiscard]] std::span<const MovedPages> moved_in(std::int32_t group) const {
    return moved.empty() ? std::span<const MovedPages>() : moved[static_cast<std::size_t>(group)];
  }
  [[nodiscard]] bool measured() const { return rows > 0 && first_position + rows > measured_from; }
};

/// A hint, never needed for results: consecutive sequences that have the same pages, in the page tables of one cache
/// group, for positions [0, tokens). Every row of theirs is at a position >= tokens. A backend may read these keys and
/// values once for all of them.
struct SharedPrefix {
  std::int32_t group = 0;
  std::int32_t first_sequence = 0;
  std::int32_t sequences = 0;
  std::int64_t tokens = 0;  // any number; what a backend cannot use it rounds down
};

/// Row r of the batch is the token token_ids[r] at position positions[r]. Rows of a sequence are consecutive and in
/// order; their keys and values are stored before any row of the batch attends, so a row sees itself and what precedes
/// it.
struct ForwardBatch {
  std::vector<std::int32_t> token_ids;    // [rows]
  std::vector<std::int64_t> positions;    // [rows]
  std::vector<SequenceRows> sequences;    // cover the rows exactly, in order
  std::vector<std::int32_t> logit_rows;   // rows whose logits are wanted, ascending
  std::vector<SharedPrefix> shared = {};  // by group, then first_sequence; sets of one group do not overlap

  std::vector<std::int64_t> turns = {};  // by how much pages have moved, in all sequences: ascending, no 0
  bool wants_hidden = false;             // the final hidden states of all rows are wanted
  PageMasses* masses = nullptr;          // where some sequence is measured: zeros before the step

  [[nodiscard]] std::int64_t rows() const { return static_cast<std::int64_t>(token_ids.size()); }
};

}  // namespace millrace
