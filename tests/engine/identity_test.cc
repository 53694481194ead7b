// The promise of the house: a request gets the same tokens alone and in any company, however its KV memory came about.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "engine/engine_core.h"
#include "recipe/activation_profile.h"
#include "runtime/load_model.h"
#include "runtime/model_fingerprint.h"

namespace millrace {
namespace {

struct Setting {
  const char* name;
  bool prefix_cache = true;
  std::int64_t rows = 96;
  std::int32_t pages = 4000;  // of the KV memory
  unsigned order = 0;         // shuffles the requests
  int steps_between = 0;      // steps between two arrivals
  bool expect_preemptions = false;
};

class Identity : public testing::TestWithParam<const char*> {
 protected:
  static LoadedModel load(std::int64_t rows, std::int32_t pages, DType compute = DType::f32,
                          const std::string& recipe = R"({"millrace_recipe": 1})", std::int32_t swap_pages = 0,
                          std::optional<std::int64_t> max_model_len = {}) {
    LoadOptions options;
    options.path = std::string(MILLRACE_SOURCE_DIR "/tests/fixtures/logits/") + GetParam();
    options.dummy = true;
    options.threads = 2;
    options.compute = compute;
    options.recipe = std::move(*parse_recipe(recipe, "recipe"));
    options.limits = {.max_rows = rows, .max_logit_rows = rows};
    options.max_model_len = max_model_len;
    if (!options.recipe.attention.budgets.profile_file.empty()) {
      options.recipe.attention.budgets.profile = made_up_profile(options);
    }
    const auto plan = plan_model(options);
    EXPECT_TRUE(plan.ok()) << plan.error().message;
    const std::uint64_t page = plan->layout.bytes_per_page_row();
    options.kv_memory = page * static_cast<std::uint64_t>(pages + swap_pages);
    if (options.recipe.attention.keep) options.swap_memory = page * static_cast<std::uint64_t>(swap_pages);
    auto model = load_model(options);
    EXPECT_TRUE(model.ok()) << model.error().message;
    return std::move(*model);
  }

  /// Of the model: each layer needs twice as many pages as the one before.
  static std::shared_ptr<const ActivationProfile> made_up_profile(LoadOptions options) {
    options.recipe = {};
    const auto plan = plan_model(options);
    ActivationProfile profile{
        .model = model_fingerprint(plan->checkpoint), .tokens = 1, .inputs = {}, .gates = {}, .attention = {{}}};
    for (std::size_t l = 0; l < plan->config.layers.size(); ++l) {
      const std::vector<double> shares(static_cast<std::size_t>(plan->config.layers[l].attention.heads), 0.3),
          pages(shares.size(), static_cast<double>(1u << l));
      profile.attention->layers.push_back({static_cast<std::int64_t>(l), 1, shares, shares, shares, pages});
    }
    return std::make_shared<const ActivationProfile>(std::move(profile));
  }

  static void expect_the_same_alone_and_together(const LoadedModel& model);
  static void expect_the_same_in_all_settings(const std::string& recipe, std::size_t longer = 1);
  static void expect_the_same_preempted(const char* recipe);

  /// 64 requests of mixed lengths and settings; half of them begin with one of three common prompts, which are `longer`
  /// times as long.
  static std::vector<Request> requests(std::int64_t vocab, std::size_t longer = 1) {
    std::mt19937 random(2026);
    const auto tokens = [&](std::size_t count) {
      std::vector<std::int32_t> ids(count);
      for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab));
      return ids;
    };
    const std::vector<std::vector<std::int32_t>> common{tokens(64 * longer), tokens(75 * longer), tokens(37 * longer)};
    std::vector<Request> all;
    for (int i = 0; i < 64; ++i) {
      Request request;
      if (i % 2 == 0) request.prompt = common[random() % common.size()];
      const std::vector<std::int32_t> rest = tokens(1 + random() % 60);
      request.prompt.insert(request.prompt.end(), rest.begin(), rest.end());
      request.max_new_tokens = 1 + static_cast<std::int64_t>(random() % 40);
      SamplingParams& s = request.sampling;
      s.seed = random();
      if (i % 3 != 0) s.temperature = 0.5f + static_cast<float>(random() % 10) / 10.0f;
      if (i % 4 == 1) s.top_p = 0.9f;
      if (i % 5 == 1) s.top_k = 20;
      if (i % 7 == 1) s.min_p = 0.02f;
      if (i % 6 == 1) s.repetition_penalty = 1.2f;
      if (i % 6 == 2) s.frequency_penalty = 0.5f;
      if (i % 9 == 1) s.logit_bias = {{5, 3.0f}};
      if (i % 8 == 3) request.choices = 3;
      if (i % 10 == 4) request.logprobs = 3;
      request.priority = static_cast<std::int32_t>(i % 3) - 1;
      all.push_back(std::move(request));
    }
    return all;
  }

