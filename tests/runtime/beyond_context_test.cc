// Sequences longer than the context that their model was trained with, of which some pages are kept (docs/sparsity.md).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/mapped_file.h"
#include "runtime/load_model.h"
#include "runtime/run_tokens.h"

namespace millrace {
namespace {

constexpr std::int64_t kContext = 2048, kLength = 4 * kContext + 64;

LoadedModel load(const std::string& attention) {
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/models/millrace-tiny";
  options.threads = 2;
  options.limits = {.max_rows = 256, .max_logit_rows = 256};
  if (!attention.empty()) {
    options.recipe =
        std::move(*parse_recipe(R"({"millrace_recipe": 1, "attention": {"keep": )" + attention + "}}", "recipe"));
    options.max_model_len = kLength;
  }
  auto model = load_model(options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(*model);
}

/// Of each token but the first, given those before it.
std::vector<double> nll_of(const LoadedModel& model, std::span<const std::int32_t> tokens) {
  EXPECT_TRUE(check_tokens(*model.runner, tokens, RowsAre::answer).ok());
  std::vector<double> nll;
  const Status ran =
      run_tokens(*model.runner, tokens, RowsAre::answer, [&](std::int64_t position, std::span<const float> logits) {
        const auto next = static_cast<std::size_t>(position) + 1;
        if (next == tokens.size()) return;
        double sum = 0.0;
        for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
        nll.push_back(std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(tokens[next])]));
      });
  EXPECT_TRUE(ran.ok());
  return nll;
}

double mean(std::span<const double> numbers) {
  double sum = 0.0;
  for (const double number : numbers) sum += number;
  return sum / static_cast<double>(numbers.size());
}

TEST(BeyondTheContext, AStreamOfFourContextsIsAsLikelyAsItsParts) {
  const std::filesystem::path path = MILLRACE_SOURCE_DIR "/../shared/data/text/tinyshakespeare.txt";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs " << path << ", which is not part of the project";
  const auto file = read_text_file(path);
  ASSERT_TRUE(file.ok());
  const std::string text = file->substr(0, 60'000);
  const LoadedModel whole = load("");
  std::vector<std::int32_t> tokens = *whole.tokenizer->encode(text, true);
  ASSERT_GT(tokens.size(), static_cast<std::size_t>(kLength));
  tokens.resize(static_cast<std::size_t>(kLength));
  EXPECT_FALSE(check_tokens(*whole.runner, tokens, RowsAre::answer).ok());

  // The last half in windows of which each token has half a context or more before it.
  constexpr std::int64_t kHalf = kContext / 2;
  std::vector<double> expected;
  for (std::int64_t start = kLength / 2; start + kHalf < kLength; start += kHalf) {
    const auto end = std::min<std::int64_t>(start + kHalf, kLength);
    const std::vector<double> window =
        nll_of(whole, std::span(tokens).subspan(static_cast<std::size_t>(start - kHalf),
                                                static_cast<std::size_t>(end - start + kHalf)));
    expected.insert(expected.end(), window.begin() + kHalf, window.end());
  }
  for (const std::string select : {"recent", "heavy_hitters", "relevance"}) {
    const LoadedModel streaming =
        load(R"({"select": ")" + select + R"(", "tokens": 1024, "sink_tokens": 16, "recent_tokens": 256})");
    const std::vector<double> nll = nll_of(streaming, tokens);
    for (const double each : nll) ASSERT_TRUE(std::isfinite(each));
    EXPECT_LT(mean(std::span(nll).last(expected.size())), mean(expected) + 0.1) << select;
  }
}

}  // namespace
}  // namespace millrace
