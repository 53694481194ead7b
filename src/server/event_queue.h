// EventQueue: the engine's events of one HTTP answer, on their way from the stepping thread to the connection's.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "engine/request.h"

namespace millrace {

/// Bounded in bytes: above the bound push() answers Demand::pause, and the choices that were told so come out of take()
/// once less than half of the bound is left. Events that are pushed nevertheless are kept: none is lost.
class EventQueue {
 public:
  struct Item {
    std::size_t request = 0;  // which of the answer's engine requests
    TokenEvent event;         // its summary is null
    std::optional<RequestSummary> summary;
  };
  struct Paused {
    RequestId request = 0;
    std::int32_t choice = 0;
  };

  /// `wake` is called under a lock: on the thread that pushes, when the queue was not known to have something, once
  /// until the next take(); and by a take() that leaves something.
  EventQueue(std::size_t bound, std::function<void()> wake) : bound_(bound), wake_(std::move(wake)) {}

  /// Stepping thread. Copies the event.
  Demand push(std::size_t request, const TokenEvent& event);

  /// Moves events to `items`, the oldest first, until they are about `bytes` (at least one, if there is one); and to
  /// `resume` the choices that may go on. Both are appended to.
  void take(std::size_t bytes, std::vector<Item>& items, std::vector<Paused>& resume);

  /// From now on events are dropped and `wake` is not called.
  void close();

 private:
  std::mutex mutex_;
  const std::size_t bound_;
  std::function<void()> wake_;
  std::deque<Item> items_;
  std::vector<Paused> paused_;
  std::size_t bytes_ = 0;
  bool woken_ = false;
  bool closed_ = false;
};

}  // namespace millrace