  using Answers = std::map<std::pair<int, int>, std::vector<std::int32_t>>;  // by request and choice

  /// Of every `step`-th request.
  static Answers each_alone(const LoadedModel& model, const std::vector<Request>& all, int step);

  static Answers run(EngineCore& engine, const std::vector<Request>& all, const std::vector<int>& order,
                     int steps_between) {
    Answers answers;
    for (const int i : order) {
      Request request = all[static_cast<std::size_t>(i)];
      const Status prepared = engine.prepare(request);
      EXPECT_TRUE(prepared.ok()) << prepared.error().message;
      engine.submit(
          static_cast<RequestId>(i), std::move(request),
          [&answers, i](const TokenEvent& event) {
            if (event.token >= 0) answers[{i, event.choice}].push_back(event.token);
            return Demand::more;
          },
          EngineCore::Clock::now());
      for (int s = 0; s < steps_between; ++s) engine.step();
    }
    while (engine.step()) {
    }
    engine.scheduler().check();
    EXPECT_EQ(engine.snapshot().kv.used_pages, 0);
    return answers;
  }
};

Identity::Answers Identity::each_alone(const LoadedModel& model, const std::vector<Request>& all, int step) {
  EngineCore engine(*model.runner, nullptr, {.prefix_cache = false});
  Answers alone;
  for (int i = 0; i < static_cast<int>(all.size()); i += step) alone.merge(run(engine, all, {i}, 0));
  return alone;
}

void Identity::expect_the_same_in_all_settings(const std::string& recipe, std::size_t longer) {
  const auto long_pages = static_cast<std::int32_t>(12 * longer);
  Answers alone;
  std::vector<Request> all;
  {
    const LoadedModel model = load(96, 4000, DType::f32, recipe);
    all = requests(model.runner->config().vocab, longer);
    alone = each_alone(model, all, 1);
  }
  const Setting settings[] = {
      {.name = "together, without prefix cache", .prefix_cache = false},
      {.name = "together"},
      {.name = "arriving one by one", .order = 7, .steps_between = 2},
      {.name = "preempted, without prefix cache",
       .prefix_cache = false,
       .pages = long_pages,
       .expect_preemptions = true},
      {.name = "preempted", .pages = long_pages, .order = 3, .steps_between = 1, .expect_preemptions = true},
      {.name = "small steps", .rows = 17, .order = 11},
  };
  for (const Setting& setting : settings) {
    SCOPED_TRACE(setting.name);
    LoadedModel model = load(setting.rows, setting.pages, DType::f32, recipe);
    EngineCore engine(*model.runner, nullptr, {.prefix_cache = setting.prefix_cache});
    std::vector<int> order(all.size());
    std::iota(order.begin(), order.end(), 0);
    if (setting.order != 0) std::shuffle(order.begin(), order.end(), std::mt19937(setting.order));
    EXPECT_EQ(run(engine, all, order, setting.steps_between), alone);
    const Scheduler::Counters& counters = engine.scheduler().counters();
    // Where every layer has a window, no sequence holds enough pages to be in another's way.
    const std::vector<std::int64_t> windows = model.runner->cache().windows();
    const bool holds_all = std::ranges::find(windows, 0) != windows.end();
    if (model.runner->policy().keep) {
      EXPECT_EQ(counters.preemptions, 0);  // all that a sequence will hold was promised to it
    } else if (!setting.expect_preemptions) {
      EXPECT_EQ(counters.preemptions, 0);
    } else if (holds_all) {
      EXPECT_GT(counters.preemptions, 0);
    }
    EXPECT_EQ(counters.cached_tokens > 0, setting.prefix_cache) << counters.cached_tokens;
  }
}

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

