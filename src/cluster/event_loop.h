// EventLoop: the one thread on which a gateway's or a node's part of the cluster runs. Others hand it calls.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cluster/transport.h"

namespace millrace {

class EventLoop {
 public:
  using TimerId = std::uint64_t;

  EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  /// Any thread. The call is made by run(), in the order of the posts; after stop() perhaps never.
  void post(std::function<void()> call);
  /// Any thread. The run() that runs, or the next one, returns soon.
  void stop();
  /// Makes calls until stop(). It may be called again.
  void run();

  [[nodiscard]] Instant now() const;
  /// On the loop's thread, or before run().
  TimerId after(Duration delay, std::function<void()> call);
  void cancel(TimerId timer);

 private:
  bool wait();
  void call_due();

  std::chrono::steady_clock::time_point began_;
  std::multimap<Instant, TimerId> due_;
  std::unordered_map<TimerId, std::function<void()>> timers_;
  TimerId next_timer_ = 1;
  std::vector<std::function<void()>> taken_;

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<std::function<void()>> posted_;  // guarded by mutex_, as all below
  bool stop_ = false;
};

}  // namespace millrace
