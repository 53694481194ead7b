// Steps that the backend could not compute: who was in them ends with the reason, nobody else does, and nothing that
// such a step has stored is ever read.

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <random>

#include "backend/forwarding_backend.h"
#include "backend/unnamed_file.h"
#include "engine/engine_core.h"
#include "runtime/load_model.h"

namespace millrace {
namespace {

constexpr const char* kReason = "the disk is on fire";

/// A backend whose step goes wrong when it is told so: keys and values behind the first layer are of something else.
class FailingBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  std::function<bool()> fails = [] { return false; };  // asked once a step

  void begin(const ForwardBatch& batch) override {
    inner().begin(batch);
    failing_ = fails();
  }
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override {
    inner().gated_ffn(ffn, x, rows, scratch, out);
    if (!failing_) return;
    for (std::int64_t i = 0; i < rows * ffn.down.weight->rows(); ++i) out[i] += static_cast<float>(i % 7) - 3.0f;
  }
  Status take_failure() override {
    if (std::exchange(failing_, false)) return fail("{}", kReason);
    return Ok{};
  }

 private:
  bool failing_ = false;
};

struct FailingModel {
  LoadedModel model;
  FailingBackend* backend = nullptr;
};

FailingModel load_failing(const std::string& recipe, std::int64_t rows, std::uint32_t pages = 0) {
  FailingModel loaded;
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/tests/fixtures/logits/llama2";
  options.dummy = true;
  options.threads = 1;
  options.kv_memory = std::uint64_t{1} << 20;
  options.limits = {.max_rows = rows, .max_logit_rows = std::min<std::int64_t>(rows, 32)};
  options.recipe = std::move(*parse_recipe(recipe, "recipe"));
  if (pages > 0) options.kv_memory = plan_model(options)->layout.bytes_per_page_row() * pages;
  options.wrap_backend = [&](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    auto wrapped = std::make_unique<FailingBackend>(std::move(inner));
    loaded.backend = wrapped.get();
    return wrapped;
  };
  auto model = load_model(options);
  EXPECT_TRUE(model.ok()) << model.error().message;
  loaded.model = std::move(*model);
  return loaded;
}

/// What came of a request.
struct Told {
  std::map<int, std::vector<std::int32_t>> tokens;  // by choice
  std::vector<float> embedding;
  std::map<int, TokenEvent> last;
  int summaries = 0;
};

Sink sink_of(Told& told) {
  return [&told](const TokenEvent& event) {
    if (event.token >= 0 && !event.of_prompt) told.tokens[event.choice].push_back(event.token);
    if (!event.embedding.empty()) told.embedding = event.embedding;
    if (event.summary != nullptr) ++told.summaries;
    if (event.finish == FinishReason::none) return Demand::more;
    EXPECT_FALSE(told.last.contains(event.choice)) << "one last event a choice";
    told.last[event.choice] = event;
    told.last[event.choice].summary = nullptr;
    return Demand::more;
  };
}

RequestId submit(EngineCore& engine, Request request, Sink sink) {
  static RequestId last = 0;
  const Status prepared = engine.prepare(request);
  EXPECT_TRUE(prepared.ok()) << prepared.error().message;
  engine.submit(++last, std::move(request), std::move(sink), EngineCore::Clock::now());
  return last;
}

void run(EngineCore& engine) {
  while (engine.step()) engine.scheduler().check();
  engine.scheduler().check();
}

Request request(std::int64_t prompt, std::int64_t tokens, std::int32_t kind = 0) {
  Request request;
  for (std::int64_t i = 0; i < prompt; ++i)
    request.prompt.push_back(static_cast<std::int32_t>((5 + kind + 11 * i) % 97));
  request.max_new_tokens = tokens;
  return request;
}

void expect_failed(const Told& told, std::int32_t choice = 0) {
  ASSERT_TRUE(told.last.contains(choice));
  EXPECT_EQ(told.last.at(choice).finish, FinishReason::error);
  EXPECT_EQ(told.last.at(choice).error, kReason);
  EXPECT_TRUE(told.last.at(choice).of_step);
}

TEST(FailedStep, EndsWhoeverWasInItWithTheReasonAndNobodyElse) {
  constexpr std::int64_t kRows = 34;  // of which two decode, and two pages' are a prompt's
  FailingModel failing = load_failing(R"({"millrace_recipe": 1})", kRows);
  std::string reported;
  EngineCore engine(*failing.model.runner, nullptr, {.on_step = [&](const StepReport& step) {
    if (step.failure.empty()) return;
    reported = step.failure;
    EXPECT_EQ(step.generated_tokens + step.prompt_tokens, 0);
    EXPECT_GT(step.rows, 0);
  }});
  const auto right = [&](const Request& asked) {
    Told told;
    submit(engine, asked, sink_of(told));
    run(engine);
    return told.tokens;
  };
  // Two choices that decode, a request that waits for its reader, and a long prompt of which the step has a part only.
  Request two = request(20, 30), paused = request(9, 20, 3), late = request(25, 10, 7);
  two.choices = 2;
  two.sampling = {.temperature = 1.0f, .seed = 3};
  const Request longest = request(100, 5, 1);
  Told of_two, of_paused, of_longest, of_late;
  submit(engine, two, sink_of(of_two));
  const RequestId held = submit(engine, paused, [&, inner = sink_of(of_paused)](const TokenEvent& event) {
    (void)inner(event);
    return of_paused.tokens[0].size() == 2 ? Demand::pause : Demand::more;
  });
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(engine.step());
  EXPECT_EQ(of_paused.tokens[0].size(), 2u);
  submit(engine, longest, sink_of(of_longest));
  submit(engine, late, sink_of(of_late));  // no place in the step
  ASSERT_TRUE(engine.step());
  const std::size_t before = of_two.tokens[0].size();
  EXPECT_FALSE(of_longest.tokens.contains(0));
  failing.backend->fails = [] { return true; };
  ASSERT_TRUE(engine.step());
  engine.scheduler().check();
  EXPECT_EQ(reported, kReason);
  expect_failed(of_two, 0);
  expect_failed(of_two, 1);
  EXPECT_EQ(of_two.summaries, 1);
  EXPECT_EQ(of_two.tokens[0].size(), before) << "the step's token is not told";
  expect_failed(of_longest);
  EXPECT_TRUE(of_late.last.empty());
  EXPECT_TRUE(of_paused.last.empty());
  failing.backend->fails = [] { return false; };
  engine.resume(held, 0);
  run(engine);
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(of_late.last.at(0).finish, FinishReason::length);
  EXPECT_EQ(of_paused.last.at(0).finish, FinishReason::length);
  EXPECT_EQ(engine.snapshot().kv.used_pages, 0);

  // The same prompts, which the step may have published, have the right answers from what the cache has now.
  const auto again_two = right(two), again_longest = right(longest);
  FailingModel fresh = load_failing(R"({"millrace_recipe": 1})", kRows);
  EngineCore other(*fresh.model.runner, nullptr, {.prefix_cache = false});
  const auto alone = [&](const Request& asked) {
    Told told;
    submit(other, asked, sink_of(told));
    run(other);
    return told.tokens;
  };
  EXPECT_EQ(again_two, alone(two));
  EXPECT_EQ(again_longest, alone(longest));
  EXPECT_EQ(of_late.tokens, alone(late));
  EXPECT_EQ(of_paused.tokens, alone(paused));
}

/// Several arrive with one prompt: in the step that fails the later ones have been given what the first one stores.
TEST(FailedStep, NobodyFindsWhatItWasToStore) {
  FailingModel failing = load_failing(R"({"millrace_recipe": 1})", 64);
  EngineCore engine(*failing.model.runner, nullptr);
  const Request asked = request(50, 8);
  Told first;
  submit(engine, asked, sink_of(first));
  run(engine);
  const std::int64_t cached = engine.snapshot().kv.cached_pages;
  EXPECT_GT(cached, 0);

  Request other = request(56, 8, 2);
  failing.backend->fails = [] { return true; };
  std::vector<Told> told(6);
  for (Told& one : told) submit(engine, other, sink_of(one));
  run(engine);
  EXPECT_TRUE(engine.idle());
  for (const Told& one : told) expect_failed(one);
  EXPECT_EQ(engine.snapshot().kv.used_pages, 0);
  EXPECT_EQ(engine.snapshot().kv.cached_pages, cached) << "what was there before is";

  failing.backend->fails = [] { return false; };
  std::vector<Told> again(6);
  for (Told& one : again) submit(engine, other, sink_of(one));
  run(engine);
  FailingModel fresh = load_failing(R"({"millrace_recipe": 1})", 64);
  EngineCore alone(*fresh.model.runner, nullptr);
  Told right;
  submit(alone, other, sink_of(right));
  run(alone);
  for (const Told& one : again) EXPECT_EQ(one.tokens, right.tokens);
}

/// Failures at any moment of a busy life, whose requests are asked again until they are answered.
TEST(FailedStep, ChangesNoAnswerOfOthers) {
  const char* const recipes[] = {
      R"({"millrace_recipe": 1})",
      R"({"millrace_recipe": 1, "attention": {"decode": {"select": "quest", "tokens": 64, "sink_tokens": 16,
          "recent_tokens": 16, "dense_layers": 0}}})",
      R"({"millrace_recipe": 1, "attention": {"keep": {"select": "heavy_hitters", "tokens": 64, "sink_tokens": 16,
          "recent_tokens": 16}}})"};
  for (const char* recipe : recipes) {
    SCOPED_TRACE(recipe);
    std::vector<Request> all;
    for (int i = 0; i < 24; ++i) {
      all.push_back(request(10 + 13 * (i % 8), 1 + 5 * (i % 9), i % 3));
      all.back().sampling = {.temperature = 1.0f, .seed = static_cast<std::uint64_t>(i)};
      if (i % 5 == 1) all.back().choices = 2;
      if (i % 6 == 2) all.back().task = i % 4 == 0 ? Task::embed_mean : Task::embed_last;
    }
    std::vector<Told> alone(all.size());
    FailingModel whole = load_failing(recipe, 64);
    for (std::size_t i = 0; i < all.size(); ++i) {
      EngineCore engine(*whole.model.runner, nullptr, {.prefix_cache = false});
      submit(engine, all[i], sink_of(alone[i]));
      run(engine);
    }
    FailingModel failing = load_failing(recipe, 24, 30);  // so that some are preempted
    std::mt19937 random(7);
    int failed = 0;
    failing.backend->fails = [&] { return random() % 12 == 0; };
    EngineCore engine(*failing.model.runner, nullptr);
    std::vector<Told> told(all.size());
    std::vector<bool> answered(all.size());
    for (int round = 0; round < 200 && std::ranges::find(answered, false) != answered.end(); ++round) {
      std::vector<std::pair<RequestId, std::int32_t>> paused;
      for (std::size_t i = 0; i < all.size(); ++i) {
        if (answered[i]) continue;
        told[i] = {};
        submit(engine, all[i], [&, inner = sink_of(told[i])](const TokenEvent& event) {
          (void)inner(event);
          if (event.finish != FinishReason::none || random() % 8 != 0) return Demand::more;
          paused.emplace_back(event.request, event.choice);
          return Demand::pause;
        });
      }
      while (true) {
        if (engine.step()) {
          engine.scheduler().check();
          if (random() % 4 != 0) continue;
        } else if (paused.empty()) {
          break;
        }
        for (const auto& [id, choice] : std::exchange(paused, {})) engine.resume(id, choice);
      }
      EXPECT_TRUE(engine.idle());
      EXPECT_EQ(engine.snapshot().kv.used_pages, 0);
      for (std::size_t i = 0; i < all.size(); ++i) {
        if (answered[i]) continue;
        EXPECT_EQ(told[i].summaries, 1);
        answered[i] = true;
        for (const auto& [choice, last] : told[i].last) {
          if (last.finish == FinishReason::error) {
            expect_failed(told[i], choice);
            answered[i] = false;
            ++failed;
          } else if (!last.embedding.empty()) {
            EXPECT_EQ(last.embedding, alone[i].embedding) << i;
          } else {
            EXPECT_EQ(told[i].tokens.at(choice), alone[i].tokens.at(choice)) << i;
          }
        }
      }
    }
    EXPECT_EQ(std::ranges::count(answered, false), 0);
    EXPECT_GT(failed, 10);
  }
}

