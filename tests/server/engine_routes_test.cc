// The API's routes over loopback, with an engine that a test plays.

#include "server/engine_routes.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "server/api_fixture.h"
#include "server/http_client.h"

namespace millrace::test {
namespace {

/// Keeps what is submitted; the test is the stepping thread.
class FakeEngine {
 public:
  EngineAccess access() {
    return {[this](Request request, Sink sink) { return submit(std::move(request), std::move(sink)); },
            [this](RequestId id) {
              const std::lock_guard lock(mutex_);
              cancelled_.insert(id);
            },
            [this](RequestId id, std::int32_t) {
              const std::lock_guard lock(mutex_);
              resumed_.insert(id);
            }};
  }

  void refuse_after(std::size_t requests, Error error) {
    accepts_ = requests;
    error_ = std::move(error);
  }
  bool wait_for(std::size_t requests) {
    return eventually([&] {
      const std::lock_guard lock(mutex_);
      return requests_.size() >= requests;
    });
  }
  Request request(std::size_t i) {
    const std::lock_guard lock(mutex_);
    return requests_.at(i);
  }
  /// Ids count from 1.
  Demand tell(RequestId id, TokenEvent event) {
    event.request = id;
    const Sink sink = [&] {
      const std::lock_guard lock(mutex_);
      return sinks_.at(id - 1);
    }();
    return sink(event);
  }
  void play_answer(RequestId id, std::string_view text) {
    const auto events = play(plain_model().served, text, FinishReason::stop);
    RequestSummary summary{
        .prompt_tokens = 3, .cached_tokens = 1, .generated_tokens = static_cast<std::int64_t>(events.size())};
    for (std::size_t i = 0; i < events.size(); ++i) {
      TokenEvent event = events[i];
      if (i + 1 == events.size()) event.summary = &summary;
      tell(id, event);
    }
  }
  bool wait_cancelled(RequestId id) { return wait_in(cancelled_, id); }
  bool wait_resumed(RequestId id) { return wait_in(resumed_, id); }
  bool was_cancelled(RequestId id) {
    const std::lock_guard lock(mutex_);
    return cancelled_.contains(id);
  }

 private:
  Result<RequestId> submit(Request request, Sink sink) {
    const std::lock_guard lock(mutex_);
    if (requests_.size() >= accepts_) return error_;
    requests_.push_back(std::move(request));
    sinks_.push_back(std::move(sink));
    return RequestId{requests_.size()};
  }
  bool wait_in(const std::set<RequestId>& ids, RequestId id) {
    return eventually([&] {
      const std::lock_guard lock(mutex_);
      return ids.contains(id);
    });
  }

  std::mutex mutex_;
  std::vector<Request> requests_;
  std::vector<Sink> sinks_;
  std::set<RequestId> cancelled_, resumed_;
  std::size_t accepts_ = 1000;
  Error error_;
};

class EngineRoutes : public ::testing::Test {
 protected:
  explicit EngineRoutes(ServerOptions options = {})
      : server_(std::move(options), api_routes(plain_model().served, access_,
                                               {.version = "1.2.3",
                                                .queue_bytes = 20'000,
                                                .state = [this] { return ready_ ? "ready" : "draining"; },
                                                .metrics = [] { return std::string("metric 1\n"); }})) {}

