// The host's decision for one step: which sequences run how many of their next tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace {

using SequenceId = std::uint64_t;

struct StepEntry {
  SequenceId id = 0;
  std::int64_t first_position = 0;
  std::int32_t rows = 0;
  bool samples = false;  // the last row is the newest token: its logits choose the next one
};

struct StepPlan {
  std::vector<StepEntry> entries;
  [[nodiscard]] bool empty() const { return entries.empty(); }
};

}  // namespace millrace
