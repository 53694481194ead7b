// How long sampling one row takes, on one thread.
//
//   bench_sampler --benchmark_filter=top_p
//
// Rows: `flat`, logits of a model with random weights, so that top-p keeps most of the vocabulary; `peaked`, as a
// trained model gives them; `equal`, the worst case for a selection.
#include <benchmark/benchmark.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "runtime/sampler.h"

namespace millrace {
namespace {

enum class Shape { flat, peaked, equal };

std::vector<float> make_row(Shape shape, std::size_t vocab) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, shape == Shape::flat ? 0.5f : 3.0f);
  std::vector<float> row(vocab, 1.0f);
  if (shape == Shape::equal) return row;
  for (float& logit : row) logit = normal(random);
  if (shape == Shape::peaked) {
    for (int i = 0; i < 20; ++i) row[random() % vocab] = 22.0f - 0.5f * static_cast<float>(i);
  }
  return row;
}

void sample_rows(benchmark::State& state, const SamplingParams& params, Shape shape, const RowKernels* kernels) {
  std::vector<float> row = make_row(shape, static_cast<std::size_t>(state.range(0)));
  SamplerScratch scratch;
  scratch.kernels = kernels;
  std::int64_t position = 0;
  for (auto _ : state) benchmark::DoNotOptimize(sample(row, params, {}, position++, {}, scratch));
}

void sample_rows_with_logprobs(benchmark::State& state, std::int32_t top, Shape shape, const RowKernels* kernels) {
  std::vector<float> row = make_row(shape, static_cast<std::size_t>(state.range(0)));
  SamplerScratch scratch;
  scratch.kernels = kernels;
  for (auto _ : state) benchmark::DoNotOptimize(sample_with_logprobs(row, {}, {}, 0, {}, top, scratch));
}

void sample_masked_rows(benchmark::State& state, const RowKernels* kernels) {
  const auto vocab = static_cast<std::size_t>(state.range(0));
  std::vector<float> row = make_row(Shape::peaked, vocab);
  std::vector<std::uint32_t> allowed(vocab / 32 + 1);
  std::mt19937 random(7);
  for (std::uint32_t& word : allowed) word = static_cast<std::uint32_t>(random());
  SamplerScratch scratch;
  scratch.kernels = kernels;
  for (auto _ : state) benchmark::DoNotOptimize(sample(row, {}, {}, 0, allowed, scratch));
}

void count_prompt(benchmark::State& state) {
  std::mt19937 random(7);
  std::vector<std::int32_t> prompt(static_cast<std::size_t>(state.range(0)));
  for (std::int32_t& token : prompt) token = static_cast<std::int32_t>(random() % 100000);
  for (auto _ : state) {
    TokenCounts counts;
    for (const std::int32_t token : prompt) counts.add_prompt(token);
    benchmark::DoNotOptimize(counts.entries().size());
  }
}

void register_all() {
  struct Case {
    std::string name;
    SamplingParams params;
  };
  const std::vector<Case> cases{{"greedy", {}},
                                {"temperature_1", {.temperature = 1.0f}},
                                {"temperature_0.7", {.temperature = 0.7f}},
                                {"top_k_40", {.temperature = 1.0f, .top_k = 40}},
                                {"top_k_5000", {.temperature = 1.0f, .top_k = 5000}},
                                {"top_p_0.95", {.temperature = 1.0f, .top_p = 0.95f}},
                                {"top_p_0.95_t_2", {.temperature = 2.0f, .top_p = 0.95f}},
                                {"min_p_0.05", {.temperature = 1.0f, .min_p = 0.05f}},
                                {"top_p_and_min_p", {.temperature = 1.0f, .top_p = 0.95f, .min_p = 0.05f}},
                                {"all_cuts", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f}}};
  const std::vector<std::pair<std::string, Shape>> shapes{
      {"flat", Shape::flat}, {"peaked", Shape::peaked}, {"equal", Shape::equal}};
  const auto sizes = [](benchmark::internal::Benchmark* bench) {
    bench->Arg(102400)->Arg(131072)->Arg(200000)->Unit(benchmark::kMicrosecond);
  };
  for (const RowKernels* kernels : row_kernels().subspan(row_kernels().size() > 1 ? 1 : 0)) {
    const std::string isa = std::string("/") + kernels->name;
    for (const auto& [shape_name, shape] : shapes) {
      for (const Case& c : cases) {
        sizes(benchmark::RegisterBenchmark((c.name + "/" + shape_name + isa).c_str(), sample_rows, c.params, shape,
                                           kernels));
      }
      sizes(benchmark::RegisterBenchmark(("greedy_logprobs_20/" + shape_name + isa).c_str(), sample_rows_with_logprobs,
                                         20, shape, kernels));
    }
    sizes(benchmark::RegisterBenchmark(("greedy_masked/peaked" + isa).c_str(), sample_masked_rows, kernels));
  }
  benchmark::RegisterBenchmark("count_prompt", count_prompt)->Arg(1000)->Arg(10000)->Unit(benchmark::kMicrosecond);
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  millrace::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
