#include "engine/engine.h"

#include <chrono>
#include <utility>

namespace millrace {

Engine::Engine(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options)
    : core_(runner, tokenizer, options), max_waiting_(options.max_waiting) {
  snapshot_ = core_.snapshot();
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  arrived_.notify_one();
  thread_.join();
}

Result<RequestId> Engine::submit(Request request, Sink sink) {
  MILLRACE_CHECK_OK(core_.prepare(request));
  const RequestId id = next_id_.fetch_add(1, std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    if (snapshot_.draining || stop_) {
      return Error{"the server is shutting down and takes no new requests", ErrorKind::unavailable};
    }
    const std::int64_t waiting = submissions_ + snapshot_.waiting;
    if (waiting >= max_waiting_) {
      return Error{fmt::format("{} requests are waiting already; try again later", waiting), ErrorKind::busy};
    }
    ++submissions_;
    idle_ = false;
    inbox_.push_back(Submission{id, std::move(request), std::move(sink), EngineCore::Clock::now()});
  }
  arrived_.notify_one();
  return id;
}

void Engine::send(Message message) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(message));
  }
  arrived_.notify_one();
}

void Engine::cancel(RequestId id) {
  send(Cancellation{id});
}

void Engine::resume(RequestId id, std::int32_t choice) {
  send(Resumption{id, choice});
}

void Engine::drain() {
  const std::lock_guard lock(mutex_);
  snapshot_.draining = true;
}

bool Engine::wait_idle(double seconds) {
  std::unique_lock lock(mutex_);
  return became_idle_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return idle_; });
}

void Engine::inspect(std::function<void(const EngineCore&)> call) {
  send(Inspection{std::move(call)});
}

void Engine::after_sinks(std::function<void()> call) {
  after_sinks_.push_back(std::move(call));
}

void Engine::call_after_sinks() {
  for (const std::function<void()>& call : std::exchange(after_sinks_, {})) call();
}

EngineSnapshot Engine::snapshot() const {
  const std::lock_guard lock(mutex_);
  EngineSnapshot now = snapshot_;
  now.waiting += submissions_;
  return now;
}

void Engine::take(std::vector<Message>& messages) {
  for (Message& message : messages) {
    if (auto* submission = std::get_if<Submission>(&message)) {
      core_.submit(submission->id, std::move(submission->request), std::move(submission->sink), submission->submitted);
    } else if (const auto* cancellation = std::get_if<Cancellation>(&message)) {
      core_.cancel(cancellation->id);
    } else if (const auto* resumption = std::get_if<Resumption>(&message)) {
      core_.resume(resumption->id, resumption->choice);
    } else {
      std::get<Inspection>(message).call(core_);
    }
  }
  messages.clear();
}

void Engine::run() {
  std::vector<Message> messages;
  bool ran = false;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      const bool draining = snapshot_.draining;
      snapshot_ = core_.snapshot();
      snapshot_.draining = draining;
      if (core_.idle() && inbox_.empty()) {
        idle_ = true;
        became_idle_.notify_all();
      }
      if (!ran) arrived_.wait(lock, [this] { return stop_ || !inbox_.empty(); });
      if (stop_) break;
      std::swap(messages, inbox_);
      snapshot_.waiting += std::exchange(submissions_, 0);
    }
    take(messages);
    ran = core_.step();
    call_after_sinks();
  }
  // Nobody is left without a last event: neither who runs nor who came in too late.
  {
    const std::lock_guard lock(mutex_);
    std::swap(messages, inbox_);
    submissions_ = 0;
  }
  take(messages);
  core_.cancel_all();
  call_after_sinks();
  const std::lock_guard lock(mutex_);
  snapshot_ = core_.snapshot();
  idle_ = true;
  became_idle_.notify_all();
}

}  // namespace millrace
