// Figures of a text against the same ones computed plainly, in double, from logits.
#include "eval/text_quality.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "runtime/load_model.h"
#include "runtime/run_tokens.h"

namespace millrace {
namespace {

LoadedModel load_stories(const std::string& recipe) {
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/models/stories260K";
  options.limits = {.max_rows = 32, .max_logit_rows = 32};
  if (!recipe.empty()) options.recipe = *parse_recipe(recipe, "test");
  auto model = load_model(options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(*model);
}

std::vector<TokenWindow> random_windows(std::int64_t vocab) {
  std::vector<std::int32_t> ids;
  for (std::uint64_t i = 0; i < 350; ++i) {
    ids.push_back(static_cast<std::int32_t>(philox_uniform(1, 0, i) * static_cast<float>(vocab)));
  }
  return *cut_windows(ids, 100, 1);
}

std::vector<std::vector<float>> logits_of(ModelRunner& runner, const TokenWindow& window) {
  std::vector<std::vector<float>> rows;
  const Status ran = run_tokens(runner, window, RowsAre::answer, [&](std::int64_t, std::span<const float> row) {
    rows.emplace_back(row.begin(), row.end());
  });
  EXPECT_TRUE(ran.ok());
  return rows;
}

std::vector<double> log_softmax(const std::vector<float>& logits) {
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  std::vector<double> result;
  for (const float logit : logits) result.push_back(logit - std::log(sum));
  return result;
}

TEST(TextWindows, CutsWithoutOverlap) {
  const std::vector<std::int32_t> ids{10, 11, 12, 13, 14, 15, 16};
  EXPECT_EQ(*cut_windows(ids, 3, std::nullopt), (std::vector<TokenWindow>{{10, 11, 12}, {13, 14, 15}}));  // 16 alone
  EXPECT_EQ(*cut_windows(ids, 4, 1), (std::vector<TokenWindow>{{1, 10, 11, 12}, {1, 13, 14, 15}, {1, 16}}));
  EXPECT_FALSE(cut_windows(ids, 1, std::nullopt).ok());
  EXPECT_FALSE(cut_windows(ids, 2, 1).ok());
  EXPECT_FALSE(cut_windows({}, 4, 1).ok());
}

class TextQualityTest : public ::testing::Test {
 protected:
  TextQualityTest()
      : path_(std::filesystem::path(::testing::TempDir()) / fmt::format("millrace_quality_{}.reference", ::getpid())),
        stored_(load_stories("")),
        windows_(random_windows(stored_.runner->config().vocab)),
        file_(*ReferenceFile::open(path_, "key", static_cast<std::int32_t>(stored_.runner->config().vocab))) {
    EXPECT_TRUE(write_reference(*stored_.runner, windows_, file_, {}).ok());
  }
  ~TextQualityTest() override { std::filesystem::remove(path_); }

  std::filesystem::path path_;
  LoadedModel stored_;
  std::vector<TokenWindow> windows_;
  ReferenceFile file_;
};

TEST_F(TextQualityTest, AModelIsItself) {
  const auto judged = judge_windows(*stored_.runner, windows_, &file_, {});
  ASSERT_TRUE(judged.ok()) << judged.error().message;
  const TextQuality quality = summarize(*judged, true);
  EXPECT_EQ(quality.windows, 4);
  EXPECT_EQ(quality.tokens, 350);  // what a BOS stands before is predicted
  EXPECT_NEAR(quality.comparison->perplexity_ratio.value, 1.0, 1e-4);
  EXPECT_LT(quality.comparison->kl_mean.value, 1e-6);
  EXPECT_LT(quality.comparison->kl_p99.value, 1e-5);
  EXPECT_EQ(quality.comparison->top1_agreement.value, 1.0);
}

TEST_F(TextQualityTest, FiguresAreTheirDefinitions) {
  LoadedModel rounded = load_stories(R"({"millrace_recipe": 1, "weights": {"default": "int4"}})");
  const auto judged = judge_windows(*rounded.runner, windows_, &file_, {});
  ASSERT_TRUE(judged.ok()) << judged.error().message;
  const TextQuality quality = summarize(*judged, true);

  double nll = 0.0, reference_nll = 0.0, kl = 0.0, agreeing = 0.0, tokens = 0.0;
  std::vector<double> each;
  for (const TokenWindow& window : windows_) {
    const auto p_rows = logits_of(*stored_.runner, window), q_rows = logits_of(*rounded.runner, window);
    for (std::size_t t = 0; t + 1 < window.size(); ++t) {
      const auto p = log_softmax(p_rows[t]), q = log_softmax(q_rows[t]);
      const auto next = static_cast<std::size_t>(window[t + 1]);
      nll -= q[next];
      reference_nll -= p[next];
      double here = 0.0;
      for (std::size_t i = 0; i < p.size(); ++i) here += std::exp(p[i]) * (p[i] - q[i]);
      each.push_back(here);
      kl += here;
      agreeing += std::ranges::max_element(p) - p.begin() == std::ranges::max_element(q) - q.begin() ? 1.0 : 0.0;
      tokens += 1.0;
    }
  }
  const Comparison& c = *quality.comparison;
  EXPECT_NEAR(quality.perplexity.value / std::exp(nll / tokens), 1.0, 1e-6);
  EXPECT_NEAR(c.reference_perplexity.value / std::exp(reference_nll / tokens), 1.0, 1e-4);
  EXPECT_NEAR(c.perplexity_ratio.value / std::exp((nll - reference_nll) / tokens), 1.0, 1e-4);
  EXPECT_NEAR(c.kl_mean.value, kl / tokens, 1e-3 * kl / tokens);
  EXPECT_NEAR(c.top1_agreement.value, agreeing / tokens, 1e-9);
  EXPECT_LT(c.top1_agreement.value, 1.0);
  std::ranges::sort(each);
  EXPECT_NEAR(c.kl_p99.value, each[each.size() - 1 - 3], 1e-3 * each.back());  // 1 % of 350 are more than three
  for (const Estimate* estimate : {&quality.perplexity, &c.perplexity_ratio, &c.kl_mean, &c.top1_agreement}) {
    ASSERT_TRUE(estimate->interval);
    EXPECT_LE(estimate->interval->first, estimate->value);
    EXPECT_GE(estimate->interval->second, estimate->value);
  }
}

TEST_F(TextQualityTest, WithoutAReferenceThereIsThePerplexity) {
  const auto judged = judge_windows(*stored_.runner, windows_, nullptr, {});
  ASSERT_TRUE(judged.ok());
  const TextQuality quality = summarize(*judged, false);
  EXPECT_FALSE(quality.comparison);
  EXPECT_GT(quality.perplexity.value, 1.0);
}

}  // namespace
}  // namespace millrace