  FakeEngine engine_;
  EngineAccess access_ = engine_.access();
  std::atomic<bool> ready_ = true;
  TestServer server_;
};

const std::string kChat = R"({"model":"test-model","messages":[{"role":"user","content":"Hi"}])";

TEST_F(EngineRoutes, AnswersAChat) {
  RawClient client = server_.connect();
  client.send(post("/v1/chat/completions", kChat + "}"));
  ASSERT_TRUE(engine_.wait_for(1));
  engine_.play_answer(1, "Hello there");
  const auto response = client.response();
  EXPECT_EQ(response.status, 200);
  const auto body = nlohmann::json::parse(response.body);
  EXPECT_EQ(body["choices"][0]["message"]["content"], "Hello there");
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
  EXPECT_FALSE(engine_.was_cancelled(1));
  ASSERT_TRUE(eventually([&] { return !server_.records().empty(); }));  // it is written once the answer is sent
  EXPECT_EQ(server_.records().at(0).tokens.prompt, 3);
  EXPECT_EQ(server_.records().at(0).tokens.cached, 1);
}

TEST_F(EngineRoutes, StreamsAChatAndCancelsWhenTheClientLeaves) {
  RawClient client = server_.connect();
  client.send(post("/v1/chat/completions", kChat + R"(,"stream":true})"));
  ASSERT_TRUE(engine_.wait_for(1));
  engine_.play_answer(1, "Hello");
  const auto response = client.response();
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.body.ends_with("data: [DONE]\n\n"));
  EXPECT_FALSE(engine_.was_cancelled(1));

