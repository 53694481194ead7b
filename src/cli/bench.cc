// `millrace bench`: prefill and decode speed, alone, batched, at depth and mixed, beside what the machine can do at
// most.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "cli/bench_tests.h"
#include "cli/options.h"
#include "core/check.h"
#include "core/memory.h"

namespace millrace::cli {

namespace {

struct BenchFlags {
  ModelFlags model;
  std::int32_t prompt = 512;
  std::int32_t gen = 128;
  std::vector<std::int32_t> batches{1};
  std::vector<std::int32_t> depths{0};
  std::int32_t repeat = 3;
  bool profile = false, no_mixed = false;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

OpTotals sum(const std::map<OpKey, OpTotals>& operations) {
  OpTotals all;
  for (const auto& [key, totals] : operations) all += totals;
  return all;
}

double all_operations(const OpTotals& totals) {
  double all = 0;
  for (const double operations : totals.operations) all += operations;
  return all;
}

/// The limits at some moment; a backend that does not measure them has none.
using Limits = std::optional<DeviceLimits>;

DeviceLimits between(const DeviceLimits& a, const DeviceLimits& b) {
  DeviceLimits mean{.read_bytes_per_second = (a.read_bytes_per_second + b.read_bytes_per_second) / 2};
  for (std::size_t i = 0; i < kArithmetics; ++i) {
    mean.operations_per_second[i] = (a.operations_per_second[i] + b.operations_per_second[i]) / 2;
  }
  return mean;
}

struct Measurement {
  std::string test;
  std::int32_t batch = 1, depth = 0;
  std::vector<BenchRun> runs = {};
  std::vector<DeviceLimits> limits = {};  // of each run: halfway between those before and after; empty: not measured

