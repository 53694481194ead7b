// How long products with weights take that lie input by input, by how many rows there are and which share of the inputs
// each row keeps, beside weights in panels. Where kernels that skip stop paying follows from it
// (src/backend/cpu/skip_choice.h).
//
//   bench_skipped_inputs --benchmark_filter=bf16/rows:4 --benchmark_repetitions=5
#include <benchmark/benchmark.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "core/check.h"

namespace millrace {
namespace {

constexpr int kThreads = 2;
constexpr std::int64_t kWidth = 8192;  // inputs and outputs
constexpr std::size_t kMatrices = 4;   // one after the other, so that no cache holds them

struct Format {
  const char* name;
  LinearFormat format;
};

std::vector<Format> formats() {
  return {{"f32", {}},
          {"bf16", {.input = DType::bf16}},
          {"int8", {.codes = code_format_from_name("int8")}},
          {"int4", {.codes = code_format_from_name("int4")}}};
}

Backend& backend() {
  static const std::unique_ptr<Backend> instance = [] {
    auto made = make_cpu_backend({.threads = kThreads});
    MILLRACE_CHECK(made.ok(), "no backend");
    return std::move(*made);
  }();
  return *instance;
}

const std::vector<float>& values() {
  static const std::vector<float> all = [] {
    std::mt19937 random(1);
    std::vector<float> made(static_cast<std::size_t>(kWidth * kWidth));
    for (float& value : made) value = static_cast<float>(static_cast<std::int32_t>(random())) * 0x1p-36f;
    return made;
  }();
  return all;
}

using Matrices = std::vector<std::unique_ptr<PackedMatrix>>;

/// Of the format that was asked for last, in panels or input by input.
const Matrices& matrices(const Format& format, bool tiled) {
  static std::string name;
  static std::map<bool, Matrices> packed;
  if (name != format.name) packed.clear();
  name = format.name;
  Matrices& wanted = packed[tiled];
  LinearFormat linear = format.format;
  if (tiled) linear.skip.threshold = 0.0f;
  while (wanted.size() < kMatrices) {
    auto matrix = backend().pack({{{.format = QuantFormat::f32,
                                    .data = reinterpret_cast<const std::byte*>(values().data()),
                                    .rows = kWidth,
                                    .cols = kWidth}},
                                  {}},
                                 linear);
    MILLRACE_CHECK(matrix.ok(), "not packed");
    wanted.push_back(std::move(*matrix));
  }
  return wanted;
}

/// `kept`: of each row's inputs, in percent; 0: weights in panels.
void multiply(benchmark::State& state, const Format& format, std::int64_t rows, std::int64_t kept) {
  const Matrices& weights = matrices(format, kept > 0);
  std::mt19937 random(2);
  std::vector<float> x(values().begin(), values().begin() + rows * kWidth), out(x.size());
  for (float& value : x) {
    if (kept > 0 && static_cast<std::int64_t>(random() % 100) >= kept) value = 0.0f;
  }
  ForwardBatch batch;
  for (std::int64_t row = 0; row < rows; ++row) {
    batch.token_ids.push_back(0);
    batch.positions.push_back(row);
    batch.sequences.push_back(
        {.first_row = static_cast<std::int32_t>(row), .rows = 1, .first_position = row, .answer_begin = 0});
  }
  backend().begin(batch);
  std::size_t next = 0;
  for (auto _ : state) {
    backend().linear({weights[next++ % kMatrices].get()}, x.data(), rows, out.data(), kWidth);
    benchmark::DoNotOptimize(out.data());
  }
}

int run(int argc, char** argv) {
  for (const Format& format : formats()) {
    for (const std::int64_t rows : {1, 2, 4, 8, 12, 16, 20}) {
      for (const std::int64_t kept : {0, 5, 10, 20, 30, 50, 70, 100}) {
        const std::string name = std::string(format.name) + "/rows:" + std::to_string(rows) +
                                 (kept == 0 ? std::string("/panels") : "/kept:" + std::to_string(kept));
        benchmark::RegisterBenchmark(
            name.c_str(), [format, rows, kept](benchmark::State& state) { multiply(state, format, rows, kept); })
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  return millrace::run(argc, argv);
}
