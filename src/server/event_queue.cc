#include "server/event_queue.h"

#include <algorithm>

namespace millrace {

namespace {

/// What an event takes in memory, and about what it takes as JSON.
std::size_t bytes_of(const TokenEvent& event) {
  constexpr std::size_t kLogprob = 48;
  std::size_t bytes = sizeof(EventQueue::Item) + event.text.size() + event.error.size() + event.stop_string.size() +
                      event.embedding.size() * sizeof(float);
  if (event.logprobs) bytes += (event.logprobs->top.size() + 1) * kLogprob;
  return bytes;
}

}  // namespace

Demand EventQueue::push(std::size_t request, const TokenEvent& event) {
  // The copy is made before the lock is taken: nothing that allocates for long happens under it.
  Item item{request, event, std::nullopt};
  item.event.summary = nullptr;
  if (event.summary != nullptr) item.summary = *event.summary;
  const std::size_t bytes = bytes_of(event);

  const std::lock_guard lock(mutex_);
  if (closed_) return Demand::more;
  items_.push_back(std::move(item));
  bytes_ += bytes;
  if (!std::exchange(woken_, true)) wake_();
  if (bytes_ <= bound_ || event.finish != FinishReason::none) return Demand::more;
  const bool known = std::any_of(paused_.begin(), paused_.end(), [&](const Paused& other) {
    return other.request == event.request && other.choice == event.choice;
  });
  if (!known) paused_.push_back({event.request, event.choice});
  return Demand::pause;
}

void EventQueue::take(std::size_t bytes, std::vector<Item>& items, std::vector<Paused>& resume) {
  const std::lock_guard lock(mutex_);
  std::size_t taken = 0;
  while (!items_.empty() && taken < bytes) {
    taken += bytes_of(items_.front().event);
    items.push_back(std::move(items_.front()));
    items_.pop_front();
  }
  bytes_ -= taken;
  woken_ = !items_.empty();
  if (woken_ && !closed_) wake_();  // nothing may ever be pushed again: what is left would stay for ever
  if (bytes_ > bound_ / 2) return;
  resume.insert(resume.end(), paused_.begin(), paused_.end());
  paused_.clear();
}

void EventQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  items_.clear();
  paused_.clear();
}

}  // namespace millrace