/// Sequences that keep some pages: with a policy that keeps everything, the answers are those of a dense model.
TEST_P(Identity, OfSequencesThatKeepSomePagesToo) {
  const auto recipe = [](const char* select, int tokens, int levels, int last = 0) {
    return fmt::format(R"({{"millrace_recipe": 1, "attention": {{"keep": {{"select": "{}", "tokens": {},
        {} "sink_tokens": 16, "recent_tokens": 16, "levels": {}}}}}}})",
                       select, tokens, last > 0 ? fmt::format(R"("last_tokens": {},)", last) : "", levels);
  };
  const LoadedModel dense = load(96, 4000);
  const std::vector<std::int64_t> windows = dense.runner->cache().windows();
  const bool keeps = std::ranges::find(windows, 0) != windows.end();
  const std::vector<Request> all = requests(dense.runner->config().vocab);
  const Answers of_dense = each_alone(dense, all, 3);
  for (const char* select : {"heavy_hitters", "relevance", "recent", "random"}) {
    SCOPED_TRACE(select);
    expect_the_same_in_all_settings(recipe(select, 64, 1));
    const LoadedModel some = load(96, 4000, DType::f32, recipe(select, 64, 1));
    const Answers of_some = each_alone(some, all, 3);
    EXPECT_EQ(of_some != of_dense, keeps);  // else the test says nothing
    // Rows of prompts see everything: they say the first token.
    for (const auto& [key, tokens] : of_dense) EXPECT_EQ(of_some.at(key).front(), tokens.front()) << key.first;
    const LoadedModel everything = load(96, 4000, DType::f32, recipe(select, 256, 1));
    EXPECT_EQ(each_alone(everything, all, 3), of_dense);
  }
  expect_the_same_in_all_settings(recipe("heavy_hitters", 64, 0));
  expect_the_same_in_all_settings(recipe("relevance", 80, 2));
  // The last level keeps less than the first.
  expect_the_same_in_all_settings(recipe("heavy_hitters", 112, 0, 64));
  const LoadedModel falling = load(96, 4000, DType::f32, recipe("heavy_hitters", 112, 0, 64));
  const LoadedModel equal = load(96, 4000, DType::f32, recipe("heavy_hitters", 112, 0));
  const bool of_levels = std::ranges::count(equal.runner->cache().windows(), 0) > 1;
  EXPECT_EQ(each_alone(falling, all, 3) != each_alone(equal, all, 3), of_levels);
  const LoadedModel everything = load(96, 4000, DType::f32, recipe("heavy_hitters", 512, 0, 256));
  EXPECT_EQ(each_alone(everything, all, 3), of_dense);
}

/// Whoever reads too slowly is preempted by who waits: swapped out, or computed again where there is no room for that.
TEST_P(Identity, OfSequencesThatKeepSomePagesAndArePreempted) {
  expect_the_same_preempted(R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters",
      "tokens": 64, "sink_tokens": 16, "recent_tokens": 16, "levels": 0}}})");
  // Levels of unequal budgets, whose bounds of keys are swapped with them.
  expect_the_same_preempted(R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters", "tokens": 96,
      "last_tokens": 64, "sink_tokens": 16, "recent_tokens": 16, "levels": 0}, "decode": {"select": "quest",
      "tokens": 64, "sink_tokens": 16, "recent_tokens": 16, "dense_layers": 1}}})");
}

