// A fixed set of threads that share the tasks of one parallel loop at a time. Passed explicitly to whoever needs it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/result.h"

namespace millrace {

/// Waiting threads spin for some 200 microseconds, which bridges the gaps between the operations of a step, and then
/// sleep, so that an idle process costs nothing and others on the machine get their share.
class ThreadPool {
 public:
  /// `threads` take part in each loop, the caller among them, so threads - 1 are started; 0: usable_cores().
  /// Errors: a count below 0 or above kMaxThreads; the system refuses to start a thread.
  static Result<std::unique_ptr<ThreadPool>> create(int threads);
  static constexpr int kMaxThreads = 1024;

  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls fn(task, thread) once for each task in [0, tasks), thread in [0, threads()), and returns when all calls have
  /// returned; what they wrote is then visible to the caller. Tasks are handed out in ascending order to whichever
  /// thread is free: which thread gets which is not determined. The caller is thread 0. One run at a time, not from
  /// inside a task. No allocation. `fn` must not throw.
  template <typename Function>
  void run(std::int64_t tasks, Function&& fn) {
    using Target = std::remove_reference_t<Function>;
    run_erased(
        tasks, [](void* context, std::int64_t task, int thread) { (*static_cast<Target*>(context))(task, thread); },
        const_cast<void*>(static_cast<const void*>(std::addressof(fn))));
  }

 private:
  using Call = void (*)(void* context, std::int64_t task, int thread);

  ThreadPool() = default;

  void run_erased(std::int64_t tasks, Call call, void* context);
  void work(int thread);
  /// Takes tasks of the published loop until none is left. False: there was none to take.
  bool take_tasks(int thread);

  // Generation of the loop in the upper half, tasks not yet taken in the lower half. A thread owns a task once its
  // compare-and-swap has counted it down; until then it may look at nothing else, because the loop may be over.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::int64_t> unfinished_{0};

  // Written by run() before it publishes a ticket, read only by owners of a task, so never at the same time.
  std::int64_t tasks_ = 0;
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::uint32_t generation_ = 0;

  std::mutex mutex_;
  std::condition_variable work_ready_, all_done_;
  std::atomic<int> sleepers_{0};  // workers that wait for work_ready_
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stop_{false};
  bool spins_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace millrace
