// A million steps; labelled long.
#include <gtest/gtest.h>

#include "sched/random_load.h"

namespace millrace {
namespace {

TEST(SchedulerPropertyLong, AMillionSteps) {
  RandomLoadReport total;
  for (std::uint32_t seed = 5000; total.steps < 700'000; ++seed) {
    const RandomLoadReport report = run_random_load(seed, 5'000, false, seed % 3 == 0);
    total.steps += report.steps;
    total.completed += report.completed;
    total.dropped_pages += report.dropped_pages;
  }
  for (std::uint32_t seed = 9000; total.steps < 1'000'000; ++seed) {
    const RandomLoadReport report = run_random_load(seed, 1'000, true, seed % 3 == 0);
    total.steps += report.steps;
    total.completed += report.completed;
  }
  std::cout << total.steps << " steps, " << total.completed << " sequences completed\n";
  EXPECT_GE(total.steps, 1'000'000);
  EXPECT_GT(total.completed, 20'000);
  EXPECT_GT(total.dropped_pages, 10'000);
}

}  // namespace
}  // namespace millrace