void Identity::expect_the_same_preempted(const char* recipe) {
  const LoadedModel wide = load(96, 4000, DType::f32, recipe);
  const std::vector<std::int64_t> windows = wide.runner->cache().windows();
  const std::vector<Request> all = requests(wide.runner->config().vocab);
  const Answers alone = each_alone(wide, all, 1);
  for (const std::int32_t swap_pages : {0, 30}) {
    SCOPED_TRACE(swap_pages);
    const LoadedModel model = load(96, 45, DType::f32, recipe, swap_pages);
    EngineCore engine(*model.runner, nullptr);
    std::mt19937 random(7);
    Answers answers;
    std::vector<std::pair<RequestId, std::int32_t>> paused;
    for (std::size_t i = 0; i < all.size(); ++i) {
      Request request = all[i];
      ASSERT_TRUE(engine.prepare(request).ok());
      engine.submit(
          i, std::move(request),
          [&, i](const TokenEvent& event) {
            if (event.token >= 0) answers[{static_cast<int>(i), event.choice}].push_back(event.token);
            if (event.finish != FinishReason::none || random() % 3 != 0) return Demand::more;
            paused.emplace_back(i, event.choice);
            return Demand::pause;
          },
          EngineCore::Clock::now());
    }
    while (!engine.idle()) {
      const bool ran = engine.step();
      while (!paused.empty() && (!ran || random() % 8 == 0)) {
        const auto chosen = paused.begin() + static_cast<std::ptrdiff_t>(random() % paused.size());
        engine.resume(chosen->first, chosen->second);
        paused.erase(chosen);
        if (!ran) break;
      }
    }
    engine.scheduler().check();
    EXPECT_EQ(answers, alone);
    const Scheduler::Counters& counters = engine.scheduler().counters();
    EXPECT_GT(counters.preemptions, 0);
    const bool keeps = std::ranges::find(windows, 0) != windows.end();
    EXPECT_EQ(counters.swaps > 0, swap_pages > 0 && keeps) << counters.swaps;
  }
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

/// Answers that are longer than the model's context: pages that are too far away count as if they stood nearer.
TEST_P(Identity, OfAnswersBeyondTheContext) {
  for (const char* select : {"recent", "heavy_hitters"}) {
    SCOPED_TRACE(select);
    const std::string recipe = fmt::format(R"({{"millrace_recipe": 1, "attention": {{"keep": {{"select": "{}",
        "tokens": 96, "sink_tokens": 16, "recent_tokens": 32, "levels": 0}}}}}})",
                                           select);
    constexpr std::int64_t kLength = 1100;  // the context is 256
    const LoadedModel wide = load(96, 4000, DType::f32, recipe, 0, kLength);
    ASSERT_EQ(wide.runner->config().max_position, 256);
    const std::vector<std::int64_t> windows = wide.runner->cache().windows();
    const std::int64_t length = std::ranges::find(windows, 0) != windows.end() ? kLength : 256;
    ASSERT_EQ(wide.runner->max_sequence_tokens(), length);
    std::vector<Request> all = requests(wide.runner->config().vocab);
    all.resize(8);
    for (Request& request : all) {
      request.choices = 1;
      request.max_new_tokens = 2000;  // cut to what fits
    }
    const Answers alone = each_alone(wide, all, 1);
    for (const auto& [key, tokens] : alone) {
      const std::size_t prompt = all[static_cast<std::size_t>(key.first)].prompt.size();
      EXPECT_EQ(tokens.size() + prompt, static_cast<std::size_t>(length));
    }
    for (const std::int64_t rows : {96, 19}) {
      const LoadedModel model = load(rows, 60, DType::f32, recipe, 0, kLength);
      EngineCore engine(*model.runner, nullptr);
      std::vector<int> order(all.size());
      std::iota(order.rbegin(), order.rend(), 0);
      EXPECT_EQ(run(engine, all, order, 3), alone);
    }
    Request too_long = all[0];
    too_long.prompt.assign(257, 1);
    EngineCore engine(*wide.runner, nullptr);
    EXPECT_FALSE(engine.prepare(too_long).ok());
  }
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

/// Every fourth request alone without the prefix cache, and all at once, last come first, with it.
void Identity::expect_the_same_alone_and_together(const LoadedModel& model) {
  const std::vector<Request> all = requests(model.runner->config().vocab);
  const Answers alone = each_alone(model, all, 4);
  EngineCore engine(*model.runner, nullptr);
  std::vector<int> order(all.size());
  std::iota(order.rbegin(), order.rend(), 0);
  const Answers together = run(engine, all, order, 0);
  for (const auto& [key, tokens] : alone) EXPECT_EQ(together.at(key), tokens) << key.first;
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
