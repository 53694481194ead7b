// Which rows of a batch are of answers.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/forward_batch.h"

namespace millrace {

/// rows[r]: 1 where row r of the batch is of an answer (SequenceRows::answer_begin), else 0.
inline void mark_answer_rows(const ForwardBatch& batch, std::vector<std::uint8_t>& rows) {
  rows.assign(static_cast<std::size_t>(batch.rows()), 0);
  for (const SequenceRows& sequence : batch.sequences) {
    for (std::int32_t i = 0; i < sequence.rows; ++i) {
      const bool answer = sequence.first_position + i >= sequence.answer_begin;
      rows[static_cast<std::size_t>(sequence.first_row) + static_cast<std::size_t>(i)] = answer ? 1 : 0;
    }
  }
}

}  // namespace millrace
