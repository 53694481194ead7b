#include "bench/load_test.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <set>

#include "bench/scripted_server.h"

namespace millrace::bench {
namespace {

constexpr int kInput = 20;
constexpr int kOutput = 4;

LoadPlan plan_of(int requests, std::int64_t concurrency) {
  LoadPlan plan{.requests = {}, .concurrency = concurrency, .seed = 1, .range = {10, 1000}};
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(requests); ++i) {
    plan.requests.push_back({0.0, {{Stream::request, i, kInput}}, kOutput});
  }
  return plan;
}

Target target_of(const std::string& url) {
  return {.url = *parse_url(url), .timeout_s = 5};
}

LoadResult run(const Target& target, const LoadPlan& plan) {
  auto result = run_load(target, {.model = "m"}, plan, {});
  EXPECT_TRUE(result.ok()) << result.error().message;
  return std::move(*result);
}

/// What became of one request that is answered with `reply`.
RequestRecord ask(const Reply& reply, double timeout_s = 5) {
  const ScriptedServer server([&](const ReceivedRequest&) { return reply; });
  Target target = target_of(server.url());
  target.timeout_s = timeout_s;
  return run(target, plan_of(1, 1)).records.at(0);
}

std::string good_events(const std::string& usage_more = "") {
  std::string events;
  for (int i = 0; i < kOutput; ++i) events += token_event();
  return events + end_events(kInput + 1, kOutput, usage_more);
}

Reply good_reply() {
  Reply reply{{{stream_head()}}};
  for (int i = 0; i < kOutput; ++i) reply.steps.push_back({chunk(token_event())});
  reply.steps.push_back({chunk(end_events(kInput + 1, kOutput)) + last_chunk()});
  return reply;
}

TEST(LoadTest, AsksForWhatWasPlannedOverAConnectionThatIsKept) {
  const ScriptedServer server([](const ReceivedRequest&) { return good_reply(); });
  Target target = target_of(server.url() + "/prefix/v1");
  target.api_key = "secret";
  LoadPlan plan = plan_of(5, 1);
  std::vector<std::int64_t> progress;
  const auto result = run_load(target, {.model = "m"}, plan, [&](std::int64_t done, std::int64_t all) {
    EXPECT_EQ(all, 5);
    progress.push_back(done);
  });
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(progress, (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(result->client.connections, 1);
  EXPECT_EQ(result->client.retries, 0);
  EXPECT_GT(result->client.cpu_s, 0);
  const std::vector<ReceivedRequest> received = server.received();
  ASSERT_EQ(received.size(), 5u);
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(received[i].method, "POST");
    EXPECT_EQ(received[i].target, "/prefix/v1/completions");
    EXPECT_EQ(received[i].authorization, "Bearer secret");
    const auto body = nlohmann::json::parse(received[i].body);
    EXPECT_EQ(body.at("prompt"), prompt_ids(plan.requests[i].prompt, 1, plan.range));
    EXPECT_EQ(body.at("max_tokens"), kOutput);
    const RequestRecord& record = result->records[i];
    EXPECT_TRUE(record.ok()) << record.failure << ": " << record.detail;
    EXPECT_EQ(record.number, static_cast<std::int64_t>(i));
    EXPECT_EQ(record.status, 200);
    EXPECT_EQ(record.input_tokens, kInput + 1);  // as the server counts
    EXPECT_EQ(record.output_tokens, kOutput);
    EXPECT_TRUE(record.usage_reported);
    EXPECT_FALSE(record.cached_tokens);
    EXPECT_EQ(record.itl_s.size(), static_cast<std::size_t>(kOutput - 1));
    EXPECT_TRUE(record.ttft_s > 0 && record.e2e_s >= record.ttft_s && result->duration_s >= record.e2e_s);
  }
}

TEST(LoadTest, TimesAreThoseOfTheTokens) {
  Reply reply{
      {{stream_head()}, {chunk(token_event()), 0.15}, {chunk(token_event()), 0.05}, {chunk(token_event()), 0.1}}};
  reply.steps.push_back({chunk(end_events(kInput, 3)) + last_chunk(), 0.5});
  const RequestRecord record = ask(reply);
  ASSERT_TRUE(record.ok()) << record.detail;
  constexpr double kLate = 0.4;  // what a busy machine may add; only pauses of the server are certain
  EXPECT_GE(record.ttft_s, 0.15);
  EXPECT_LT(record.ttft_s, 0.15 + kLate);
  EXPECT_GE(record.e2e_s, 0.3);
  EXPECT_LT(record.e2e_s, 0.3 + kLate);  // not that of usage
  ASSERT_EQ(record.itl_s.size(), 2u);
  EXPECT_NEAR(record.e2e_s, record.ttft_s + record.itl_s[0] + record.itl_s[1], 1e-9);
  EXPECT_NEAR(*record.tpot_s(), (record.e2e_s - record.ttft_s) / 2, 1e-12);
}

TEST(LoadTest, OddFramingsOfGoodStreams) {
  const std::string head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
  const std::string events = good_events(R"(,"prompt_tokens_details":{"cached_tokens":16})");
  std::string crlf = ": ping\r\n\r\n";
  for (const char c : events) crlf += c == '\n' ? "\r\n" : std::string(1, c);
  std::string bytewise, pieces;
  for (const char c : events) bytewise += chunk(std::string(1, c));
  const std::string all = stream_head() + chunk(events) + last_chunk();
  Reply trickled;
  for (std::size_t at = 0; at < all.size(); at += 5)
    trickled.steps.push_back({all.substr(at, 5), at % 100 == 0 ? 1e-3 : 0});
  std::string undone = events;
  undone.resize(undone.find("data: [DONE]"));
  const std::vector<std::pair<const char*, Reply>> replies{
      {"one chunk", {{{all}}}},
      {"bytes", {{{stream_head() + bytewise + last_chunk()}}}},
      {"trickled", trickled},
      {"CRLF and a comment", {{{stream_head() + chunk(crlf) + last_chunk()}}}},
      {"known length", {{{head + "Content-Length: " + std::to_string(events.size()) + "\r\n\r\n" + events}}}},
      {"until the end", {{{head + "Connection: close\r\n\r\n" + events}}, true}},
      {"chunk extensions and trailers",
       {{{stream_head() + "5;x=y\r\n" + events.substr(0, 5) + "\r\n" + chunk(events.substr(5)) +
          "0\r\nX: y\r\n\r\n"}}}},
      {"[DONE] without a line break",
       {{{head + "Connection: close\r\n\r\n" + events.substr(0, events.size() - 2)}}, true}},
      {"no [DONE]", {{{stream_head() + chunk(undone) + last_chunk()}}}},
      {"cut off behind [DONE]", {{{stream_head() + chunk(events)}}, true}},
  };
  for (const auto& [name, reply] : replies) {
    const RequestRecord record = ask(reply);
    EXPECT_TRUE(record.ok()) << name << ": " << record.failure << ": " << record.detail;
    EXPECT_EQ(record.output_tokens, kOutput) << name;
    EXPECT_EQ(record.input_tokens, kInput + 1) << name;
    EXPECT_EQ(record.cached_tokens, 16) << name;
    EXPECT_EQ(record.itl_s.size(), static_cast<std::size_t>(kOutput - 1)) << name;
  }
}

TEST(LoadTest, AnswersWithoutUsageAreCountedByChunks) {
  const std::string events = token_event() + token_event() + "data: [DONE]\n\n";
  const RequestRecord record = ask({{{stream_head() + chunk(events) + last_chunk()}}});
  ASSERT_TRUE(record.ok()) << record.detail;
  EXPECT_FALSE(record.usage_reported);
  EXPECT_EQ(record.output_tokens, 2);
  EXPECT_EQ(record.input_tokens, kInput);
}

TEST(LoadTest, UsageCountsWhenChunksCarrySeveralTokens) {
  Reply reply{{{stream_head() + chunk(token_event("abc"))}, {chunk(token_event("def")), 0.05}}};
  reply.steps.push_back({chunk(end_events(kInput, 6)) + last_chunk()});
  const RequestRecord record = ask(reply);
  ASSERT_TRUE(record.ok()) << record.detail;
  EXPECT_EQ(record.output_tokens, 6);
  EXPECT_EQ(record.itl_s.size(), 1u);
  EXPECT_NEAR(*record.tpot_s(), record.itl_s[0] / 5, 1e-12);
}

TEST(LoadTest, AnAnswerThatShowsNothingHasItsTokenAtItsEnd) {
  const std::string end =
      R"(data: {"choices":[{"text":"","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}})";
  const RequestRecord record = ask({{{stream_head()}, {chunk(end + "\n\ndata: [DONE]\n\n") + last_chunk(), 0.05}}});
  ASSERT_TRUE(record.ok()) << record.detail;
  EXPECT_GE(record.ttft_s, 0.05);
  EXPECT_EQ(record.e2e_s, record.ttft_s);
}

