// Tokens that the GPU draws are those of the sampler on the host. Needs a device; skipped without one, and says so.
#include <gtest/gtest.h>

#include <random>

#include "backend/cuda/cuda_backend.h"
#include "runtime/sampler.h"
#include "runtime/test_rows.h"

namespace millrace {
namespace {

class DeviceDraw : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no CUDA device, or a build without CUDA: nothing is drawn on one";
    auto backend = make_cuda_backend({.threads = 2});
    ASSERT_TRUE(backend.ok()) << backend.error().message;
    backend_ = std::move(*backend);
  }

  Buffer upload(const std::vector<float>& logits) {
    auto buffer = backend_->allocate(logits.size() * sizeof(float));
    EXPECT_TRUE(buffer.ok());
    backend_->write(*buffer, 0, std::as_bytes(std::span(logits)));
    return *buffer;
  }

  SamplingParams random_params() {
    const float temperatures[] = {0.0f, 1.0f, 0.7f, 1.5f, 100.0f, 1e-6f, 1e-40f};
    const float top_ps[] = {1.0f, 0.95f, 0.9f, 0.5f, 0.9999999f, 1e-9f}, min_ps[] = {0.0f, 0.0f, 0.05f, 0.5f, 1.0f};
    const std::int32_t top_ks[] = {0, 0, 1, 2, 40, 300, 1024, 1 << 20};
    return {.temperature = temperatures[random_() % 7],
            .top_k = top_ks[random_() % 8],
            .top_p = top_ps[random_() % 6],
            .min_p = min_ps[random_() % 5],
            .seed = random_(),
            .choice = static_cast<std::uint32_t>(random_() % 3)};
  }

  /// Draws from rows of `vocab` logits, in some order, and compares.
  void check(const std::vector<float>& logits, std::size_t vocab, std::size_t count, const std::string& name) {
    const std::size_t rows = logits.size() / vocab;
    const Buffer on_device = upload(logits);
    std::vector<SamplingParams> params;
    std::vector<TokenDraw> draws;
    for (std::size_t i = 0; i < count; ++i) {
      params.push_back(random_params());
      draws.push_back(*device_draw(params.back(), static_cast<std::int64_t>(i)));
      draws.back().row = static_cast<std::int32_t>(random_() % rows);
      ASSERT_TRUE(backend_->draws(draws.back(), static_cast<std::int64_t>(vocab)));
    }
    std::vector<std::int32_t> tokens(count, -7);
    backend_->draw_tokens(on_device.floats(), static_cast<std::int64_t>(vocab), draws, tokens);
    SamplerScratch scratch;
    for (std::size_t i = 0; i < count; ++i) {
      const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(draws[i].row) * vocab);
      std::vector<float> row(begin, begin + static_cast<std::ptrdiff_t>(vocab));
      ASSERT_EQ(tokens[i], sample(row, params[i], {}, static_cast<std::int64_t>(i), {}, scratch))
          << name << " of " << vocab << ": temperature " << params[i].temperature << ", top_k " << params[i].top_k
          << ", top_p " << params[i].top_p << ", min_p " << params[i].min_p;
    }
  }

  std::unique_ptr<Backend> backend_;
  std::mt19937_64 random_{static_cast<std::uint64_t>(testing::UnitTest::GetInstance()->random_seed())};
};

TEST_F(DeviceDraw, OddRows) {
  for (const TestRow& row : test_rows()) check(row.logits, row.logits.size(), 150, row.name);
}

TEST_F(DeviceDraw, RowsOfVocabularies) {
  std::normal_distribution<float> normal;
  for (const std::size_t vocab : {32000u, 128256u, 262144u}) {
    for (const float width : {0.02f, 1.0f, 3.0f}) {
      std::vector<float> logits(3 * vocab);
      for (float& logit : logits) logit = width * normal(random_);
      for (std::size_t i = 0; i < 2 * vocab; ++i) logits[i] = static_cast<float>(static_cast<int>(logits[i] * 64)) / 64;
      check(logits, vocab, 60, "normal, width " + std::to_string(width));
    }
  }
}

TEST_F(DeviceDraw, RefusesWhatItCannot) {
  EXPECT_FALSE(backend_->draws(*device_draw({.temperature = 1.0f, .top_k = 1025}, 0), 32000));
  EXPECT_FALSE(backend_->draws(*device_draw({}, 0), 1 << 20));
  EXPECT_FALSE(device_draw({.temperature = 1.0f, .presence_penalty = 1.0f}, 0).has_value());
  EXPECT_FALSE(device_draw({.temperature = 1.0f, .logit_bias = {{3, 1.0f}}}, 0).has_value());
}

}  // namespace
}  // namespace millrace
