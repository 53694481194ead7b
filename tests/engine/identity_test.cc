// Batch invariance under every recipe that reads, or computes, less.

#include "identity.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace millrace {
namespace {

TEST_P(Identity, SameTokensAloneTogetherCachedPreemptedAndInAnyOrder) {
  expect_the_same_in_all_settings(R"({"millrace_recipe": 1})");
}

TEST_P(Identity, OfAnswersThatSelectPagesToo) {
  constexpr const char* kRecipe = R"({"millrace_recipe": 1, "attention": {"decode": {"select": "quest", "tokens": 64,
      "sink_tokens": 16, "recent_tokens": 16, "dense_layers": 0}}})";
  expect_the_same_in_all_settings(kRecipe);
  // They do select, where a layer has no window; else the test says nothing.
  const LoadedModel dense = load(96, 4000), selecting = load(96, 4000, DType::f32, kRecipe);
  const std::vector<std::int64_t> windows = dense.runner->cache().windows();
  const std::vector<Request> all = requests(dense.runner->config().vocab);
  const Answers of_dense = each_alone(dense, all, 4), of_selecting = each_alone(selecting, all, 4);
  EXPECT_EQ(of_dense != of_selecting, std::ranges::find(windows, 0) != windows.end());
  // Prompts do not: they say the first token.
  for (const auto& [key, tokens] : of_dense) EXPECT_EQ(of_selecting.at(key).front(), tokens.front()) << key.first;
}

TEST_P(Identity, OfAnswersWhoseLayersSelectByAProfileToo) {
  const auto recipe = [](int tokens) {
    return fmt::format(R"({{"millrace_recipe": 1, "attention": {{"decode": {{"select": "quest", "tokens": {},
        "sink_tokens": 16, "recent_tokens": 16, "dense_layers": 0, "profile": "p"}}}}}})",
                       tokens);
  };
  expect_the_same_in_all_settings(recipe(80));
  const LoadedModel dense = load(96, 4000), selecting = load(96, 4000, DType::f32, recipe(80)),
                    all_read = load(96, 4000, DType::f32, recipe(8192));
  const std::vector<std::int64_t> windows = dense.runner->cache().windows();
  const std::vector<Request> all = requests(dense.runner->config().vocab);
  const Answers of_dense = each_alone(dense, all, 4);
  EXPECT_EQ(of_dense != each_alone(selecting, all, 4), std::ranges::find(windows, 0) != windows.end());
  EXPECT_EQ(of_dense, each_alone(all_read, all, 4)) << "every layer's budget reaches the length";
}

TEST_P(Identity, OfPromptsThatSelectBlocksToo) {
  const auto recipe = [](const char* prefill, const char* decode) {
    return fmt::format(R"({{"millrace_recipe": 1, "attention": {{"prefill": {{{}, "sink_tokens": 0,
        "recent_tokens": 1, "dense_layers": 0}}{}}}}})",
                       prefill, decode);
  };
  const std::string by_mass = recipe(R"("select": "xattention", "mass": 0.05)", "");
  expect_the_same_in_all_settings(by_mass, 2);
  expect_the_same_in_all_settings(recipe(R"("select": "xattention", "mass": 0.5, "tokens": 128)",
                                         R"(, "decode": {"select": "quest", "tokens": 64, "sink_tokens": 16,
                                             "recent_tokens": 16, "dense_layers": 0})"),
                                  2);
  // They do select, where a layer has no window; else the test says nothing.
  const LoadedModel dense = load(96, 4000), selecting = load(96, 4000, DType::f32, by_mass);
  const std::vector<std::int64_t> windows = dense.runner->cache().windows();
  const std::vector<Request> all = requests(dense.runner->config().vocab, 2);
  EXPECT_EQ(each_alone(dense, all, 2) != each_alone(selecting, all, 2), std::ranges::find(windows, 0) != windows.end());
}

