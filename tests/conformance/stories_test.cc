// A trained model: stories260K against transformers on the same weights (tests/fixtures/stories).

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "conformance/fixture_model.h"

namespace millrace {
namespace {

nlohmann::json expected() {
  std::ifstream file(MILLRACE_SOURCE_DIR "/tests/fixtures/stories/expected.json");
  return nlohmann::json::parse(file);
}

LoadedModel load_stories() {
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/models/stories260K";
  options.limits = {.max_rows = 512, .max_logit_rows = 512};
  auto model = load_model(options);
  if (!model.ok()) {
    ADD_FAILURE() << model.error().message;
    std::abort();
  }
  return std::move(*model);
}

TEST(Stories, GreedyContinuationsEqualTransformers) {
  LoadedModel model = load_stories();
  const nlohmann::json answers = expected();
  ASSERT_EQ(answers.at("prompts").size(), 3u);
  for (const nlohmann::json& prompt : answers.at("prompts")) {
    const auto ids = model.tokenizer->encode(prompt.at("text").get<std::string>(), true);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, prompt.at("ids").get<std::vector<std::int32_t>>());
    const auto greedy = prompt.at("greedy").get<std::vector<std::int32_t>>();
    ASSERT_EQ(greedy.size(), 200u);
    Request request;
    request.prompt = *ids;
    request.max_new_tokens = static_cast<std::int64_t>(greedy.size());
    EXPECT_EQ(run_alone(*model.runner, std::move(request)), greedy);
  }
}

/// Sum of -ln p over all tokens of a window but its first.
double window_nll(ModelRunner& runner, const std::vector<std::int32_t>& ids) {
  const std::vector<float> logits = prompt_logits(runner, ids, 512);
  const auto vocab = static_cast<std::size_t>(runner.config().vocab);
  double nll = 0.0;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    const float* row = logits.data() + i * vocab;
    double sum = 0.0;
    for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v]));
    nll += std::log(sum) - static_cast<double>(row[static_cast<std::size_t>(ids[i + 1])]);
  }
  return nll;
}

TEST(Stories, PerplexityEqualsTransformers) {
  const nlohmann::json answer = expected().at("perplexity");
  const std::filesystem::path path =
      std::filesystem::path(MILLRACE_SOURCE_DIR) / "../shared/data/text" / answer.at("text").get<std::string>();
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs " << path << ", which is not part of the project";
  LoadedModel model = load_stories();
  std::ifstream file(path);
  double nll = 0.0;
  std::int64_t tokens = 0, windows = 0;
  const std::size_t window = expected().at("window").get<std::size_t>();
  for (std::string story; std::getline(file, story);) {
    if (story.ends_with('\r')) story.pop_back();
    if (story.empty()) continue;
    const auto ids = model.tokenizer->encode(story, true);
    ASSERT_TRUE(ids.ok());
    for (std::size_t start = 0; start < ids->size(); start += window) {
      const std::size_t end = std::min(ids->size(), start + window);
      if (end - start < 2) continue;
      nll += window_nll(*model.runner, {ids->begin() + static_cast<std::ptrdiff_t>(start),
                                        ids->begin() + static_cast<std::ptrdiff_t>(end)});
      tokens += static_cast<std::int64_t>(end - start) - 1;
      ++windows;
    }
  }
  EXPECT_EQ(tokens, answer.at("tokens").get<std::int64_t>());
  EXPECT_EQ(windows, answer.at("windows").get<std::int64_t>());
  const double perplexity = std::exp(nll / static_cast<double>(tokens)), judged = answer.at("value").get<double>();
  std::cout << "stories260K: perplexity " << perplexity << " over " << tokens << " tokens, transformers " << judged
            << '\n';
  EXPECT_NEAR(perplexity, judged, 1e-4 * judged);
}

}  // namespace
}  // namespace millrace
