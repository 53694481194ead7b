#include "cluster/event_loop.h"

namespace millrace {

EventLoop::EventLoop() : began_(std::chrono::steady_clock::now()) {}

void EventLoop::post(std::function<void()> call) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(call));
    if (posted_.size() > 1) return;  // it has been woken for the first one
  }
  arrived_.notify_one();
}

void EventLoop::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  arrived_.notify_one();
}

Instant EventLoop::now() const {
  return std::chrono::steady_clock::now() - began_;
}

EventLoop::TimerId EventLoop::after(Duration delay, std::function<void()> call) {
  const TimerId timer = next_timer_++;
  due_.emplace(now() + delay, timer);
  timers_.emplace(timer, std::move(call));
  return timer;
}

void EventLoop::cancel(TimerId timer) {
  timers_.erase(timer);  // its entry in due_ finds nothing, once it is reached
}

bool EventLoop::wait() {
  taken_.clear();
  std::unique_lock lock(mutex_);
  const auto ready = [this] { return stop_ || !posted_.empty(); };
  if (due_.empty()) {
    arrived_.wait(lock, ready);
  } else {
    arrived_.wait_until(lock, began_ + due_.begin()->first, ready);
  }
  taken_.swap(posted_);
  return !std::exchange(stop_, false);
}

void EventLoop::call_due() {
  // What is set now is due in the next round, so that timers without delay leave room for messages.
  const Instant until = now();
  const TimerId before = next_timer_;
  while (!due_.empty() && due_.begin()->first <= until && due_.begin()->second < before) {
    const TimerId timer = due_.begin()->second;
    due_.erase(due_.begin());
    if (auto call = timers_.extract(timer)) call.mapped()();
  }
}

void EventLoop::run() {
  for (bool going = true; going;) {
    going = wait();
    for (const std::function<void()>& call : taken_) call();
    call_due();
  }
}

}  // namespace millrace
