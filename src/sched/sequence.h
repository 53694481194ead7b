// What a step needs to know of a sequence: its tokens and where their keys and values are.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kv/moved_pages.h"
#include "kv/page_pool.h"

namespace millrace {

struct SequenceView {
  std::span<const std::int32_t> tokens;  // prompt, then what was generated
  std::int64_t prompt_tokens = 0;
  std::span<const PageTable> tables;                                      // one a cache group
  std::int64_t answer_begin = std::numeric_limits<std::int64_t>::max();   // rows from here on are of an answer
  std::int64_t measured_from = std::numeric_limits<std::int64_t>::max();  // whose attention is measured (PageMasses)
  std::span<const std::vector<MovedPages>> moved = {};                    // [groups], or empty
};

}  // namespace millrace