TEST(LoadTest, FailuresHaveNames) {
  const std::string token = chunk(token_event());
  const std::vector<std::pair<std::string, Reply>> replies{
      {"cut_short", {{{stream_head() + token + last_chunk()}}}},
      {"connection_closed", {{{stream_head() + token}}, true}},
      {"connection_closed", {{{stream_head() + "40\r\ndata"}}, true}},
      {"connection_closed", {{{"HTTP/1.1 200 OK\r\nContent-"}}, true}},
      {"connection_closed", {{}, true}},
      {"server_error",
       {{{stream_head() + token + chunk("data: {\"error\":{\"message\":\"no room\"}}\n\n") + last_chunk()}}}},
      {"server_error",
       {{{stream_head() + token + chunk("event: error\ndata: {\"message\":\"no room\"}\n\n") + last_chunk()}}}},
      {"protocol", {{{stream_head() + token + chunk("data: {\"choi\n\n") + last_chunk()}}}},
      {"protocol", {{{"this is not HTTP\r\n\r\n"}}}},
      {"protocol", {{{stream_head() + "xyz\r\n"}}}},
      {"protocol", {{{stream_head() + std::string(1 << 20, '1')}}}},
      {"no_token", {{{stream_head() + chunk("data: [DONE]\n\n") + last_chunk()}}}},
      {"not_a_stream", whole_reply(200, R"({"choices":[{"text":"all at once","finish_reason":"stop"}]})")},
      {"http_500", whole_reply(500, "<html>")},
      {"http_404", {{{"HTTP/1.1 404 Not Found\r\n\r\nnothing"}}, true}},
      {"http_204", {{{"HTTP/1.1 204 No Content\r\n\r\n"}}}},
  };
  for (const auto& [name, reply] : replies) {
    const RequestRecord record = ask(reply);
    EXPECT_EQ(record.failure, name) << record.detail;
    EXPECT_EQ(record.detail.find('\n'), std::string::npos);
    if (name == "server_error") {
      EXPECT_EQ(record.detail, "no room");
    }
  }
}

