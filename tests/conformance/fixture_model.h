// The committed fixtures of tests/fixtures/logits: tiny configurations of every model family with transformers'
// answers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "engine/request.h"
#include "runtime/load_model.h"

namespace millrace {

struct Fixture {
  std::filesystem::path directory;  // has config.json; the weights are the dummy ones
  std::vector<std::int32_t> prompt;
  std::vector<std::int32_t> greedy;  // transformers' continuation
  std::vector<float> logits;         // [prompt, vocab], float32
  float max_abs_logit = 0.0f;
  // transformers' own error when it computes in bfloat16: the largest, and the median over the positions of each
  // position's largest.
  float bf16_max_error = 0.0f, bf16_median_error = 0.0f;
  std::int64_t vocab = 0;
};

/// Names of all fixtures, sorted; at least one, else the tests would silently check nothing.
std::vector<std::string> fixture_names();
Fixture read_fixture(const std::string& name);

/// Loads the fixture's model; fails the calling test when that fails.
LoadedModel load_fixture(const Fixture& fixture, const std::string& backend, DType compute = DType::f32,
                         int threads = 1, std::int64_t max_rows = 512);

/// Logits of every position of `prompt`, computed in chunks of `chunk` tokens, beside `others` other sequences that run
/// in the same batches. Row-major [prompt, vocab].
std::vector<float> prompt_logits(ModelRunner& runner, std::span<const std::int32_t> prompt, std::int64_t chunk,
                                 int others = 0);

/// The tokens of a request that runs alone, to its end.
std::vector<std::int32_t> run_alone(ModelRunner& runner, Request request);

}  // namespace millrace
