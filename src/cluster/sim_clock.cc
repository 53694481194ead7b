#include "cluster/sim_clock.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

constexpr std::uint32_t kSlotBits = 24;  // events that may stand in the queue at once; the rest counts them

}  // namespace

SimClock::EventId SimClock::at(Instant when, std::function<void()> call) {
  if (free_slots_.empty()) {
    MILLRACE_CHECK(slots_.size() < std::size_t{1} << kSlotBits, "{} events are scheduled", slots_.size());
    free_slots_.push_back(static_cast<std::uint32_t>(slots_.size()));
    slots_.emplace_back();
  }
  const std::uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  const std::uint64_t order = next_order_++;
  slots_[slot] = {order, std::move(call)};
  due_.push({std::max(when, now_), order, slot});
  return order << kSlotBits | slot;
}

void SimClock::cancel(EventId event) {
  Slot& slot = slots_[event & ((std::uint64_t{1} << kSlotBits) - 1)];
  if (slot.order == event >> kSlotBits) slot.call = nullptr;
}

bool SimClock::step() {
  if (due_.empty()) return false;
  const Due due = due_.top();
  due_.pop();
  now_ = due.when;
  const std::function<void()> call = std::exchange(slots_[due.slot].call, nullptr);
  slots_[due.slot].order = 0;
  free_slots_.push_back(due.slot);
  if (call) call();
  return true;
}

void SimClock::run_until(Instant end) {
  while (!due_.empty() && due_.top().when <= end) step();
  now_ = std::max(now_, end);
}

}  // namespace millrace