  client.send(post("/v1/chat/completions", kChat + R"(,"stream":true})"));
  ASSERT_TRUE(engine_.wait_for(2));
  client.reset();
  EXPECT_TRUE(engine_.wait_cancelled(2));
  TokenEvent last;
  last.finish = FinishReason::cancelled;
  EXPECT_EQ(engine_.tell(2, last), Demand::more);  // nobody listens any more
}

TEST_F(EngineRoutes, ASlowReaderPausesTheEngineAndThenGetsAll) {
  RawClient client(server_->port(), 4096);
  client.send(post("/v1/chat/completions", kChat + R"(,"stream":true,"max_tokens":900})"));
  ASSERT_TRUE(engine_.wait_for(1));
  const std::string text(2000, 'x');
  int told = 0;
  TokenEvent event = play(plain_model().served, "a", FinishReason::length).at(0);
  event.finish = FinishReason::none;
  event.text = text;
  while (told < 20'000 && engine_.tell(1, event) == Demand::more) {
    ++told;
    if (told % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_LT(told, 20'000);
  std::thread reader([&] {
    const auto response = client.response();
    std::size_t count = 0;
    for (std::size_t at = response.body.find(text); at != std::string::npos;
         at = response.body.find(text, at + text.size())) {
      ++count;
    }
    EXPECT_EQ(count, static_cast<std::size_t>(told + 1));
    EXPECT_TRUE(response.body.ends_with("data: [DONE]\n\n"));
  });
  EXPECT_TRUE(engine_.wait_resumed(1));
  const RequestSummary summary{.prompt_tokens = 3};
  TokenEvent last;
  last.finish = FinishReason::length;
  last.summary = &summary;
  engine_.tell(1, last);
  reader.join();
}

TEST_F(EngineRoutes, RefusalsOfTheEngine) {
  engine_.refuse_after(0, Error{"1024 requests are waiting", ErrorKind::busy});
  auto response = server_.ask(post("/v1/chat/completions", kChat + R"(,"stream":true})"));
  EXPECT_EQ(response.status, 429);
  EXPECT_TRUE(response.headers.contains("retry-after"));
  engine_.refuse_after(0, Error{"draining", ErrorKind::unavailable});
  EXPECT_EQ(server_.ask(post("/v1/chat/completions", kChat + "}")).status, 503);
  engine_.refuse_after(0, Error{"too long", ErrorKind::invalid});
  EXPECT_EQ(server_.ask(post("/v1/chat/completions", kChat + "}")).status, 400);
  // Of several requests that belong together, none is left behind.
  engine_.refuse_after(1, Error{"busy", ErrorKind::busy});
  response = server_.ask(post("/v1/completions", R"({"model":"test-model","prompt":["a","b"]})"));
  EXPECT_EQ(response.status, 429);
  EXPECT_TRUE(engine_.was_cancelled(1));
}

TEST_F(EngineRoutes, AStreamThatIsRefusedLateHasTheStatusOfItsReason) {
  access_.refuses_late = true;
  RequestId next = 0;
  for (const auto& [kind, status] :
       {std::pair(ErrorKind::invalid, 400), std::pair(ErrorKind::busy, 429), std::pair(ErrorKind::unavailable, 503)}) {
    RawClient client = server_.connect();
    client.send(post("/v1/chat/completions", kChat + R"(,"stream":true})"));
    ASSERT_TRUE(engine_.wait_for(++next));
    engine_.tell(next, {.finish = FinishReason::error, .error = "no", .error_kind = kind});
    const auto response = client.response();
    EXPECT_EQ(response.status, status);
    EXPECT_EQ(nlohmann::json::parse(response.body)["error"]["message"], "no");
    EXPECT_EQ(response.headers.at("content-type"), "application/json");
    EXPECT_EQ(response.headers.contains("retry-after"), kind != ErrorKind::invalid);
    client.send(get("/health"));
    EXPECT_EQ(client.response().status, 200) << "the connection goes on";
  }
  // Behind the first token it is an event of the stream.
  RawClient client = server_.connect();
  client.send(post("/v1/chat/completions", kChat + R"(,"stream":true})"));
  ASSERT_TRUE(engine_.wait_for(++next));
  engine_.tell(next, play(plain_model().served, "Hello there", FinishReason::length).at(0));
  const std::string head = client.receive_until("\r\n\r\n");
  EXPECT_TRUE(head.starts_with("HTTP/1.1 200 ")) << head;
  EXPECT_NE(head.find("text/event-stream"), std::string::npos);
  engine_.tell(next, {.finish = FinishReason::error, .error = "gone", .error_kind = ErrorKind::unavailable});
  const std::string rest = client.receive_until("[DONE]");
  EXPECT_NE(rest.find(R"("message":"gone","type":"service_unavailable")"), std::string::npos) << rest;
}

TEST_F(EngineRoutes, BadBodiesAndModels) {
  EXPECT_EQ(server_.ask(post("/v1/chat/completions", "{")).status, 400);
  EXPECT_EQ(server_.ask(post("/v1/chat/completions", "")).status, 400);
  EXPECT_EQ(server_.ask(get("/v1/models/alias")).status, 200);
  EXPECT_EQ(server_.ask(get("/v1/models/other")).status, 404);
  EXPECT_NE(server_.ask(get("/v1/models")).body.find("test-model"), std::string::npos);
  EXPECT_EQ(server_.ask(get("/v1/chat/completions")).status, 405);
  EXPECT_EQ(server_.ask(post("/tokenize", R"({"prompt":"Hello"})")).status, 200);
}

TEST_F(EngineRoutes, TheServerOfItself) {
  EXPECT_EQ(server_.ask(get("/health")).status, 200);
  EXPECT_EQ(server_.ask(get("/ready")).status, 200);
  EXPECT_EQ(server_.ask(get("/ready")).body, R"({"status":"ready"})");
  ready_ = false;
  EXPECT_EQ(server_.ask(get("/ready")).status, 503);
  EXPECT_EQ(server_.ask(get("/ready")).body, R"({"status":"draining"})");
  EXPECT_EQ(server_.ask(get("/version")).body, R"({"version":"1.2.3"})");
  const auto metrics = server_.ask(get("/metrics"));
  EXPECT_EQ(metrics.body, "metric 1\n");
  EXPECT_EQ(metrics.headers.at("content-type"), "text/plain; version=0.0.4; charset=utf-8");
}

TEST(EngineAnswer, TenantsShareNothing) {
  FakeEngine engine;
  const EngineAccess access = engine.access();
  for (const char* tenant : {"t1", "t2", ""}) {
    auto call = parse_chat(kChat + "}", plain_model().served);
    ASSERT_TRUE(call.ok());
    call->requests.at(0).cache_salt = "own";
    make_engine_answer(plain_model().served, access, std::move(call).value(), tenant, 1000)->start([] {});
  }
  EXPECT_EQ(engine.request(0).cache_salt, "t1/own");
  EXPECT_EQ(engine.request(1).cache_salt, "t2/own");
  EXPECT_EQ(engine.request(2).cache_salt, "own");
  EXPECT_TRUE(engine.was_cancelled(1));  // an answer that goes takes its request along
}

}  // namespace
}  // namespace millrace::test
