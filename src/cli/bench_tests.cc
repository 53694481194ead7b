#include "cli/bench_tests.h"

#include <algorithm>
#include <chrono>
#include <unordered_map>

#include "core/check.h"
#include "sched/scheduler.h"

namespace millrace::cli {

template <typename Function>
Result<BenchRun> BenchTests::timed(double tokens, Function&& run) {
  meter_->reset();
  const SkipCounts before = meter_->skip_counts();
  const auto start = std::chrono::steady_clock::now();
  MILLRACE_CHECK_OK(run());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const SkipCounts after = meter_->skip_counts();
  return BenchRun{tokens,
                  seconds,
                  meter_->totals(),
                  {after.kept - before.kept, after.all - before.all, after.disk_bytes - before.disk_bytes}};
}

Result<BenchRun> BenchTests::prefill(std::int32_t tokens, std::int32_t depth) {
  UnscheduledSequences sequences = make_sequences(1, depth + tokens);
  fill(sequences, 1, depth);
  return timed(tokens, [&] { return compute(sequences, 0, depth, depth + tokens); });
}

Result<BenchRun> BenchTests::decode(std::int32_t steps, std::int32_t batch, std::int32_t depth) {
  const std::int32_t behind = std::max(depth, kShort);
  UnscheduledSequences sequences = make_sequences(batch, behind + steps, behind);
  fill(sequences, batch, behind);
  return timed(static_cast<double>(steps) * batch, [&]() -> Status {
    for (std::int32_t step = 0; step < steps; ++step) {
      StepPlan plan;
      for (std::int32_t s = 0; s < batch; ++s) {
        plan.entries.push_back(
            {.id = static_cast<SequenceId>(s), .rows = 1, .first_position = behind + step, .samples = true});
      }
      MILLRACE_CHECK_OK(run(sequences.batch(plan)));
    }
    return Ok{};
  });
}

Result<BenchRun> BenchTests::mixed(std::int32_t prompt, std::int32_t gen, std::int32_t batch) {
  return timed(static_cast<double>(gen) * batch, [&]() -> Status {
    Scheduler scheduler(scheduler_limits(*runner_, false));
    PageMasses masses;
    std::unordered_map<SequenceId, std::int32_t> missing;  // tokens of those that are not through
    for (std::int32_t s = 0; s < batch; ++s) {
      const auto id = static_cast<SequenceId>(s);
      const Status added =
          scheduler.add(id, {.tokens = make_ids(s, prompt), .max_tokens = prompt + gen, .cache_name = {}});
      MILLRACE_CHECK(added.ok(), "a sequence was let pass that does not fit");
      missing.emplace(id, gen);
    }
    while (!missing.empty()) {
      const StepPlan plan = scheduler.schedule();
      runner_->cache().copy(plan.copies);
      MILLRACE_CHECK_OK(run(make_forward_batch(
          plan, runner_->cache().layout().page_tokens,
          [&](const StepEntry& entry) { return scheduler.sequence(entry); }, masses)));
      const auto sampled = std::ranges::count_if(plan.entries, &StepEntry::samples);
      scheduler.commit(plan, std::vector<std::int32_t>(static_cast<std::size_t>(sampled), 0), &masses);
      for (const StepEntry& entry : plan.entries) {
        if (!entry.samples || --missing.at(entry.id) > 0) continue;
        missing.erase(entry.id);
        scheduler.finish(entry.id);
      }
    }
    return Ok{};
  });
}

/// Spread over the vocabulary, other ids for every sequence.
std::vector<std::int32_t> BenchTests::make_ids(std::int32_t sequence, std::int32_t tokens) const {
  std::vector<std::int32_t> ids;
  for (std::int32_t t = 0; t < tokens; ++t) {
    ids.push_back(
        static_cast<std::int32_t>((std::int64_t{7919} * (t + 1) + 104729LL * sequence) % runner_->config().vocab));
  }
  return ids;
}

UnscheduledSequences BenchTests::make_sequences(std::int32_t count, std::int32_t tokens,
                                                std::optional<std::int32_t> answer_begin) {
  UnscheduledSequences sequences(kv_limits(runner_->cache()), runner_->policy().keep);
  for (std::int32_t s = 0; s < count; ++s) {
    sequences.add(make_ids(s, tokens), tokens, answer_begin);
  }
  return sequences;
}

/// Tokens [first, end) of a sequence, in steps of the batch limit, with the logits of the last.
Status BenchTests::compute(UnscheduledSequences& sequences, std::int32_t sequence, std::int32_t first,
                           std::int32_t end) {
  const auto limit = static_cast<std::int32_t>(runner_->max_prompt_rows());
  for (std::int32_t done = first; done < end; done += limit) {
    const std::int32_t rows = std::min(limit, end - done);
    MILLRACE_CHECK_OK(run(sequences.batch({{{.id = static_cast<SequenceId>(sequence),
                                             .rows = rows,
                                             .first_position = done,
                                             .samples = done + rows == end}},
                                           {}})));
  }
  return Ok{};
}

Status BenchTests::run(const ForwardBatch& batch) {
  const std::vector<std::optional<TokenDraw>> draws(batch.logit_rows.size(), TokenDraw{.greedy = true});
  MILLRACE_CHECK_OK(runner_->run(batch, draws));
  return Ok{};
}

/// Gives each sequence pages for `depth` tokens with keys and values that were not computed: how long attention takes
/// does not depend on what they are.
void BenchTests::fill(UnscheduledSequences& sequences, std::int32_t count, std::int32_t depth) {
  if (depth == 0) return;
  for (std::int32_t s = 0; s < count; ++s) {
    const ForwardBatch batch = sequences.batch(
        {{{.id = static_cast<SequenceId>(s), .rows = 1, .first_position = depth - 1, .samples = false}}, {}});
    const auto& tables = batch.sequences.front().page_tables;
    for (std::size_t group = 0; group < tables.size(); ++group) {
      for (const std::int32_t page : tables[group]) {
        if (page >= 0) runner_->cache().fill_with_noise(group, page);
      }
    }
  }
}

}  // namespace millrace::cli
