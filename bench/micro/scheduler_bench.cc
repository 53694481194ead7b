// schedule() and commit() of one step, as the engine calls them: every iteration is a step. Beside them `whole_us` is
// the time of the step with the add() and finish() of those who come and go, and with the making of their prompts.
//
// Every 16 steps each sequence takes a page, and as sequences end and others take their place, prompts are mixed in.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <vector>

#include "sched/scheduler.h"

namespace millrace {
namespace {

constexpr std::int32_t kPageTokens = 16;

struct Load {
  std::int64_t sequences = 0;
  std::int64_t shared = 0;   // tokens that all prompts begin with
  std::int64_t prompt = 0;   // tokens of a prompt in all
  std::int64_t answer = 0;   // tokens; each sequence ends with it and another one comes
  std::int64_t waiting = 0;  // sequences beyond those that can run
  double pool = 2.0;         // pages, of what the sequences need
};

/// Sequences that come as others end.
class Traffic {
 public:
  explicit Traffic(const Load& load) : load_(load), scheduler_(limits(load)) {
    for (std::int64_t i = 0; i < load.sequences + load.waiting; ++i) {
      // Answers that are under way, each at another place.
      add(load.answer > 1 ? 1 + i * (load.answer - 1) / (load.sequences + load.waiting) : 1);
    }
    // Until the prompts that came at once are through.
    for (std::int64_t i = 0; i < 400 + load.prompt * load.sequences / 4096; ++i) step();
  }

  /// Seconds that schedule() and commit() took.
  double step() {
    const auto begin = std::chrono::steady_clock::now();
    const StepPlan plan = scheduler_.schedule();
    const auto planned = std::chrono::steady_clock::now();
    sampled_.clear();
    ended_.clear();
    for (const StepEntry& entry : plan.entries) {
      if (!entry.samples) continue;
      sampled_.push_back(static_cast<std::int32_t>(entry.first_position % 50021));
      if (entry.first_position + entry.rows + 1 >= ends_[entry.id]) ended_.push_back(entry.id);
    }
    const auto ran = std::chrono::steady_clock::now();
    scheduler_.commit(plan, sampled_);
    const auto committed = std::chrono::steady_clock::now();
    rows_ += static_cast<std::int64_t>(plan.entries.size());
    for (const SequenceId id : ended_) {
      scheduler_.finish(id);
      add(load_.answer);
    }
    return std::chrono::duration<double>(planned - begin + (committed - ran)).count();
  }

  [[nodiscard]] std::int64_t entries() const { return rows_; }
  [[nodiscard]] const Scheduler& scheduler() const { return scheduler_; }

 private:
  static SchedulerLimits limits(const Load& load) {
    SchedulerLimits limits;
    limits.max_sequences = static_cast<std::int32_t>(load.sequences);
    limits.max_logit_rows = limits.max_sequences;
    // Enough for the prompts of those who come: one for each answer that ends.
    limits.max_batch_tokens = static_cast<std::int32_t>(
        load.sequences + 512 + load.sequences * (load.prompt - load.shared) * 3 / (2 * load.answer));
    const double tokens =
        static_cast<double>(load.sequences * (load.prompt - load.shared + load.answer + kPageTokens) + load.shared);
    limits.kv.pages = static_cast<std::int32_t>(load.pool * tokens / kPageTokens);
    limits.kv.page_tokens = kPageTokens;
    return limits;
  }

  void add(std::int64_t answer) {
    const SequenceId id = ends_.size();
    SequenceSpec spec;
    spec.tokens.resize(static_cast<std::size_t>(load_.prompt));
    const auto own = static_cast<std::int32_t>(id * 7919 % 65521);
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(load_.prompt); ++i) {
      spec.tokens[static_cast<std::size_t>(i)] = i < load_.shared ? i : own + i;
    }
    spec.max_tokens = load_.prompt + load_.answer;
    ends_.push_back(load_.prompt + answer);
    if (!scheduler_.add(id, std::move(spec)).ok()) std::abort();
  }

  Load load_;
  Scheduler scheduler_;
  std::vector<std::int64_t> ends_;  // [ids]
  std::vector<std::int32_t> sampled_;
  std::vector<SequenceId> ended_;
  std::int64_t rows_ = 0;
};

void run(benchmark::State& state, const Load& load) {
  Traffic traffic(load);
  const std::int64_t before = traffic.entries();
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) state.SetIterationTime(traffic.step());
  const std::chrono::duration<double, std::micro> whole = std::chrono::steady_clock::now() - start;
  state.counters["whole_us"] = whole.count() / static_cast<double>(state.iterations());
  state.counters["entries"] = static_cast<double>(traffic.entries() - before) / static_cast<double>(state.iterations());
  state.counters["preemptions"] = static_cast<double>(traffic.scheduler().counters().preemptions);
}

/// Nothing but decoding.
void BM_Decode(benchmark::State& state) {
  run(state,
      {.sequences = state.range(0), .shared = 0, .prompt = 100, .answer = 1'000'000, .waiting = 0, .pool = 0.02});
}
BENCHMARK(BM_Decode)->Arg(256)->Arg(4096)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(2000);

/// Answers of 200 tokens behind prompts of 300; the prefix cache is full, so pages are evicted all the time.
void BM_Mixed(benchmark::State& state) {
  run(state, {.sequences = state.range(0), .shared = 0, .prompt = 300, .answer = 200, .waiting = 16, .pool = 1.2});
}
BENCHMARK(BM_Mixed)->Arg(256)->Arg(4096)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(2000);

/// The same with 2,000 more tokens that all prompts begin with.
void BM_Shared(benchmark::State& state) {
  run(state, {.sequences = state.range(0), .shared = 2000, .prompt = 2300, .answer = 200, .waiting = 16, .pool = 1.2});
}
BENCHMARK(BM_Shared)->Arg(256)->Arg(4096)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(2000);

/// Too few pages: sequences are preempted, and a long queue waits.
void BM_Overload(benchmark::State& state) {
  run(state, {.sequences = state.range(0), .shared = 0, .prompt = 300, .answer = 200, .waiting = 1000, .pool = 0.7});
}
BENCHMARK(BM_Overload)->Arg(256)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(2000);

}  // namespace
}  // namespace millrace

BENCHMARK_MAIN();
