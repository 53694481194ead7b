#include <gtest/gtest.h>

#include "sched/random_load.h"

namespace millrace {
namespace {

struct Sum {
  RandomLoadReport total;
  void add(const RandomLoadReport& report) {
    total.steps += report.steps;
    total.rows += report.rows;
    total.completed += report.completed;
    total.cancelled += report.cancelled;
    total.preemptions += report.preemptions;
    total.cached_tokens += report.cached_tokens;
    total.swaps += report.swaps;
    total.dropped_pages += report.dropped_pages;
    total.freed_pages += report.freed_pages;
    total.failures += report.failures;
    total.slowest = std::max(total.slowest, report.slowest);
  }
  void print() const {
    std::cout << total.steps << " steps, " << total.rows << " rows, " << total.completed << " sequences completed, "
              << total.cancelled << " cancelled, " << total.preemptions << " preemptions, " << total.cached_tokens
              << " cached tokens, " << total.swaps << " swaps, " << total.failures << " failed steps, "
              << total.dropped_pages << " pages dropped, " << total.freed_pages << " of them freed, slowest "
              << total.slowest << " of its bound\n";
  }
};

// What is asserted is in random_load.cc and fake_node.cc, as checks: a run that returns was right.
TEST(SchedulerProperty, ManyShortLivesLookedAtEverywhere) {
  Sum sum;
  for (std::uint32_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE(seed);
    sum.add(run_random_load(seed, 300, true));
  }
  sum.print();
  EXPECT_GT(sum.total.completed, 1000);
  EXPECT_GT(sum.total.preemptions, 100);
  EXPECT_GT(sum.total.cached_tokens, 1000);
  EXPECT_GT(sum.total.swaps, 0);
  EXPECT_GT(sum.total.failures, 300);
  EXPECT_GT(sum.total.freed_pages, 100);
  EXPECT_LT(sum.total.freed_pages, sum.total.dropped_pages);  // some were shared
}

TEST(SchedulerProperty, LongerLives) {
  Sum sum;
  for (std::uint32_t seed = 1001; seed <= 1020; ++seed) sum.add(run_random_load(seed, 4000, false, seed % 2 == 0));
  sum.print();
  EXPECT_GT(sum.total.completed, 1000);
  EXPECT_GT(sum.total.swaps, 10);
}

TEST(SchedulerProperty, LevelsThatTakePagesFromOnePool) {
  Sum sum;
  for (std::uint32_t seed = 2001; seed <= 2150; ++seed) {
    SCOPED_TRACE(seed);
    sum.add(run_random_load(seed, 400, true, true));
  }
  sum.print();
  EXPECT_GT(sum.total.completed, 1000);
  EXPECT_GT(sum.total.preemptions, 100);
  EXPECT_GT(sum.total.swaps, 10);
  EXPECT_GT(sum.total.freed_pages, 1000);
  EXPECT_LT(sum.total.freed_pages, sum.total.dropped_pages);
}

}  // namespace
}  // namespace millrace
