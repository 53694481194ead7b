// SimClock: virtual time. What is to happen stands in a queue, and time jumps from one to the next.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <vector>

#include "cluster/transport.h"

namespace millrace {

/// Deterministic: what is due at the same time happens in the order in which it was scheduled.
class SimClock {
 public:
  using EventId = std::uint64_t;

  [[nodiscard]] Instant now() const { return now_; }

  /// `call` happens at `when`, or now where that has passed.
  EventId at(Instant when, std::function<void()> call);
  void cancel(EventId event);

  /// The next event happens. False: there is none.
  bool step();
  /// Everything up to `end` happens, and it is `end` then.
  void run_until(Instant end);

 private:
  struct Due {
    Instant when;
    std::uint64_t order;
    std::uint32_t slot;
  };
  struct Later {
    bool operator()(const Due& a, const Due& b) const { return a.when != b.when ? a.when > b.when : a.order > b.order; }
  };
  struct Slot {
    std::uint64_t order = 0;
    std::function<void()> call;  // empty: cancelled
  };

  Instant now_{0};
  std::uint64_t next_order_ = 1;
  std::priority_queue<Due, std::vector<Due>, Later> due_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
};

}  // namespace millrace
