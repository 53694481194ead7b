// A whole batch with the built-in model: what records hold, that an interrupted batch ends as one that was not, and
// that no more is read than can be answered.

#include "server/batch_run.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <set>

#include "runtime/load_model.h"
#include "server/api_json.h"
#include "server/batch_files.h"

namespace millrace::test {
namespace {

const LoadedModel& builtin() {
  static const LoadedModel kModel = [] {
    LoadOptions options;
    options.path = MILLRACE_SOURCE_DIR "/models/millrace-tiny";
    options.threads = 2;
    options.kv_memory = std::uint64_t{32} << 20;
    options.limits = {.max_rows = 256, .max_logit_rows = 16};
    auto model = load_model(options);
    EXPECT_TRUE(model.ok()) << model.error().message;
    return std::move(model).value();
  }();
  return kModel;
}

ServedModel served_model() {
  const LoadedModel& model = builtin();
  ServedModel served;
  served.ids = {"tiny"};
  served.tokenizer = &*model.tokenizer;
  served.chat_template = &*model.chat_template;
  served.eos_ids = model.runner->config().eos_ids;
  served.vocab = model.runner->config().vocab;
  served.hidden = model.runner->config().hidden;
  served.max_sequence_tokens = model.runner->max_sequence_tokens();
  return served;
}

std::string line(const std::string& custom_id, const std::string& url, const std::string& body) {
  return fmt::format(R"({{"custom_id":"{}","method":"POST","url":"/v1/{}","body":{}}})", custom_id, url, body) + "\n";
}

/// `count` requests that sample, some of several answers, with common beginnings.
std::string requests(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    const std::string name = fmt::format("r{}", i);
    const int tokens = 2 + i % 11;
    if (i % 3 == 0) {
      text +=
          line(name, "chat/completions",
               fmt::format(R"({{"messages":[{{"role":"user","content":"Tell me of day {}"}}],"max_tokens":{},"n":{}}})",
                           i, tokens, 1 + i % 2));
    } else if (i % 7 == 1) {
      text += line(name, "embeddings", fmt::format(R"({{"input":["Once upon a time","There were {}"]}})", i));
    } else {
      text += line(
          name, "completions",
          fmt::format(R"({{"prompt":["Once upon a time there was","In the year {}"],"max_tokens":{}}})", i, tokens));
    }
  }
  return text;
}

class BatchRunTest : public BatchFolder {
 protected:
  Result<BatchSummary> run(const std::string& in, const std::string& out, BatchOptions options = {}) {
    EngineCore engine(*builtin().runner, served_.tokenizer, {.on_step = [this](const StepReport& step) {
      most_open_ = std::max(most_open_, step.running + step.waiting);
      ++steps_;
    }});
    BatchInput input = open_input(in);
    BatchOutput output = open_output(out, input);
    auto summary = run_batch(engine, served_, input, output, options);
    EXPECT_TRUE(engine.idle());
    return summary;
  }

  /// Records by custom_id; each once.
  std::map<std::string, Json> records(const std::string& out) {
    std::map<std::string, Json> all;
    for (const std::string& text : lines(read(out))) {
      const Json record = Json::parse(text);
      EXPECT_TRUE(
          all.emplace(record["custom_id"].is_null() ? "" : record["custom_id"].get<std::string>(), record).second)
          << text;
    }
    return all;
  }

  /// What is answered, without names and times.
  std::map<std::string, std::string> answers(const std::string& out) {
    std::map<std::string, std::string> all;
    for (const auto& [name, record] : records(out)) {
      const Json& body = record["response"]["body"];
      all[name] = record["response"]["status_code"].dump() + body.value("choices", Json()).dump() +
                  body.value("data", Json()).dump();
    }
    return all;
  }

  ServedModel served_ = served_model();
  std::int64_t most_open_ = 0;
  std::int64_t steps_ = 0;
};

TEST_F(BatchRunTest, EachEndpointGetsTheAnswerOfTheApi) {
  const std::string in = file(
      "in", line("chat", "chat/completions", R"({"messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"n":2})") +
                line("text", "completions", R"({"prompt":["Once","Twice"],"max_tokens":3,"ignore_eos":true})") +
                line("vector", "embeddings", R"({"input":"Once"})"));
  const auto summary = run(in, path("out"));
  ASSERT_TRUE(summary.ok()) << summary.error().message;
  auto all = records(path("out"));
  ASSERT_EQ(all.size(), 3u);
  for (const auto& [name, record] : all) {
    EXPECT_EQ(record["response"]["status_code"], 200) << record;
    EXPECT_TRUE(record["error"].is_null());
  }
  EXPECT_EQ(all["chat"]["response"]["body"]["object"], "chat.completion");
  EXPECT_EQ(all["chat"]["response"]["body"]["choices"].size(), 2u);
  EXPECT_EQ(all["chat"]["response"]["body"]["model"], "tiny");
  EXPECT_EQ(all["text"]["response"]["body"]["choices"].size(), 2u);
  EXPECT_EQ(all["text"]["response"]["body"]["usage"]["completion_tokens"], 6);
  EXPECT_EQ(all["vector"]["response"]["body"]["data"][0]["embedding"].size(), static_cast<std::size_t>(served_.hidden));
  EXPECT_EQ(summary->requests, 3);
  EXPECT_EQ(summary->answered, 3);
  EXPECT_EQ(summary->failed, 0);
  EXPECT_GT(summary->prompt_tokens, 4);
  EXPECT_GE(summary->output_tokens, 6);
  EXPECT_FALSE(summary->stopped);
}

