// The host's decision for one step: which sequences run how many of their next tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace {

using SequenceId = std::uint64_t;

struct StepEntry {
  SequenceId id = 0;
  std::uint32_t slot = 0;  // where the scheduler keeps the sequence
  std::int32_t rows = 0;
  std::int64_t first_position = 0;
  std::uint32_t admission = 0;  // the scheduler's: tells a step before a preemption from one after it
  bool samples = false;         // the last row is the newest token: its logits choose the next one
  bool all_logits = false;      // the logits of every row are wanted
};

/// Copies one page of KV memory within a cache group, before anything else of the step runs, in the order of the list.
struct PageCopy {
  std::int32_t group = 0;
  std::int32_t from = 0, to = 0;
};

struct StepPlan {
  std::vector<StepEntry> entries;
  std::vector<PageCopy> copies;
  std::int64_t step = 0;  // its number, of plans that a scheduler has made
  /// Nothing is to be done. (Pages may be copied out of the way where no row can run yet.)
  [[nodiscard]] bool empty() const { return entries.empty() && copies.empty(); }
};

}  // namespace millrace
