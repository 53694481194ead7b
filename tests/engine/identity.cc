#include "identity.h"

#include <algorithm>
#include <numeric>
#include <random>

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

}  // namespace

LoadedModel Identity::load(std::int64_t rows, std::int32_t pages, DType compute, const std::string& recipe,
                           std::int32_t swap_pages, std::optional<std::int64_t> max_model_len) {
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

std::shared_ptr<const ActivationProfile> Identity::made_up_profile(LoadOptions options) {
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

std::vector<Request> Identity::requests(std::int64_t vocab, std::size_t longer) {
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

Identity::Answers Identity::run(EngineCore& engine, const std::vector<Request>& all, const std::vector<int>& order,
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

void Identity::expect_the_same_alone_and_together(const LoadedModel& model) {
  const std::vector<Request> all = requests(model.runner->config().vocab);
  const Answers alone = each_alone(model, all, 4);
  EngineCore engine(*model.runner, nullptr);
  std::vector<int> order(all.size());
  std::iota(order.rbegin(), order.rend(), 0);
  const Answers together = run(engine, all, order, 0);
  for (const auto& [key, tokens] : alone) EXPECT_EQ(together.at(key), tokens) << key.first;
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

}  // namespace millrace