TEST_F(BatchRunTest, WhatIsWrongGetsAnErrorAndTheRestAnAnswer) {
  const std::string in = file(
      "in",
      "no json\n" + line("method", "images", "{}") + line("type", "completions", R"({"prompt":5})") +
          line("model", "completions", R"({"model":"other","prompt":"x"})") +
          line("stream", "completions", R"({"prompt":"x","stream":true})") +
          line("long", "completions", fmt::format(R"({{"prompt":"x","max_tokens":{}}})", served_.max_sequence_tokens)) +
          line("good", "completions", R"({"prompt":"x","max_tokens":1})"));
  const auto summary = run(in, path("out"));
  ASSERT_TRUE(summary.ok()) << summary.error().message;
  EXPECT_EQ(summary->answered, 1);
  EXPECT_EQ(summary->failed, 6);
  auto all = records(path("out"));
  ASSERT_EQ(all.size(), 7u);
  const auto expect = [&](const char* name, int status, const char* param, bool line_is_wrong) {
    const Json& record = all[name];
    EXPECT_EQ(record["response"]["status_code"], status) << record;
    const Json& problem = record["response"]["body"]["error"];
    EXPECT_EQ(problem["param"], param == nullptr ? Json() : Json(param)) << record;
    EXPECT_EQ(record["error"].is_null(), !line_is_wrong) << record;
    if (line_is_wrong) {
      EXPECT_EQ(record["error"]["message"], problem["message"]);
    }
  };
  expect("", 400, nullptr, true);
  expect("method", 400, "url", true);
  expect("type", 400, "prompt", false);
  expect("model", 404, nullptr, false);
  expect("stream", 400, "stream", false);
  expect("long", 400, "prompt", false);
  EXPECT_EQ(all["good"]["response"]["status_code"], 200);
  // Errors are answers too: nothing is left.
  const auto again = run(in, path("out"));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->skipped, 7);
  EXPECT_EQ(again->answered + again->failed, 0);
}

TEST_F(BatchRunTest, StoppedAndTornTimeAndAgainItEndsAsIfNothingHadHappened) {
  constexpr int kRequests = 40;
  const std::string in = file("in", requests(kRequests));
  ASSERT_TRUE(run(in, path("whole")).ok());
  const auto whole = answers(path("whole"));
  ASSERT_EQ(whole.size(), static_cast<std::size_t>(kRequests));
  std::set<std::string> different;
  for (const auto& [name, answer] : whole) different.insert(answer);
  EXPECT_GT(different.size(), 30u) << "seeds differ";

  int stops = 0;
  for (bool finished = false; !finished; ++stops) {
    ASSERT_LT(stops, 200);
    int asked = 0;
    const int patience = 3 + stops % 17;
    const auto summary = run(in, path("out"), {.max_open = 8, .stop = [&] { return ++asked > patience; }});
    ASSERT_TRUE(summary.ok()) << summary.error().message;
    finished = !summary->stopped;
    EXPECT_EQ(finished, summary->answered + summary->skipped == kRequests);
    std::string text = read(path("out"));
    if (!finished && stops % 3 == 0 && text.size() > 50) {
      ASSERT_FALSE(file("out", text.substr(0, text.size() - 50)).empty());
    }
  }
  EXPECT_GT(stops, 5);
  EXPECT_EQ(answers(path("out")), whole);
}

TEST_F(BatchRunTest, ReadsNoMoreThanIsOpen) {
  const std::string in = file("in", requests(60));
  std::vector<std::int64_t> told;
  const auto summary = run(in, path("out"), {.max_open = 6, .progress = [&](std::int64_t done, std::int64_t all) {
                                               EXPECT_EQ(all, 60);
                                               told.push_back(done);
                                             }});
  ASSERT_TRUE(summary.ok());
  EXPECT_LE(most_open_, 7) << "a line may have several answers";
  EXPECT_GE(most_open_, 6);
  ASSERT_EQ(told.size(), 60u);
  for (std::size_t i = 0; i < told.size(); ++i) EXPECT_EQ(told[i], static_cast<std::int64_t>(i + 1));
}

TEST_F(BatchRunTest, ManyAtOnceTakeFewSteps) {
  std::string text;
  for (int i = 0; i < 32; ++i)
    text += line(fmt::format("r{}", i), "completions", R"({"prompt":"Once","max_tokens":20,"ignore_eos":true})");
  const auto summary = run(file("in", text), path("out"));
  ASSERT_TRUE(summary.ok());
  EXPECT_EQ(summary->output_tokens, 32 * 20);
  EXPECT_LE(steps_, 2 * 20 + 5) << "16 rows of logits in a step";
}

TEST_F(BatchRunTest, AFullDiskEndsTheRun) {
  const std::string in = file("in", requests(20));
  ASSERT_TRUE(run(in, path("whole")).ok());
  {
    rlimit usual{};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &usual), 0);
    const rlimit tight{.rlim_cur = read(path("whole")).size() / 2, .rlim_max = usual.rlim_max};
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
    const auto full = run(in, path("out"));
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &usual), 0);
    std::signal(SIGXFSZ, handler);
    ASSERT_FALSE(full.ok());
    EXPECT_NE(full.error().message.find("writing failed"), std::string::npos);
  }
  EXPECT_GT(records(path("out")).size(), 0u);
  EXPECT_LT(records(path("out")).size(), 20u);
  ASSERT_TRUE(run(in, path("out")).ok());
  EXPECT_EQ(answers(path("out")), answers(path("whole")));
}

}  // namespace
}  // namespace millrace::test
