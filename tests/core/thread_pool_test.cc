#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <set>

#include "core/cpu_info.h"

namespace millrace {
namespace {

std::unique_ptr<ThreadPool> make_pool(int threads) {
  auto pool = ThreadPool::create(threads);
  EXPECT_TRUE(pool.ok());
  return std::move(*pool);
}

TEST(ThreadPool, EachTaskRunsOnceAndItsWritesAreSeen) {
  for (const int threads : {1, 2, 3, 8}) {
    const auto pool = make_pool(threads);
    EXPECT_EQ(pool->threads(), threads);
    for (const std::int64_t tasks : {0, 1, 2, 3, 7, 100, 5000}) {
      std::vector<int> runs(static_cast<std::size_t>(tasks), 0);  // plain ints: the pool orders the accesses
      pool->run(tasks, [&](std::int64_t task, int thread) {
        EXPECT_TRUE(thread >= 0 && thread < threads);
        ++runs[static_cast<std::size_t>(task)];
      });
      EXPECT_EQ(std::accumulate(runs.begin(), runs.end(), std::int64_t{0}), tasks);
      EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), tasks);
    }
  }
}

TEST(ThreadPool, ManyShortLoops) {
  for (const int threads : {2, 4}) {  // more than some machines have cores: those threads sleep instead of spinning
    const auto pool = make_pool(threads);
    std::atomic<int> begun{0};
    pool->run(threads, [&](std::int64_t, int) {  // all threads are up before the race begins
      ++begun;
      while (begun < threads) std::this_thread::yield();
    });
    std::int64_t total = 0, expected = 0;
    for (std::int64_t round = 0; round < 20000; ++round) {
      std::array<std::int64_t, 23> parts{};
      const std::int64_t tasks = 2 + round % 22;
      pool->run(tasks, [&](std::int64_t task, int) {
        // Some nanoseconds to some microseconds, so that loops end and begin in every order of events.
        volatile std::int64_t work = (round * 7 + task * 13) % 300;
        while (work > 0) work = work - 1;
        parts[static_cast<std::size_t>(task)] = round + task;
      });
      total += std::accumulate(parts.begin(), parts.end(), std::int64_t{0});
      expected += tasks * round + tasks * (tasks - 1) / 2;
    }
    EXPECT_EQ(total, expected);
  }
}

TEST(ThreadPool, WakesUpAfterSleeping) {
  const auto pool = make_pool(2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // far longer than the threads spin
    std::array<int, 2> runs{};
    pool->run(2, [&](std::int64_t task, int) { ++runs[static_cast<std::size_t>(task)]; });
    EXPECT_EQ(runs, (std::array<int, 2>{1, 1}));
  }
}

TEST(ThreadPool, ThreadsShareTheTasks) {
  const auto pool = make_pool(2);
  // Each task waits until the other has begun: only two threads at once can finish.
  std::atomic<int> begun{0};
  std::set<int> threads;
  std::mutex mutex;
  pool->run(2, [&](std::int64_t, int thread) {
    ++begun;
    while (begun < 2) std::this_thread::yield();
    const std::lock_guard lock(mutex);
    threads.insert(thread);
  });
  EXPECT_EQ(threads, (std::set<int>{0, 1}));
}

TEST(ThreadPool, TheCallerWaitsForASlowWorker) {
  const auto pool = make_pool(2);
  for (int round = 0; round < 10; ++round) {
    std::array<int, 2> done{};
    std::atomic<int> begun{0};
    pool->run(2, [&](std::int64_t task, int thread) {
      ++begun;
      while (begun < 2) std::this_thread::yield();
      if (thread != 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      done[static_cast<std::size_t>(task)] = 1;
    });
    EXPECT_EQ(done, (std::array<int, 2>{1, 1}));
  }
}

TEST(ThreadPool, StartsAndStopsWithoutWork) {
  for (int round = 0; round < 50; ++round) {
    const auto pool = make_pool(1 + round % 4);
    if (round % 3 == 0) pool->run(3, [](std::int64_t, int) {});
  }
}

TEST(ThreadPool, RefusesAbsurdCounts) {
  EXPECT_FALSE(ThreadPool::create(-1).ok());
  EXPECT_FALSE(ThreadPool::create(ThreadPool::kMaxThreads + 1).ok());
}

TEST(ThreadPool, OneThreadACoreUnlessAsked) {
  EXPECT_EQ(make_pool(0)->threads(), usable_cores());
}

TEST(CpuInfo, IsConsistent) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), static_cast<int>(std::thread::hardware_concurrency()));
  const CpuInfo info = read_cpu_info();
  EXPECT_TRUE(!info.avx512 || (info.avx2 && info.fma));
  EXPECT_TRUE(info.avx512 || (!info.avx512_vnni && !info.avx512_bf16));
#if defined(__x86_64__)
  EXPECT_EQ(info.avx2, __builtin_cpu_supports("avx2") != 0);
  EXPECT_EQ(info.fma, __builtin_cpu_supports("fma") != 0);
  EXPECT_EQ(info.avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
  EXPECT_FALSE(info.name.empty());
#endif
}

}  // namespace
}  // namespace millrace