TEST(LoadTest, TooManyRequestsAreFailuresThatSayWhenToComeBack) {
  const RequestRecord record =
      ask(whole_reply(429, R"({"error":{"message":"the queue is full"}})", "Retry-After: 2\r\n"));
  EXPECT_EQ(record.failure, "http_429");
  EXPECT_EQ(record.status, 429);
  EXPECT_EQ(record.detail, "the queue is full");
  EXPECT_EQ(record.retry_after_s, 2);
}

TEST(LoadTest, TimeoutsAndRefusals) {
  const RequestRecord late = ask({{{stream_head() + chunk(token_event())}, {last_chunk(), 10}}}, 0.2);
  EXPECT_EQ(late.failure, "timeout");
  std::string gone;
  {
    const ScriptedServer server([](const ReceivedRequest&) { return good_reply(); });
    gone = server.url();
  }
  const LoadResult refused = run(target_of(gone), plan_of(3, 0));
  for (const RequestRecord& record : refused.records) EXPECT_EQ(record.failure, "connect");
}

TEST(LoadTest, AStreamThatStaysOpenBehindItsEndIsLeftAfterASecond) {
  const auto start = std::chrono::steady_clock::now();
  const RequestRecord record = ask({{{stream_head() + chunk(good_events())}, {last_chunk(), 30}}}, 60);
  EXPECT_TRUE(record.ok()) << record.detail;
  EXPECT_LT(record.e2e_s, 0.5);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
}

TEST(LoadTest, AKeptConnectionThatWasClosedIsOpenedAgain) {
  const ScriptedServer server([](const ReceivedRequest&) {
    Reply reply = good_reply();
    reply.close = true;  // without a word in the head
    return reply;
  });
  const LoadResult result = run(target_of(server.url()), plan_of(4, 1));
  for (const RequestRecord& record : result.records) EXPECT_TRUE(record.ok()) << record.detail;
  EXPECT_EQ(result.client.retries, 3);
  EXPECT_EQ(result.client.connections, 4);
  EXPECT_EQ(server.received().size(), 4u);
}

TEST(LoadTest, ConcurrencyIsKept) {
  const ScriptedServer server([](const ReceivedRequest&) {
    Reply reply = good_reply();
    reply.steps.back().pause_s = 0.02;
    return reply;
  });
  const LoadResult result = run(target_of(server.url()), plan_of(40, 8));
  EXPECT_EQ(result.client.connections, 8);
  std::vector<std::pair<double, int>> changes;
  for (const RequestRecord& record : result.records) {
    EXPECT_TRUE(record.ok()) << record.detail;
    changes.emplace_back(record.start_s, 1);
    changes.emplace_back(record.start_s + record.e2e_s, -1);
  }
  std::sort(changes.begin(), changes.end());
  int running = 0, most = 0;
  for (const auto& [time, change] : changes) most = std::max(most, running += change);
  EXPECT_LE(most, 8);
  EXPECT_GE(most, 6);
}

