// Traces of real traffic through the scheduler, and the oracle that its prefix cache is compared with.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>

#include "sched/prefix_oracle.h"
#include "sched/trace_run.h"

namespace millrace {
namespace {

std::filesystem::path data(const char* name) {
  return std::filesystem::path(MILLRACE_SOURCE_DIR) / ".." / "shared" / "data" / "traces" / name;
}

bench::TraceRecord request(std::int32_t tokens, std::vector<std::int64_t> ids) {
  return {.arrival_s = 0.0, .input_tokens = tokens, .output_tokens = 1, .hash_ids = std::move(ids)};
}

TEST(PrefixOracle, KeepsWhatIsUsedAgainSoonest) {
  // Blocks of one row. A B A B C C ... with room for one of them.
  bench::Trace trace{.records = {request(5, {1, 2}), request(5, {3, 4}), request(5, {1, 5}), request(5, {3, 6})},
                     .block_tokens = 4};
  std::vector<TraceEvent> events;
  for (std::int32_t i = 0; i < 4; ++i) {
    events.push_back({i, false});
    events.push_back({i, true});
  }
  EXPECT_EQ(oracle_hits(trace, events, 2, 4, Replacement::optimal), 8);
  EXPECT_EQ(oracle_hits(trace, events, 1, 4, Replacement::optimal), 0) << "the one page is always taken by who runs";
}

TEST(PrefixOracle, OrWhatWasUsedLast) {
  bench::Trace trace{.records = {request(5, {1, 2}), request(5, {3, 4}), request(5, {1, 5}), request(5, {3, 6})},
                     .block_tokens = 4};
  std::vector<TraceEvent> events;
  for (std::int32_t i = 0; i < 4; ++i) {
    events.push_back({i, false});
    events.push_back({i, true});
  }
  EXPECT_EQ(oracle_hits(trace, events, 2, 4, Replacement::least_recently_used), 8);
  events = {{0, false}, {0, true}, {1, false}, {1, true}, {3, false}, {3, true}, {2, false}, {2, true}};
  EXPECT_EQ(oracle_hits(trace, events, 1, 4, Replacement::least_recently_used), 4) << "3 is still there, 1 is not";
}

TEST(PrefixOracle, LeavesOneTokenToCompute) {
  bench::Trace trace{.records = {request(8, {1, 2}), request(8, {1, 2})}, .block_tokens = 4};
  const std::vector<TraceEvent> events = {{0, false}, {1, false}, {0, true}, {1, true}};
  EXPECT_EQ(oracle_hits(trace, events, 10, 4, Replacement::optimal), 4);
}

TEST(PrefixOracle, DropsLeavesBeforeTheirAncestors) {
  bench::Trace trace{.records = {request(13, {1, 2, 3, 4}), request(5, {9, 9}), request(9, {1, 2, 8})},
                     .block_tokens = 4};
  std::vector<TraceEvent> events;
  for (std::int32_t i = 0; i < 3; ++i) {
    events.push_back({i, false});
    events.push_back({i, true});
  }
  EXPECT_EQ(oracle_hits(trace, events, 3, 4, Replacement::optimal), 8);
  EXPECT_EQ(oracle_hits(trace, events, 2, 4, Replacement::optimal), 4);
}

// Slots without a token, of those in pages that sequences hold. A node that takes 15 ms for a step and 40 us for each
// row in it, with memory for 48,000 tokens; the trace asks for 7,400 rows a second on average and comes in bursts.
TEST(SchedulerTrace, AzureConversationsWasteLittleKvMemory) {
  const std::filesystem::path path = data("AzureLLMInferenceTrace_conv.csv");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const Result<bench::Trace> trace = bench::read_trace(path);
  ASSERT_TRUE(trace.ok()) << trace.error().message;
  SchedulerLimits limits;
  limits.max_batch_tokens = 512;
  limits.max_sequences = limits.max_logit_rows = 128;
  limits.kv = {.pages = 3000, .page_tokens = 16, .windows = {0}};
  constexpr double kWarmUp = 300.0;
  double unused = 0, allocated = 0, used = 0, seconds = 0, worst = 0;
  const TraceRun run = run_trace(
      *trace, limits, {.base_s = 0.015, .per_row_s = 0.00004},
      [&](const Scheduler& scheduler, double now, double length) {
        if (now < kWarmUp || now > trace->records.back().arrival_s) return;
        const Scheduler::KvUse use = scheduler.kv_use();
        unused += static_cast<double>(use.unused_slots) * length;
        allocated += static_cast<double>(use.allocated_slots) * length;
        used += static_cast<double>(use.used_pages) / static_cast<double>(use.pages) * length;
        if (use.allocated_slots > 0) {
          worst = std::max(worst, static_cast<double>(use.unused_slots) / static_cast<double>(use.allocated_slots));
        }
        seconds += length;
      });
  const double waste = unused / allocated;
  std::printf("%zu requests, %ld steps, %.0f s (%.0f s of the trace), busy %.2f, worst wait %.1f s\n",
              trace->records.size(), static_cast<long>(run.steps), run.end_s, trace->records.back().arrival_s, run.busy,
              run.worst_wait_s);
  std::printf("waste %.2f %% (worst step %.1f %%), pages in use %.2f, preemptions %ld\n", 100 * waste, 100 * worst,
              used / seconds, static_cast<long>(run.counters.preemptions));
  EXPECT_LE(waste, 0.04);
  EXPECT_GT(used / seconds, 0.5) << "the pool is mostly used";
  EXPECT_GT(run.busy, 0.5);
  EXPECT_LT(run.end_s, trace->records.back().arrival_s + 120) << "the node keeps up";
}

TEST(SchedulerTrace, MooncakeConversationsHitNearlyAsOftenAsTheyCould) {
  const std::filesystem::path path = data("mooncake_conversation_trace.jsonl.gz");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const Result<bench::Trace> trace = bench::read_trace(path);
  ASSERT_TRUE(trace.ok()) << trace.error().message;
  for (const std::int32_t pages : {30'000, 120'000, 500'000, 1'000'000, 2'000'000}) {
    SchedulerLimits limits;
    limits.max_batch_tokens = 2048;
    limits.max_sequences = limits.max_logit_rows = 128;
    limits.kv = {.pages = pages, .page_tokens = 16, .windows = {0}};
    const TraceRun run =
        run_trace(*trace, limits, {.base_s = 0.010, .per_row_s = 0.00001}, [](const Scheduler&, double, double) {});
    const auto best = static_cast<double>(oracle_hits(*trace, run.events, pages, 16, Replacement::optimal));
    const auto plain =
        static_cast<double>(oracle_hits(*trace, run.events, pages, 16, Replacement::least_recently_used));
    const auto total = static_cast<double>(run.counters.admitted_tokens);
    const auto hits = static_cast<double>(run.counters.cached_tokens);
    std::printf("%8d pages: hit rate %.4f; ideal LRU %.4f, of it %.3f; knowing the future %.4f, of it %.3f\n", pages,
                hits / total, plain / total, hits / plain, best / total, hits / best);
    std::fflush(stdout);
    EXPECT_GE(hits, 0.95 * plain) << pages << " pages";
    // With less memory nothing that does not know the future comes near it.
    if (pages >= 2'000'000) {
      EXPECT_GE(hits, 0.95 * best) << pages << " pages";
    }
  }
}

}  // namespace
}  // namespace millrace
