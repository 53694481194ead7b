#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <system_error>

#include "core/check.h"
#include "core/cpu_info.h"

namespace millrace {

namespace {

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

constexpr std::uint64_t kCountMask = 0xffffffffu;
/// To be woken takes up to 100 microseconds on a virtual machine, longer than most operations of a small step.
constexpr std::chrono::microseconds kSpinTime{200};

/// Whether `done` came to be true within that time; asked once at least where `spin` is false.
template <typename Done>
bool spin_until(bool spin, Done&& done) {
  constexpr int kPauses = 32;  // for one look at the clock
  if (done()) return true;
  if (!spin) return false;
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPauses; ++i) {
      if (done()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

Result<std::unique_ptr<ThreadPool>> ThreadPool::create(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    return fail("{} threads asked for; expected 1 to {}, or 0 for one a core", threads, kMaxThreads);
  }
  const int cores = usable_cores();
  if (threads == 0) threads = cores;
  std::unique_ptr<ThreadPool> pool(new ThreadPool);
  pool->spins_ = threads <= cores;  // with too few cores a spinning thread keeps out the one it waits for
  pool->workers_.reserve(static_cast<std::size_t>(threads - 1));
  for (int i = 1; i < threads; ++i) {
    try {
      pool->workers_.emplace_back([p = pool.get(), i] { p->work(i); });
    } catch (const std::system_error& error) {
      return fail("cannot start thread {} of {}: {}", i + 1, threads, error.what());
    }
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_ready_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_erased(std::int64_t tasks, Call call, void* context) {
  if (tasks <= 0) return;
  if (tasks == 1 || workers_.empty()) {
    for (std::int64_t task = 0; task < tasks; ++task) call(context, task, 0);
    return;
  }
  MILLRACE_CHECK(tasks <= std::numeric_limits<std::uint32_t>::max(), "{} tasks", tasks);
  MILLRACE_CHECK(unfinished_.load(std::memory_order_relaxed) == 0, "a loop is running already");
  tasks_ = tasks;
  call_ = call;
  context_ = context;
  unfinished_.store(tasks, std::memory_order_relaxed);
  // Sequentially consistent, as is the load: either a worker going to sleep sees the ticket, or we see the sleeper.
  ticket_.store((std::uint64_t{++generation_} << 32) | static_cast<std::uint64_t>(tasks));
  if (sleepers_.load() > 0) {
    { const std::lock_guard lock(mutex_); }
    work_ready_.notify_all();
  }
  take_tasks(0);
  if (spin_until(spins_, [this] { return unfinished_.load(std::memory_order_acquire) == 0; })) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_ = true;
  all_done_.wait(lock, [this] { return unfinished_.load() == 0; });
  caller_sleeps_ = false;
}

bool ThreadPool::take_tasks(int thread) {
  std::int64_t taken = 0;
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((ticket & kCountMask) != 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      continue;
    }
    call_(context_, tasks_ - static_cast<std::int64_t>(ticket & kCountMask), thread);
    ++taken;
    --ticket;  // most likely what the next compare-and-swap finds
  }
  if (taken == 0) return false;
  // Sequentially consistent for the same reason as above, with the roles of caller and worker exchanged.
  if (unfinished_.fetch_sub(taken) == taken && caller_sleeps_.load()) {
    { const std::lock_guard lock(mutex_); }
    all_done_.notify_one();
  }
  return true;
}

void ThreadPool::work(int thread) {
  const auto called = [this] {
    return stop_.load(std::memory_order_relaxed) || (ticket_.load(std::memory_order_relaxed) & kCountMask) != 0;
  };
  while (!stop_.load(std::memory_order_relaxed)) {
    if (take_tasks(thread) || spin_until(spins_, called)) continue;
    std::unique_lock lock(mutex_);
    ++sleepers_;
    work_ready_.wait(lock, [this] { return stop_.load() || (ticket_.load() & kCountMask) != 0; });
    --sleepers_;
  }
}

}  // namespace millrace