  [[nodiscard]] std::vector<double> each(const std::function<double(const BenchRun&)>& figure) const {
    std::vector<double> values;
    for (const BenchRun& run : runs) values.push_back(figure(run));
    return values;
  }
  [[nodiscard]] std::vector<double> tokens_per_second() const {
    return each([](const BenchRun& run) { return run.tokens / run.seconds; });
  }
  [[nodiscard]] double bytes_per_second() const {
    return median(each([](const BenchRun& run) { return sum(run.operations).bytes / run.seconds; }));
  }
  [[nodiscard]] double operations_per_second() const {
    return median(each([](const BenchRun& run) { return all_operations(sum(run.operations)) / run.seconds; }));
  }
  [[nodiscard]] std::optional<double> fraction_of_limit() const {
    if (limits.empty()) return std::nullopt;
    std::vector<double> fractions;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      fractions.push_back(limit_seconds(sum(runs[i].operations), limits[i]) / runs[i].seconds);
    }
    return median(fractions);
  }
};

bool mixes(const BenchFlags& flags, std::int32_t batch) {
  return batch > 1 && flags.prompt > 0 && flags.gen > 0 &&
         !flags.no_mixed;  // one alone is the sum of the other two tests
}

Status check_room(const BenchFlags& flags, ModelRunner& runner) {
  const std::int32_t widest = *std::ranges::max_element(flags.batches);
  const std::int32_t deepest = *std::ranges::max_element(flags.depths);
  const std::int64_t decoded =
      std::max({BenchTests::kShort, deepest, mixes(flags, widest) ? flags.prompt : 0}) + flags.gen;
  const std::int64_t longest = std::max<std::int64_t>(deepest + flags.prompt, decoded);
  if (longest > runner.max_sequence_tokens()) {
    return fail("--prompt {}, --gen {} and --depth {} need sequences of {} tokens, there is room for {}", flags.prompt,
                flags.gen, deepest, longest, runner.max_sequence_tokens());
  }
  if (deepest + flags.prompt > runner.max_prompt_tokens()) {
    return fail("--prompt {} and --depth {} need prompts of {} tokens, there is room for {}", flags.prompt, deepest,
                deepest + flags.prompt, runner.max_prompt_tokens());
  }
  for (const std::int32_t depth : flags.depths) {
    if (flags.prompt == 0 || depth % runner.prompt_block() == 0) continue;
    return fail("--depth {}: the recipe's prompts are computed in blocks of {}; give a multiple of it", depth,
                runner.prompt_block());
  }
  std::int64_t longest_pages = runner.cache().layout().pages_for(decoded);
  std::int64_t pages = longest_pages * widest;
  const std::vector<std::int64_t> windows = runner.cache().windows();
  const bool no_windows = std::ranges::all_of(windows, [](std::int64_t window) { return window == 0; });
  if (const std::optional<KvRetention>& keep = runner.policy().keep; keep && no_windows) {
    // One has all of its prompt, the others what they keep: where levels take pages from one pool, on average.
    const PageLayout& layout = runner.cache().layout();
    const auto levels = static_cast<std::int64_t>(windows.size());
    std::int64_t of_all = 0;
    for (std::int64_t level = 0; level < levels; ++level) {
      of_all += layout.pages_for(keep->of_level(layout.pools.size() == 1 ? level : 0, levels).tokens) + 1;
    }
    const std::int64_t kept = (of_all + levels - 1) / levels;
    longest_pages = std::min(longest_pages, std::max(kept, runner.cache().layout().pages_for(decoded - flags.gen) + 1));
    pages = longest_pages + (widest - 1) * std::min(kept, longest_pages);
  }
  if (flags.gen > 0 && pages > runner.cache().pages()) {
    return fail("--batch {} needs KV memory for {} tokens, there is room for {}; raise --kv-memory", widest,
                pages * runner.cache().layout().page_tokens, runner.cache().token_capacity());
  }
  return Ok{};
}

constexpr double kGiga = 1e9;

nlohmann::ordered_json limits_json(const DeviceLimits& limits) {
  const auto of = [&](Arithmetic a) { return limits.operations_per_second[static_cast<std::size_t>(a)] / kGiga; };
  return {{"read_gb_s", limits.read_bytes_per_second / kGiga},
          {"int8_gop_s", of(Arithmetic::int8)},
          {"fp8_gflop_s", of(Arithmetic::fp8)},
          {"bf16_gflop_s", of(Arithmetic::bf16)},
          {"f32_gflop_s", of(Arithmetic::f32)}};
}

std::string op_name(const OpKey& key) {
  const char* kind = op_kind_name(key.kind);
  return key.rows > 0 ? fmt::format("{} {}x{}", kind, key.rows, key.cols) : kind;
}

/// A row of the profile.
struct ProfileRow {
  std::string op;
  OpTotals totals;
};

/// What the last run spent where, the longest first, and what passed outside of the operations.
std::vector<ProfileRow> profile_of(const BenchRun& run) {
  std::vector<ProfileRow> rows;
  for (const auto& [key, totals] : run.operations) rows.push_back({op_name(key), totals});
  std::ranges::stable_sort(rows, std::greater(), [](const ProfileRow& row) { return row.totals.seconds; });
  rows.push_back({"outside operations", {.seconds = run.seconds - sum(run.operations).seconds}});
  return rows;
}

nlohmann::ordered_json test_json(const Measurement& m, bool profile) {
  nlohmann::ordered_json test{{"test", m.test},
                              {"batch", m.batch},
                              {"depth", m.depth},
                              {"tokens_per_second", median(m.tokens_per_second())},
                              {"repetitions", m.tokens_per_second()},
                              {"gb_per_second", m.bytes_per_second() / kGiga},
                              {"gop_per_second", m.operations_per_second() / kGiga},
                              {"fraction_of_limit", nullptr}};
  if (const auto fraction = m.fraction_of_limit()) test["fraction_of_limit"] = *fraction;
  const SkipCounts& skipped = m.runs.back().skipped;
  if (skipped.all > 0) test["kept_inputs"] = skipped.kept / skipped.all;
  if (skipped.disk_bytes > 0) test["disk_bytes_per_token"] = skipped.disk_bytes / m.runs.back().tokens;
  if (!profile) return test;
  test["profile"] = nlohmann::ordered_json::array();
  for (const ProfileRow& row : profile_of(m.runs.back())) {
    nlohmann::ordered_json op{{"op", row.op},
                              {"calls", row.totals.calls},
                              {"seconds", row.totals.seconds},
                              {"bytes", row.totals.bytes},
                              {"operations", all_operations(row.totals)},
                              {"limit_seconds", nullptr}};
    if (!m.limits.empty()) op["limit_seconds"] = limit_seconds(row.totals, m.limits.back());
    test["profile"].push_back(std::move(op));
  }
  return test;
}

void print_limits(const DeviceLimits& limits) {
  const auto of = [&](Arithmetic a) { return limits.operations_per_second[static_cast<std::size_t>(a)] / kGiga; };
  std::printf(
      "this machine at most: reads %.1f GB/s; int8 %.0f GOP/s, fp8 %.0f GFLOP/s, bf16 %.0f GFLOP/s, f32 %.0f "
      "GFLOP/s\n\n",
      limits.read_bytes_per_second / kGiga, of(Arithmetic::int8), of(Arithmetic::fp8), of(Arithmetic::bf16),
      of(Arithmetic::f32));
}

void print_profile(const Measurement& m) {
  const BenchRun& run = m.runs.back();
  for (const ProfileRow& row : profile_of(run)) {
    const OpTotals& t = row.totals;
    std::printf("    %-28s %6lld calls %9.1f ms %5.1f %%", row.op.c_str(), static_cast<long long>(t.calls),
                t.seconds * 1e3, 100 * t.seconds / run.seconds);
    if (t.bytes > 0) {
      std::printf("  %6.1f GB/s %7.1f GOP/s", t.bytes / t.seconds / kGiga, all_operations(t) / t.seconds / kGiga);
      if (!m.limits.empty())
        std::printf("  %4.0f %% of the limit", 100 * limit_seconds(t, m.limits.back()) / t.seconds);
    }
    std::printf("\n");
  }
}

void print_row(const Measurement& m, bool profile) {
  const std::vector<double> speeds = m.tokens_per_second();
  const auto [low, high] = std::ranges::minmax_element(speeds);
  std::printf("%-8s batch %-4d depth %-6d %9.1f tokens/s (%.1f to %.1f)  %6.1f GB/s %7.1f GOP/s", m.test.c_str(),
              m.batch, m.depth, median(speeds), *low, *high, m.bytes_per_second() / kGiga,
              m.operations_per_second() / kGiga);
  if (const auto fraction = m.fraction_of_limit()) std::printf("  %4.0f %% of the limit", 100 * *fraction);
  const SkipCounts& skipped = m.runs.back().skipped;
  if (skipped.all > 0) std::printf("  inputs kept %.1f %%", 100 * skipped.kept / skipped.all);
  if (skipped.disk_bytes > 0)
    std::printf("  %s a token from disk",
                format_size(static_cast<std::uint64_t>(skipped.disk_bytes / m.runs.back().tokens)).c_str());
  std::printf("\n");
  if (profile) print_profile(m);
  std::fflush(stdout);
}

/// Runs tests, each `repeat` times, with the machine's limits measured between the runs.
class Bench {
 public:
  Bench(const BenchFlags& flags, MeteredBackend& meter) : flags_(&flags), meter_(&meter) {
    if (auto limits = meter.measure_limits(); limits.ok()) {
      limits_ = *limits;
      if (!flags.model.json) print_limits(*limits_);
    } else if (!flags.model.json) {
      std::printf("no limits: %s\n\n", limits.error().message.c_str());
    }
  }