TEST_P(Identity, OfPromptsThatApproximateToo) {
  const auto recipe = [](const char* kv, const char* decode) {
    return fmt::format(R"({{"millrace_recipe": 1, "kv": {{{}}}, "attention": {{"prefill": {{"select": "hyper",
        "block": 20, "samples": 12, "chunk": 64, "min_tokens": 0, "sink_tokens": 0, "recent_tokens": 0,
        "dense_layers": 0}}{}}}}})",
                       kv, decode);
  };
  const std::string plain = recipe("", "");
  expect_the_same_in_all_settings(plain, 2);
  expect_the_same_in_all_settings(recipe(R"("format": "int8")",
                                         R"(, "decode": {"select": "quest", "tokens": 64, "sink_tokens": 16,
                                             "recent_tokens": 16, "dense_layers": 0})"),
                                  2);
  // They do approximate, where a layer has no window; else the test says nothing.
  const LoadedModel dense = load(96, 4000), approximate = load(96, 4000, DType::f32, plain);
  const std::vector<std::int64_t> windows = dense.runner->cache().windows();
  const std::vector<Request> all = requests(dense.runner->config().vocab, 2);
  EXPECT_EQ(each_alone(dense, all, 2) != each_alone(approximate, all, 2),
            std::ranges::find(windows, 0) != windows.end());
}

TEST_P(Identity, OfAnswersThatLeaveOutInputsToo) {
  const std::vector<Request> all = requests(load(96, 4000).runner->config().vocab);
  const auto recipe = [](const char* method, double threshold, const char* weights) {
    return fmt::format(
        R"({{"millrace_recipe": 1, "weights": {{"default": "{}"}}, "activations": {{"method": "{}", "thresholds": {{"*": {}}}}}}})",
        weights, method, threshold);
  };
  // Experts are computed in full.
  const bool experts = std::string_view(GetParam()) == "mixtral" || std::string_view(GetParam()) == "gpt_oss";
  for (const char* method : {"teal", "down", "cats"}) {
    if (experts && std::string_view(method) != "teal") continue;
    SCOPED_TRACE(method);
    for (const char* weights : {"stored", "int4.g32"}) {
      SCOPED_TRACE(weights);
      const LoadedModel dense = load(
          96, 4000, DType::f32, fmt::format(R"({{"millrace_recipe": 1, "weights": {{"default": "{}"}}}})", weights));
      const LoadedModel nothing = load(96, 4000, DType::f32, recipe(method, 0.0, weights));
      const LoadedModel some = load(96, 4000, DType::f32, recipe(method, 0.4, weights));
      const Answers of_dense = each_alone(dense, all, 4), of_some = each_alone(some, all, 4);
      EXPECT_EQ(each_alone(nothing, all, 4), of_dense);
      EXPECT_NE(of_some, of_dense);  // else the test says nothing
      // Prompts leave out nothing: they say the first token.
      for (const auto& [key, tokens] : of_dense) EXPECT_EQ(of_some.at(key).front(), tokens.front()) << key.first;
      expect_the_same_alone_and_together(some);
      expect_the_same_alone_and_together(nothing);
    }
    expect_the_same_alone_and_together(load(96, 4000, DType::bf16, recipe(method, 0.4, "stored")));
  }
  expect_the_same_in_all_settings(recipe("teal", 0.4, "stored"));
}

/// With made-up choices, so that any activation will do.
TEST_P(Identity, OfAnswersThatChooseNeuronsToo) {
  if (std::string_view(GetParam()) == "mixtral" || std::string_view(GetParam()) == "gpt_oss") {
    GTEST_SKIP() << "experts are computed in full";
  }
  const std::vector<Request> all = requests(load(96, 4000).runner->config().vocab);
  const auto recipe = [](const char* weights, double density) {
    return fmt::format(
        R"({{"millrace_recipe": 1, "weights": {{"default": "{}"}}, "activations": {{"method": "hot_cold", "imposed": {}}}}})",
        weights, density);
  };
  for (const char* weights : {"stored", "int8", "int4.g32"}) {
    SCOPED_TRACE(weights);
    const LoadedModel everything = load(96, 4000, DType::f32, recipe(weights, 1.0)),
                      some = load(96, 4000, DType::f32, recipe(weights, 0.3));
    EXPECT_NE(each_alone(some, all, 4), each_alone(everything, all, 4));  // else the test says nothing
    expect_the_same_alone_and_together(some);
  }
  expect_the_same_alone_and_together(load(96, 4000, DType::bf16, recipe("stored", 0.3)));
  expect_the_same_in_all_settings(recipe("stored", 0.3));
}