TEST(FailedStep, ADiskThatComesBackServesAgain) {
  LoadOptions options;
  options.path = MILLRACE_SOURCE_DIR "/models/millrace-tiny-relu2";
  options.backend = "cpu";
  options.threads = 2;
  options.max_model_len = 128;
  options.weight_directory = std::filesystem::current_path().string();
  options.weight_memory = std::uint64_t{5} << 20;
  options.dummy = true;
  options.limits = {.max_rows = 64, .max_logit_rows = 16};
  options.recipe = std::move(
      *parse_recipe(R"({"millrace_recipe": 1, "activations": {"method": "hot_cold", "imposed": 0.2}})", "recipe"));
  auto model = load_model(options);
  if (!model.ok() && model.error().message.find("this file system") != std::string::npos)
    GTEST_SKIP() << model.error().message;
  ASSERT_TRUE(model.ok()) << model.error().message;
  UnnamedFile file(options.weight_directory);
  ASSERT_TRUE(file.found());
  const Request asked = request(40, 20), other = request(40, 20, 5);
  EngineCore engine(*model->runner, nullptr);
  Told first, others, lost, again;
  submit(engine, asked, sink_of(first));
  submit(engine, other, sink_of(others));
  run(engine);
  EXPECT_EQ(first.tokens.at(0).size(), 20u);
  // In the middle of its answer, and of the other's prompt.
  submit(engine, asked, sink_of(lost));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(engine.step());
  EXPECT_EQ(lost.tokens.at(0).size(), 5u);
  Request longest = request(90, 20, 5);
  Told of_longest;
  submit(engine, longest, sink_of(of_longest));
  ASSERT_TRUE(file.cut(0));
  run(engine);
  EXPECT_TRUE(engine.idle());
  for (const Told* told : {&lost, &of_longest}) {
    ASSERT_EQ(told->last.at(0).finish, FinishReason::error);
    EXPECT_TRUE(told->last.at(0).error.starts_with("weights could not be read from the file in "))
        << told->last.at(0).error;
  }
  EXPECT_EQ(engine.snapshot().kv.used_pages, 0);
  ASSERT_TRUE(file.restore());
  Told again_other, again_longest;
  submit(engine, asked, sink_of(again));
  submit(engine, other, sink_of(again_other));
  submit(engine, longest, sink_of(again_longest));
  run(engine);
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_EQ(again_other.tokens, others.tokens);
  EngineCore fresh(*model->runner, nullptr, {.prefix_cache = false});
  Told alone;
  submit(fresh, longest, sink_of(alone));
  run(fresh);
  EXPECT_EQ(again_longest.tokens, alone.tokens);
}

}  // namespace
}  // namespace millrace
