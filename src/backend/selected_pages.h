// Which rows read some pages only, asked by every backend and by who counts what they read.
#pragma once

#include "backend/backend.h"
#include "kv/page_choice.h"

namespace millrace {

/// What the row at `position` may leave out; where that is nothing, all() of it. A row that selects is followed by such
/// rows alone.
inline PageCandidates candidates_of(const AttendArgs& args, const SequenceRows& sequence, std::int64_t position) {
  if (args.selection == nullptr || position < sequence.answer_begin) return {};
  return page_candidates(*args.selection, position, args.kv.page_tokens);
}

/// How many rows of the sequence, from its first on, read everything.
inline std::int64_t rows_reading_all(const AttendArgs& args, const SequenceRows& sequence) {
  std::int64_t rows = sequence.rows;
  while (rows > 0 && !candidates_of(args, sequence, sequence.first_position + rows - 1).all()) --rows;
  return rows;
}

}  // namespace millrace