  Status measure(Measurement m, const std::function<Result<BenchRun>()>& once) {
    MILLRACE_CHECK_OK(once());  // the first run pays for page faults
    MILLRACE_CHECK_OK(measure_limits());
    for (std::int32_t i = 0; i < flags_->repeat; ++i) {
      const Limits before = limits_;
      MILLRACE_TRY(BenchRun run, once());
      m.runs.push_back(std::move(run));
      MILLRACE_CHECK_OK(measure_limits());
      if (before) m.limits.push_back(between(*before, *limits_));
    }
    if (!flags_->model.json) print_row(m, flags_->profile);
    measurements_.push_back(std::move(m));
    return Ok{};
  }

  void print_json() const {
    nlohmann::ordered_json document{{"machine", nullptr}, {"tests", nlohmann::ordered_json::array()}};
    if (limits_) document["machine"] = limits_json(*limits_);
    for (const Measurement& m : measurements_) document["tests"].push_back(test_json(m, flags_->profile));
    std::printf("%s\n", document.dump().c_str());
  }

 private:
  Status measure_limits() {
    if (!limits_) return Ok{};
    MILLRACE_TRY(limits_, meter_->measure_limits());
    return Ok{};
  }

  const BenchFlags* flags_;
  MeteredBackend* meter_;
  Limits limits_;  // measured last
  std::vector<Measurement> measurements_;
};

Status run(const BenchFlags& flags) {
  const std::int32_t widest = *std::ranges::max_element(flags.batches);
  ModelFlags model_flags = flags.model;
  model_flags.max_batch_tokens = std::max(model_flags.max_batch_tokens, widest);
  MILLRACE_TRY(LoadOptions options, load_options(model_flags, std::max(1, widest)));
  options.sequences = widest;
  MeteredBackend* meter = nullptr;
  options.wrap_backend = [&meter, &flags](std::unique_ptr<Backend> inner) {
    auto metered = std::make_unique<MeteredBackend>(std::move(inner), flags.profile);
    meter = metered.get();
    return metered;
  };
  MILLRACE_TRY(LoadedModel model, load(std::move(options)));
  MILLRACE_CHECK_OK(check_room(flags, *model.runner));

  BenchTests tests(*model.runner, *meter);
  Bench bench(flags, *meter);
  for (const std::int32_t depth : flags.depths) {
    if (flags.prompt > 0) {
      MILLRACE_CHECK_OK(bench.measure({.test = "pp" + std::to_string(flags.prompt), .depth = depth},
                                      [&] { return tests.prefill(flags.prompt, depth); }));
    }
    if (flags.gen == 0) continue;
    for (const std::int32_t batch : flags.batches) {
      MILLRACE_CHECK_OK(bench.measure({.test = "tg" + std::to_string(flags.gen), .batch = batch, .depth = depth},
                                      [&] { return tests.decode(flags.gen, batch, depth); }));
    }
  }
  for (const std::int32_t batch : flags.batches) {
    if (!mixes(flags, batch)) continue;
    MILLRACE_CHECK_OK(
        bench.measure({.test = "mixed", .batch = batch}, [&] { return tests.mixed(flags.prompt, flags.gen, batch); }));
  }
  if (flags.model.json) bench.print_json();
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
  command->add_option("--depth", flags->depths, "Tokens in front of prefill and decoding, with made-up keys and values")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--repeat", flags->repeat, "Counted runs of each test")->check(CLI::Range(1, 1000));
  command->add_flag("--profile", flags->profile, "Also what each operation takes");
  command->add_flag("--no-mixed", flags->no_mixed, "Not the test of prompts and decoding together");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
