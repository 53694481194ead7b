// Work on the pool's threads, where it is worth waking them.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"

namespace millrace {

// Work below which waking other threads costs more than it saves, in multiply-adds or elements. Where the border lies
// has no influence on results.
inline constexpr std::int64_t kParallelProducts = 1 << 17;
inline constexpr std::int64_t kParallelElements = 1 << 15;

/// Runs fn(task, thread) for each of `tasks` tasks of `work` each, on the caller alone where all of it is below
/// `threshold`.
template <typename Function>
void for_each(ThreadPool& pool, std::int64_t tasks, std::int64_t work, std::int64_t threshold, Function&& fn) {
  if (tasks * work >= threshold) {
    pool.run(tasks, fn);
  } else {
    for (std::int64_t task = 0; task < tasks; ++task) fn(task, 0);
  }
}

}  // namespace millrace
