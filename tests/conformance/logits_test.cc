// Every model family against transformers' answers, on every backend that runs here.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "conformance/fixture_model.h"

namespace millrace {
namespace {

std::vector<std::string> backends() {
  std::vector<std::string> names{"reference"};
  for (const IsaLevel level : kIsaLevels) {
    if (isa_available(level)) names.push_back("cpu:" + std::string(isa_level_name(level)));
  }
  if (cuda_available()) names.emplace_back("cuda");
  return names;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0.0f;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float difference = std::fabs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;  // a NaN counts as the largest
  }
  return largest;
}

std::vector<std::int32_t> greedy(LoadedModel& model, const Fixture& fixture) {
  Request request;
  request.prompt = fixture.prompt;
  request.max_new_tokens = static_cast<std::int64_t>(fixture.greedy.size());
  return run_alone(*model.runner, std::move(request));
}

class Family : public testing::TestWithParam<std::string> {};

TEST_P(Family, LogitsAndGreedyTokensAgreeWithTransformers) {
  const Fixture fixture = read_fixture(GetParam());
  for (const std::string& backend : backends()) {
    SCOPED_TRACE(backend);
    LoadedModel model = load_fixture(fixture, backend);
    ASSERT_EQ(model.runner->config().vocab, fixture.vocab);
    const std::vector<float> logits = prompt_logits(*model.runner, fixture.prompt, 512);
    ASSERT_EQ(logits.size(), fixture.logits.size());
    EXPECT_LE(largest_difference(logits, fixture.logits), 1e-4f * fixture.max_abs_logit);
    EXPECT_EQ(greedy(model, fixture), fixture.greedy);
  }
}

/// The largest difference at each position, sorted.
std::vector<float> differences_by_position(const std::vector<float>& a, const std::vector<float>& b,
                                           std::size_t vocab) {
  std::vector<float> largest;
  for (std::size_t row = 0; row < a.size(); row += vocab) {
    const auto at = static_cast<std::ptrdiff_t>(row), end = static_cast<std::ptrdiff_t>(row + vocab);
    largest.push_back(largest_difference({a.begin() + at, a.begin() + end}, {b.begin() + at, b.begin() + end}));
  }
  std::sort(largest.begin(), largest.end());
  return largest;
}

// BF16 rounds every input of a matrix product to 8 bits of significand. How that grows through a network of random
// weights has no sharp bound, so the yardstick is the error that transformers itself makes when it computes in
// bfloat16, where activations are rounded between the products too: twice its largest error over all positions, and
// twice the median of the positions' largest. In a mixture of experts rounding may tip the choice of an expert, in one
// program and not in the other, which changes a whole row; there only the median is demanded.
TEST_P(Family, Bf16ComputeStaysWithinTransformersOwnError) {
  const Fixture fixture = read_fixture(GetParam());
  for (const std::string& backend : backends()) {
    SCOPED_TRACE(backend);
    LoadedModel model = load_fixture(fixture, backend, DType::bf16);
    const std::vector<float> logits = prompt_logits(*model.runner, fixture.prompt, 512);
    const std::vector<float> errors =
        differences_by_position(logits, fixture.logits, static_cast<std::size_t>(fixture.vocab));
    const std::vector<LayerSpec>& layers = model.runner->config().layers;
    const bool experts = std::any_of(layers.begin(), layers.end(), [](const auto& l) { return l.moe.experts > 0; });
    EXPECT_LE(errors[errors.size() / 2], 2.0f * fixture.bf16_median_error);
    if (!experts) {
      EXPECT_LE(errors.back(), 2.0f * fixture.bf16_max_error);
    }
    EXPECT_GT(errors.back(), 1e-4f * fixture.max_abs_logit) << "nothing was rounded";
  }
}

// The rule of the house: how a step was cut, what shares it and how many threads run it change no bit.
TEST_P(Family, BatchingChangesNoBit) {
  const Fixture fixture = read_fixture(GetParam());
  for (const std::string& backend : backends()) {
    if (backend == "reference") continue;
    for (const DType compute : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(backend + (compute == DType::bf16 ? " bf16" : " f32"));
      LoadedModel model = load_fixture(fixture, backend, compute, 1, 16 * 64);
      const std::vector<float> expected = prompt_logits(*model.runner, fixture.prompt, 64);
      const auto expect_same = [&](const std::vector<float>& logits, const std::string& how) {
        ASSERT_EQ(logits.size(), expected.size());
        EXPECT_EQ(std::memcmp(logits.data(), expected.data(), expected.size() * sizeof(float)), 0) << how;
      };
      for (const std::int64_t chunk : {1, 7, 64, 1024}) {
        expect_same(prompt_logits(*model.runner, fixture.prompt, chunk), "chunk " + std::to_string(chunk));
      }
      expect_same(prompt_logits(*model.runner, fixture.prompt, 7, 15), "beside 15 others, chunk 7");
      expect_same(prompt_logits(*model.runner, fixture.prompt, 1, 15), "beside 15 others, chunk 1");
      LoadedModel threaded = load_fixture(fixture, backend, compute, 2, 16 * 64);
      expect_same(prompt_logits(*threaded.runner, fixture.prompt, 64), "two threads");
      expect_same(prompt_logits(*threaded.runner, fixture.prompt, 7, 15), "two threads beside 15 others");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Family, testing::ValuesIn(fixture_names()),
                         [](const auto& fixture) { return fixture.param; });

}  // namespace
}  // namespace millrace