TEST(LoadTest, RequestsStartWhenTheyAreDueHoweverSlowTheServer) {
  const ScriptedServer server([](const ReceivedRequest&) {
    Reply reply = good_reply();
    reply.steps.front().pause_s = 0.3;
    return reply;
  });
  LoadPlan plan = plan_of(10, 0);
  for (std::size_t i = 0; i < 10; ++i) plan.requests[i].due_s = 0.02 * static_cast<double>(i);
  const LoadResult result = run(target_of(server.url()), plan);
  EXPECT_EQ(result.client.connections, 10);
  for (std::size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(result.records[i].due_s, plan.requests[i].due_s);
    EXPECT_GE(result.records[i].start_s, plan.requests[i].due_s);
    EXPECT_LT(result.records[i].start_s, plan.requests[i].due_s + 0.25);
  }
  EXPECT_LT(result.duration_s, 1.5);
}

TEST(LoadTest, ManyStreamsAtOnce) {
  constexpr int kStreams = 400;  // both ends are in this process, which may have 1024 descriptors
  const ScriptedServer server([](const ReceivedRequest&) {
    Reply reply{{{stream_head()}}};
    for (int i = 0; i < 20; ++i) reply.steps.push_back({chunk(token_event()), 0.02});
    reply.steps.push_back({chunk(end_events(kInput, 20)) + last_chunk()});
    return reply;
  });
  const LoadResult result = run(target_of(server.url()), plan_of(kStreams, 0));
  EXPECT_EQ(result.client.connections, kStreams);
  for (const RequestRecord& record : result.records) {
    ASSERT_TRUE(record.ok()) << record.failure << ": " << record.detail;
    EXPECT_EQ(record.output_tokens, 20);
  }
}

TEST(LoadTest, WarmupIsNotCountedAndMustSucceed) {
  const ScriptedServer server([](const ReceivedRequest&) { return good_reply(); });
  LoadPlan plan = plan_of(2, 1);
  plan.warmup.push_back({0.0, {{Stream::warmup, 0, 5}}, 1});
  const LoadResult result = run(target_of(server.url()), plan);
  EXPECT_EQ(result.records.size(), 2u);
  EXPECT_EQ(server.received().size(), 3u);
  const ScriptedServer failing([](const ReceivedRequest&) { return whole_reply(503, R"({"error":"loading"})"); });
  const auto failed = run_load(target_of(failing.url()), {.model = "m"}, plan, {});
  ASSERT_FALSE(failed.ok());
  EXPECT_NE(failed.error().message.find("loading"), std::string::npos);
}

TEST(LoadTest, ChatsAreText) {
  const ScriptedServer server([](const ReceivedRequest&) { return good_reply(); });
  LoadPlan plan = plan_of(1, 1);
  plan.text = *PromptText::make("just these few words");
  const auto result = run_load(target_of(server.url()), {.endpoint = Endpoint::chat, .model = "m"}, plan, {});
  ASSERT_TRUE(result.ok());
  const ReceivedRequest received = server.received().at(0);
  EXPECT_EQ(received.target, "/v1/chat/completions");
  EXPECT_NE(
      nlohmann::json::parse(received.body).at("messages").at(0).at("content").get<std::string>().find("few words"),
      std::string::npos);
}

TEST(LoadTest, WhatCannotBeSentIsRefused) {
  Target target = target_of("http://127.0.0.1:9");
  target.api_key = "two\r\nlines";
  EXPECT_FALSE(run_load(target, {.model = "m"}, plan_of(1, 1), {}).ok());
  target.api_key = "";
  EXPECT_FALSE(run_load(target, {.model = "m", .extra = "["}, plan_of(1, 1), {}).ok());
}

TEST(AskModel, NamesTheModelOrSaysWhyNot) {
  const ScriptedServer server([](const ReceivedRequest& request) {
    if (request.target != "/v1/models" || request.method != "GET") return whole_reply(404, "");
    return whole_reply(200, R"({"data":[{"id":"tiny","vocab_size":512}]})");
  });
  const auto model = ask_model(target_of(server.url()));
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->name, "tiny");
  EXPECT_EQ(model->vocab, 512);
  const auto elsewhere = ask_model(target_of(server.url() + "/other"));
  ASSERT_FALSE(elsewhere.ok());
  EXPECT_NE(elsewhere.error().message.find("404"), std::string::npos);
  const ScriptedServer locked(
      [](const ReceivedRequest&) { return whole_reply(401, R"({"error":{"message":"who are you"}})"); });
  EXPECT_NE(ask_model(target_of(locked.url())).error().message.find("who are you"), std::string::npos);
}

}  // namespace
}  // namespace millrace::bench
