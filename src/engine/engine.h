// Engine: requests from any thread. One thread of its own steps an EngineCore while there is something to run, and
// waits while there is not.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "core/result.h"
#include "engine/engine_core.h"

namespace millrace {

class Engine {
 public:
  /// `tokenizer` may be null (EngineCore). It and `runner` must outlive the engine, and nobody else may run the runner
  /// meanwhile.
  Engine(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options);
  /// Cancels what has not ended; every sink gets its last events. Joins the thread.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Any thread. The sink is called on the engine's thread, from now until the request's last event. Error kinds:
  /// invalid (it can never run; with the figures), busy (too many wait), unavailable (the engine drains).
  Result<RequestId> submit(Request request, Sink sink);

  /// Any thread. Within a step every choice that has not ended gets its last event.
  void cancel(RequestId id);

  /// Any thread. The sink that answered `pause` for this choice wants more.
  void resume(RequestId id, std::int32_t choice);

  /// Any thread. Refuses new requests from now on; those that were submitted run to their end.
  void drain();

  /// From within a sink: the call is made on the engine's thread, when the sinks of this step have all been told. For
  /// those who hand on what several sinks hear, to wake the next one once for all of it.
  void after_sinks(std::function<void()> call);

  /// Any thread but the engine's own. True when everything that was submitted has ended, within `seconds`.
  bool wait_idle(double seconds);

  /// Any thread. The call is made on the engine's thread, between two steps; perhaps never, where the engine ends.
  void inspect(std::function<void(const EngineCore&)> call);

  /// Any thread. As of the last step.
  [[nodiscard]] EngineSnapshot snapshot() const;

 private:
  struct Submission {
    RequestId id;
    Request request;
    Sink sink;
    EngineCore::Clock::time_point submitted;
  };
  struct Cancellation {
    RequestId id;
  };
  struct Resumption {
    RequestId id;
    std::int32_t choice;
  };
  struct Inspection {
    std::function<void(const EngineCore&)> call;
  };
  using Message = std::variant<Submission, Cancellation, Resumption, Inspection>;

  void send(Message message);
  void run();
  void take(std::vector<Message>& messages);

  void call_after_sinks();

  EngineCore core_;
  std::vector<std::function<void()>> after_sinks_;  // the engine's thread alone
  std::int32_t max_waiting_;
  std::atomic<RequestId> next_id_{1};

  mutable std::mutex mutex_;
  std::condition_variable arrived_, became_idle_;
  std::vector<Message> inbox_;    // guarded by mutex_, as all below
  std::int64_t submissions_ = 0;  // in inbox_
  EngineSnapshot snapshot_;
  bool idle_ = true, stop_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace millrace
