// `millrace bench`: prefill and decode speed, alone and batched. The machine's own limits come with the speed work.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "runtime/step_batch.h"

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

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Drives the model runner directly: no scheduler, no sampler, ids that cost nothing to make.
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

  /// Tokens/s, all streams together, of `steps` decode steps at batch size `batch` behind prompts of 16 tokens.
  double decode(std::int32_t steps, std::int32_t batch) {
    constexpr std::int32_t kPrompt = 16;
    UnscheduledSequences sequences = make_sequences(batch, kPrompt + steps);
    fill(sequences, batch, kPrompt);
    const auto start = std::chrono::steady_clock::now();
    for (std::int32_t step = 0; step < steps; ++step) {
      StepPlan plan;
      for (std::int32_t s = 0; s < batch; ++s) {
        plan.entries.push_back(
            {.id = static_cast<SequenceId>(s), .rows = 1, .first_position = kPrompt + step, .samples = true});
      }
      runner_->run(sequences.batch(plan));
    }
    return steps * static_cast<double>(batch) / seconds_since(start);
  }

 private:
  UnscheduledSequences make_sequences(std::int32_t count, std::int32_t tokens) {
    const KvCache& cache = runner_->cache();
    UnscheduledSequences sequences(cache.pages(), cache.layout().page_tokens, cache.windows());
    for (std::int32_t s = 0; s < count; ++s) {
      std::vector<std::int32_t> ids;
      for (std::int32_t t = 0; t < tokens; ++t) {
        ids.push_back(
            static_cast<std::int32_t>((std::int64_t{7919} * (t + 1) + 104729LL * s) % runner_->config().vocab));
      }
      sequences.add(std::move(ids), tokens);
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

Status check_room(const BenchFlags& flags, ModelRunner& runner) {
  const std::int64_t longest = std::max<std::int64_t>(flags.prompt, flags.gen + 16);
  if (longest > runner.max_sequence_tokens()) {
    return fail("--prompt {} and --gen {} need sequences of {} tokens, there is room for {}", flags.prompt, flags.gen,
                longest, runner.max_sequence_tokens());
  }
  const std::int32_t widest = *std::max_element(flags.batches.begin(), flags.batches.end());
  const std::int64_t pages = runner.cache().layout().pages_for(flags.gen + 16) * widest;
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
  MILLRACE_TRY(LoadedModel model, load(model_flags, std::max(1, widest)));
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
  if (flags.model.json) print_json(measurements);
  return Ok{};
}

}  // namespace

void add_bench(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Measure prefill and decode speed");
  add_model_flags(*command, flags->model);
  command->add_option("--prompt", flags->prompt, "Tokens of the prefill; 0: none")->check(CLI::Range(0, 1 << 20));
  command->add_option("--gen", flags->gen, "Decode steps; 0: none")->check(CLI::Range(0, 1 << 20));
  command->add_option("--batch", flags->batches, "Batch sizes of the decode")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1024));
  command->add_option("--repeat", flags->repeat, "Counted runs of each test")->check(CLI::Range(1, 1000));
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
