// What a gateway sees of a node that is as fast as a test says.
#pragma once

#include <chrono>
#include <cstdint>

#include "cluster/node_work.h"
#include "cluster/router.h"

namespace millrace {

inline Duration time_of(double length) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(length));
}

/// Work as a node of this speed does it.
inline NodeWork work_of(const NodeSpeed& speed, std::int64_t prompt, std::int64_t tokens, double beside,
                        double off = 1.0) {
  NodeWork work{
      .node = "n", .prompt_tokens = prompt, .tokens = tokens, .beside = beside, .placed = std::chrono::seconds(1)};
  work.first = work.placed + time_of(off * (static_cast<double>(prompt) / speed.prefill + speed.step));
  work.last =
      work.first + time_of(off * static_cast<double>(tokens - 1) * (speed.step + speed.step_per_sequence * beside));
  return work;
}

}  // namespace millrace
