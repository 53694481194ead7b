// What the protocol promises (docs/cluster-protocol.md), under faults. Any seed can be run again: a broken promise
// names it.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <iostream>

#include "faults.h"

namespace millrace::test {
namespace {

void add(FaultRun& sum, const FaultRun& run) {
  for (std::size_t f = 0; f < sum.faults.size(); ++f) sum.faults[f] += run.faults[f];
  sum.streams += run.streams;
  sum.lost += run.lost;
  sum.cancelled += run.cancelled;
  sum.identical += run.identical;
  sum.moved += run.moved;
  sum.tokens += run.tokens;
  sum.gateway.fenced += run.gateway.fenced;
  sum.gateway.doubled += run.gateway.doubled;
  sum.gateway.placements += run.gateway.placements;
  sum.gateway.breaches += run.gateway.breaches;
  sum.gateway.malformed += run.gateway.malformed;
  sum.node.resent += run.node.resent;
  sum.node.orphaned += run.node.orphaned;
  sum.node.unknown += run.node.unknown;
  sum.node.fenced += run.node.fenced;
  sum.node.malformed += run.node.malformed;
}

FaultRun run_seeds(std::uint64_t first, std::uint64_t count, int faults, int streams) {
  FaultRun sum;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    const FaultRun run = run_faults(seed, faults, streams);
    EXPECT_EQ(run.wrong, "") << "seed " << seed;
    add(sum, run);
  }
  std::int64_t all = 0;
  for (std::size_t f = 0; f < sum.faults.size(); ++f) {
    std::cout << sum.faults[f] << " x " << kFaultNames[f] << (f + 1 < sum.faults.size() ? ", " : "\n");
    all += sum.faults[f];
  }
  std::cout << all << " faults, " << sum.streams << " streams, " << sum.tokens << " tokens; " << sum.moved
            << " streams moved, " << sum.identical << " identical, " << sum.lost << " lost with their gateway, "
            << sum.cancelled << " cancelled\n"
            << sum.gateway.placements << " placements, " << sum.gateway.fenced << " messages fenced, "
            << sum.gateway.doubled << " frames twice, " << sum.node.resent << " resent, " << sum.node.orphaned
            << " orphans, " << sum.node.unknown << " asked for what a node did not know\n";
  EXPECT_EQ(sum.gateway.breaches, 0);
  EXPECT_EQ(sum.gateway.malformed, 0);
  EXPECT_EQ(sum.node.malformed, 0);
  return sum;
}

TEST(FaultSuite, NothingHappens) {
  const FaultRun run = run_seeds(1, 1, 0, 100);
  EXPECT_EQ(run.moved, 0);
  EXPECT_EQ(run.gateway.placements, 100);
  EXPECT_EQ(run.node.resent, 0);
}

// MILLRACE_FAULT_SEED=N runs the seed that failed, alone.
TEST(FaultSuite, TenThousandFaults) {
  if (const char* seed = std::getenv("MILLRACE_FAULT_SEED"); seed != nullptr) {
    run_seeds(std::strtoull(seed, nullptr, 10), 1, 50, 60);
    return;
  }
  const FaultRun run = run_seeds(1, 200, 50, 60);
  EXPECT_GT(run.moved, 1000);
  EXPECT_GT(run.gateway.fenced, 1000);
  EXPECT_GT(run.node.orphaned, 100);
}

TEST(FaultSuite, ASeedReplays) {
  const FaultRun once = run_faults(7, 40, 30), again = run_faults(7, 40, 30);
  EXPECT_EQ(once.tokens, again.tokens);
  EXPECT_EQ(once.gateway.fenced, again.gateway.fenced);
  EXPECT_EQ(once.node.frames, again.node.frames);
}

}  // namespace
}  // namespace millrace::test