/// Values of chunks that are not worth it, by rows of prompts and of answers alike, so that answers are shared too.
TEST_P(Identity, OfValuesThatAreLeftOutToo) {
  const auto recipe = [](double threshold) {
    return fmt::format(R"({{"millrace_recipe": 1, "attention": {{"skip_softmax": {{"threshold": {}}}}}}})", threshold);
  };
  expect_the_same_in_all_settings(recipe(0.9), 2);
  const LoadedModel dense = load(96, 4000);
  const std::vector<Request> all = requests(dense.runner->config().vocab, 2);
  EXPECT_EQ(each_alone(load(96, 4000, DType::f32, recipe(0)), all, 3), each_alone(dense, all, 3));
  const LoadedModel leaving = load(96, 4000, DType::f32, recipe(0.9));
  (void)each_alone(leaving, all, 16);
  const AttendCounts counts = leaving.runner->backend().attend_counts();
  const std::vector<std::int64_t> windows = dense.runner->cache().windows();
  EXPECT_EQ(counts.read < counts.all, std::ranges::find(windows, 0) != windows.end());  // else the test says nothing
}

/// Weights in four bits, keys and values in eight, prompts that select blocks or approximate, answers that select pages
/// and leave out inputs: in one recipe.
TEST_P(Identity, OfAllMethodsTogether) {
  for (const char* prefill : {R"("select": "xattention", "mass": 0.5, "sink_tokens": 0, "recent_tokens": 1)",
                              R"("select": "hyper", "block": 20, "samples": 12, "chunk": 64, "min_tokens": 0,
                                 "sink_tokens": 0, "recent_tokens": 0)"}) {
    SCOPED_TRACE(prefill);
    expect_the_same_in_all_settings(fmt::format(R"({{"millrace_recipe": 1, "weights": {{"default": "int4.g32"}},
      "kv": {{"format": "fp8_e4m3"}}, "activations": {{"method": "teal", "thresholds": {{"*": 0.3}}}},
      "attention": {{"prefill": {{{}, "dense_layers": 0}},
                    "decode": {{"select": "quest", "tokens": 64, "sink_tokens": 16, "recent_tokens": 16, "dense_layers": 0}}}}}})",
                                                prefill),
                                    2);
  }
}

TEST_P(Identity, InBfloat16Too) {
  expect_the_same_alone_and_together(load(96, 4000, DType::bf16));
}

TEST_P(Identity, WithRecipesToo) {
  for (const auto& [weights, kv] : {std::pair{"int8", "int8"},
                                    {"int4.g32", "fp8_e4m3"},
                                    {"nvfp4", "int8"},
                                    {"mxfp4", "bf16"},
                                    {"fp8_e4m3", "fp8_e4m3"},
                                    {"int4.g32.a16", "bf16"},
                                    {"fp8_e4m3.a16", "int8"},
                                    {"stored", "fp8_e4m3.unscaled"},
                                    {"int8", "fp8_e5m2"},
                                    {"int4.g32.a16", "int4"}}) {
    SCOPED_TRACE(fmt::format("weights {}, KV {}", weights, kv));
    expect_the_same_alone_and_together(
        load(96, 4000, DType::f32,
             fmt::format(R"({{"millrace_recipe": 1, "weights": {{"default": "{}"}}, "kv": {{"format": "{}"}}}})",
                         weights, kv)));
  }
}

// A plain model; windows on every other layer, and on all; experts; a rope that depends on the length; sinks.
INSTANTIATE_TEST_SUITE_P(Models, Identity,
                         testing::Values("llama2", "gemma2", "mistral_window", "mixtral", "llama_longrope_long",
                                         "gpt_oss"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
}  // namespace millrace
