// `millrace bench`: prefill and decode speed, alone, batched and mixed. The machine's own limits come with the speed
// work.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "cli/options.h"
#include "core/check.h"
#include "runtime/step_batch.h"
#include "sched/scheduler.h"

namespace millrace::cli {

namespace {

struct BenchFlags {
  ModelFlags model;
  std::int32_t prompt = 512;
  std::int32_t gen = 128;
  std::vector<std::int32_t> batches{1};
  std::int32_t repeat = 3;
};

struct Measurement {
  std::string test;
  std::int32_t batch = 1;
  std::vector<double> tokens_per_second;  // one a repetition

  [[nodiscard]] double median() const {
    std::vector<double> sorted = tokens_per_second;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

constexpr std::int32_t kShort = 16;  // tokens in front of what the decode test generates

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Drives the model runner directly: no sampler, ids that cost nothing to make.
class Bench {
 public:
  explicit Bench(ModelRunner& runner) : runner_(&runner) {}

  /// Tokens/s of computing a prompt of `tokens` tokens.
  double prefill(std::int32_t tokens) {
    UnscheduledSequences sequences = make_sequences(1, tokens);
    const auto start = std::chrono::steady_clock::now();
    fill(sequences, 1, tokens);
    return tokens / seconds_since(start);
  }

  /// Tokens/s, all streams together, of `steps` decode steps at batch size `batch` behind prompts of kShort tokens.
  double decode(std::int32_t steps, std::int32_t batch) {
    UnscheduledSequences sequences = make_sequences(batch, kShort + steps);
    fill(sequences, batch, kShort);
    const auto start = std::chrono::steady_clock::now();
    for (std::int32_t step = 0; step < steps; ++step) {
      StepPlan plan;
      for (std::int32_t s = 0; s < batch; ++s) {
        plan.entries.push_back(
            {.id = static_cast<SequenceId>(s), .rows = 1, .first_position = kShort + step, .samples = true});
      }
      runner_->run(sequences.batch(plan));
    }
    return steps * static_cast<double>(batch) / seconds_since(start);
  }

  /// Output tokens/s of `batch` requests that arrive together, each of `prompt` tokens that differ from the others' and
  /// `gen` more: what a server of that many requests can reach at most. The scheduler mixes prompts and decoding.
  double mixed(std::int32_t prompt, std::int32_t gen, std::int32_t batch) {
    const auto start = std::chrono::steady_clock::now();
    Scheduler scheduler(scheduler_limits(*runner_, false));
    std::unordered_map<SequenceId, std::int32_t> missing;  // tokens of those that are not through
    for (std::int32_t s = 0; s < batch; ++s) {
      const auto id = static_cast<SequenceId>(s);
      const Status added =
          scheduler.add(id, {.tokens = make_ids(s, prompt), .max_tokens = prompt + gen, .cache_name = {}});
      MILLRACE_CHECK(added.ok(), "check_room() has let a sequence pass that does not fit");
      missing.emplace(id, gen);
    }
    while (!missing.empty()) {
      const StepPlan plan = scheduler.schedule();
      runner_->run(make_forward_batch(plan, [&](const StepEntry& entry) { return scheduler.sequence(entry); }));
      const auto sampled = std::ranges::count_if(plan.entries, &StepEntry::samples);
      scheduler.commit(plan, std::vector<std::int32_t>(static_cast<std::size_t>(sampled), 0));
      for (const StepEntry& entry : plan.entries) {
        if (!entry.samples || --missing.at(entry.id) > 0) continue;
        missing.erase(entry.id);
        scheduler.finish(entry.id);
      }
    }
    return gen * static_cast<double>(batch) / seconds_since(start);
  }

 private:
  /// Spread over the vocabulary, other ids for every sequence.
  [[nodiscard]] std::vector<std::int32_t> make_ids(std::int32_t sequence, std::int32_t tokens) const {
    std::vector<std::int32_t> ids;
    for (std::int32_t t = 0; t < tokens; ++t) {
      ids.push_back(
          static_cast<std::int32_t>((std::int64_t{7919} * (t + 1) + 104729LL * sequence) % runner_->config().vocab));
    }
    return ids;
  }

  UnscheduledSequences make_sequences(std::int32_t count, std::int32_t tokens) {
    const KvCache& cache = runner_->cache();
    UnscheduledSequences sequences(cache.pages(), cache.layout().page_tokens, cache.windows());
    for (std::int32_t s = 0; s < count; ++s) {
      sequences.add(make_ids(s, tokens), tokens);
    }
    return sequences;
  }

  /// Computes the first `tokens` tokens of `count` sequences, in steps of the batch limit.
  void fill(UnscheduledSequences& sequences, std::int32_t count, std::int32_t tokens) {
    const auto limit = static_cast<std::int32_t>(runner_->limits().max_rows);
    for (std::int32_t s = 0; s < count; ++s) {
      for (std::int32_t done = 0; done < tokens; done += limit) {
        const std::int32_t rows = std::min(limit, tokens - done);
        runner_->run(sequences.batch({{{.id = static_cast<SequenceId>(s),
                                        .rows = rows,
                                        .first_position = done,
                                        .samples = done + rows == tokens}},
                                      {}}));
      }
    }
  }

  ModelRunner* runner_;
};

bool mixes(const BenchFlags& flags, std::int32_t batch) {
  return batch > 1 && flags.prompt > 0 && flags.gen > 0;  // one alone is the sum of the other two tests
}

Status check_room(const BenchFlags& flags, ModelRunner& runner) {
  const std::int32_t widest = *std::max_element(flags.batches.begin(), flags.batches.end());
  const std::int64_t decoded = std::max(kShort, mixes(flags, widest) ? flags.prompt : 0) + flags.gen;
  const std::int64_t longest = std::max<std::int64_t>(flags.prompt, decoded);
  if (longest > runner.max_sequence_tokens()) {
    return fail("--prompt {} and --gen {} need sequences of {} tokens, there is room for {}", flags.prompt, flags.gen,
                longest, runner.max_sequence_tokens());
  }
  const std::int64_t pages = runner.cache().layout().pages_for(decoded) * widest;
  if (pages > runner.cache().pages()) {
    return fail("--batch {} needs KV memory for {} tokens, there is room for {}; raise --kv-memory", widest,
                pages * runner.cache().layout().page_tokens, runner.cache().token_capacity());
  }
  return Ok{};
}

void print_json(const std::vector<Measurement>& measurements) {
  nlohmann::ordered_json tests = nlohmann::ordered_json::array();
  for (const Measurement& m : measurements) {
    tests.push_back({{"test", m.test}, {"batch", m.batch}, {"depth", 0}, {"tokens_per_second", m.median()}});
  }
  std::printf("%s\n", nlohmann::ordered_json{{"tests", tests}}.dump().c_str());
}

void print_row(const Measurement& m) {
  const auto [low, high] = std::minmax_element(m.tokens_per_second.begin(), m.tokens_per_second.end());
  std::printf("%-8s batch %-4d %10.1f tokens/s   (%.1f to %.1f)\n", m.test.c_str(), m.batch, m.median(), *low, *high);
  std::fflush(stdout);
}

Status run(const BenchFlags& flags) {
  const std::int32_t widest = *std::max_element(flags.batches.begin(), flags.batches.end());
  ModelFlags model_flags = flags.model;
  model_flags.max_batch_tokens = std::max(model_flags.max_batch_tokens, widest);
  MILLRACE_TRY(LoadedModel model, load(model_flags, std::max(1, widest), widest));
  MILLRACE_CHECK_OK(check_room(flags, *model.runner));
  Bench bench(*model.runner);
  std::vector<Measurement> measurements;
  const auto measure = [&](const std::string& test, std::int32_t batch, const std::function<double()>& once) {
    once();  // the first run pays for page faults
    Measurement m{test, batch, {}};
    for (std::int32_t i = 0; i < flags.repeat; ++i) m.tokens_per_second.push_back(once());
    if (!flags.model.json) print_row(m);
    measurements.push_back(std::move(m));
  };
  if (flags.prompt > 0) {
    measure("pp" + std::to_string(flags.prompt), 1, [&] { return bench.prefill(flags.prompt); });
  }
  if (flags.gen > 0) {
    for (const std::int32_t batch : flags.batches) {
      measure("tg" + std::to_string(flags.gen), batch, [&] { return bench.decode(flags.gen, batch); });
    }
  }
  for (const std::int32_t batch : flags.batches) {
    if (mixes(flags, batch)) measure("mixed", batch, [&] { return bench.mixed(flags.prompt, flags.gen, batch); });
  }
  if (flags.model.json) print_json(measurements);
  return Ok{};
}

}  // namespace

void add_bench(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Measure prefill and decode speed");
  add_model_flags(*command, flags->model);
  command->add_option("--prompt", flags->prompt, "Tokens of a prompt; 0: no prefill")->check(CLI::Range(0, 1 << 20));
  command->add_option("--gen", flags->gen, "Tokens of an answer; 0: no decoding")->check(CLI::Range(0, 1 << 20));
  command
      ->add_option("--batch", flags->batches,
                   "Sequences that decode at once; above 1, also together with their prompts (mixed)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1024));
  command->add_option("--repeat", flags->repeat, "Counted runs of each test")->check(CLI::Range(1, 1000));
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
