// Answers over time: server-sent events, clients that leave, slow readers, many at once, draining.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "server/http_client.h"

namespace millrace::test {
namespace {

using namespace std::chrono_literals;

TEST(HttpStream, EventsArriveAtOnceAndTheConnectionGoesOn) {
  const auto feed = std::make_shared<Feed>();
  TestServer server({}, test_routes(feed));
  RawClient client = server.connect();
  client.send(post("/stream", "{}"));
  const std::string head = client.receive_until("\r\n\r\n");  // before the first event
  EXPECT_NE(head.find("Content-Type: text/event-stream"), std::string::npos);
  EXPECT_NE(head.find("Transfer-Encoding: chunked"), std::string::npos);
  for (int i = 0; i < 3; ++i) {
    feed->push("data: " + std::to_string(i) + "\n\n");
    EXPECT_EQ(client.receive_until("\n\n\r\n"), "9\r\ndata: " + std::to_string(i) + "\n\n\r\n");
  }
  feed->push("data: [DONE]\n\n");
  feed->finish();
  EXPECT_EQ(client.receive_until("0\r\n\r\n"), "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
  client.send(get("/hello"));
  EXPECT_EQ(client.response().body, "hi");
  EXPECT_FALSE(feed->cancelled());
  const auto records = server.records();
  EXPECT_EQ(records[0].status, 200);
  EXPECT_EQ(records[0].tokens.prompt, 3);
}

TEST(HttpStream, AClientOfHttp10GetsTheStreamUnchunked) {
  const auto feed = std::make_shared<Feed>();
  feed->push("data: 1\n\n");
  feed->finish();
  TestServer server({}, test_routes(feed));
  RawClient client = server.connect();
  client.send("POST /stream HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}");
  const auto response = client.response();
  EXPECT_EQ(response.body, "data: 1\n\n");
  EXPECT_EQ(response.headers.at("connection"), "close");
}

TEST(HttpStream, LeavingCancels) {
  for (const int way : {0, 1, 2}) {
    const auto feed = std::make_shared<Feed>();
    TestServer server({}, test_routes(feed));
    RawClient client = server.connect();
    client.send(post("/stream", "{}"));
    ASSERT_TRUE(feed->wait_started());
    client.receive_until("\r\n\r\n");
    if (way == 0) client.close();
    if (way == 1) client.reset();
    if (way == 2) client.end_of_input();
    EXPECT_TRUE(feed->wait_cancelled()) << way;  // nothing was pushed: it is noticed without writing
    EXPECT_TRUE(eventually([&] { return server->connections() == 0; }));
    EXPECT_EQ(server.records().at(0).status, 499);
  }
}

TEST(HttpStream, ARequestPipelinedBehindAStreamWaits) {
  const auto feed = std::make_shared<Feed>();
  TestServer server({}, test_routes(feed));
  RawClient client = server.connect();
  client.send(post("/stream", "{}") + get("/hello"));
  ASSERT_TRUE(feed->wait_started());
  feed->push("data: 1\n\n");
  feed->finish();
  EXPECT_EQ(client.response().body, "data: 1\n\n");
  EXPECT_EQ(client.response().body, "hi");
}

TEST(HttpStream, ASlowReaderIsNotPulledForAndInTheEndCut) {
  const auto feed = std::make_shared<Feed>();
  ServerOptions options;
  options.limits.write_timeout = 400ms;
  TestServer server(options, test_routes(feed));
  RawClient client(server->port(), 4096);
  client.send(post("/stream", "{}"));
  ASSERT_TRUE(feed->wait_started());
  const std::string event = "data: " + std::string(64 << 10, 'x') + "\n\n";
  int pulls = -1;
  for (int i = 0; i < 1000 && pulls != feed->pulls(); ++i) {  // until it is pulled no more
    pulls = feed->pulls();
    feed->push(event);
    std::this_thread::sleep_for(5ms);
  }
  EXPECT_LT(pulls, 500);
  EXPECT_TRUE(feed->wait_cancelled());
  EXPECT_TRUE(eventually([&] { return server->connections() == 0; }));
}

TEST(HttpStream, AReaderThatTakesALittleNowAndThenIsKept) {
  const auto feed = std::make_shared<Feed>();
  ServerOptions options;
  options.limits.write_timeout = 500ms;
  TestServer server(options, test_routes(feed));
  RawClient client(server->port(), 4096);
  client.send(post("/stream", "{}"));
  ASSERT_TRUE(feed->wait_started());
  const std::size_t size = 6 << 20;
  feed->push(std::string(size, 'x'));
  feed->finish();
  std::size_t got = 0;
  for (std::string part = client.receive(); !part.empty(); part = client.receive()) {
    got += part.size();
    if (part.ends_with("0\r\n\r\n")) break;
    if (got < size / 16) std::this_thread::sleep_for(10ms);
  }
  EXPECT_GT(got, size);
  EXPECT_FALSE(feed->cancelled());
}

TEST(HttpStream, DrainingLetsStreamsFinish) {
  const auto feed = std::make_shared<Feed>();
  TestServer server({}, test_routes(feed));
  RawClient idle = server.connect();
  idle.send(get("/hello"));
  idle.response();
  RawClient client = server.connect();
  client.send(post("/stream", "{}"));
  ASSERT_TRUE(feed->wait_started());
  client.receive_until("\r\n\r\n");
  server->drain();
  EXPECT_EQ(idle.receive(), "");  // who waits for nothing is let go
  const auto refused = server.ask(get("/hello"));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("connection"), "close");
  EXPECT_EQ(server.ask(get("/ready")).status, 200);  // open routes say for themselves what they think
  EXPECT_TRUE(server->draining());
  feed->push("data: last\n\n");
  feed->finish();
  EXPECT_NE(client.receive_all().find("data: last"), std::string::npos);
  EXPECT_TRUE(server.ended());
  EXPECT_EQ(server.cut(), 0);
}

TEST(HttpStream, DrainingEndsInTime) {
  const auto feed = std::make_shared<Feed>();
  ServerOptions options;
  options.drain_timeout = 100ms;
  auto server = std::make_unique<TestServer>(options, test_routes(feed));
  RawClient client = server->connect();
  client.send(post("/stream", "{}"));
  ASSERT_TRUE(feed->wait_started());
  (*server)->drain();
  EXPECT_TRUE(server->ended());
  EXPECT_EQ(server->cut(), 1);
  server.reset();
  EXPECT_TRUE(feed->cancelled());
}

TEST(HttpStream, SignalsDrainAndThenEnd) {
  const auto feed = std::make_shared<Feed>();
  std::atomic<int> drained = 0, ended = 0;
  ServerOptions options;
  options.signals = true;
  options.on_drain = [&] { ++drained; };
  options.on_second_signal = [&] { ++ended; };
  TestServer server(options, test_routes(feed));
  RawClient client = server.connect();
  client.send(post("/stream", "{}"));
  ASSERT_TRUE(feed->wait_started());
  std::raise(SIGHUP);  // no key file: nothing to read, nothing ends
  std::raise(SIGTERM);
  EXPECT_TRUE(eventually([&] { return drained == 1; }));
  std::raise(SIGINT);
  EXPECT_TRUE(eventually([&] { return ended == 1; }));
  feed->finish();
  EXPECT_TRUE(server.ended());
  EXPECT_EQ(drained, 1);
}

TEST(HttpStream, StoppingWithWorkOnTheWorkersIsSafe) {
  std::atomic<bool> inside = false;
  std::vector<HttpRoute> routes;
  routes.push_back({HttpRoute::Method::post, "/slow", false, [&](const HttpRequest&) -> HttpOutcome {
                      inside = true;
                      std::this_thread::sleep_for(200ms);
                      return HttpReply{};
                    }});
  TestServer server({}, routes);
  std::vector<RawClient> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(server.connect());
    clients.back().send(post("/slow", "{}"));
  }
  EXPECT_TRUE(eventually([&] { return inside.load(); }));
  const auto began = std::chrono::steady_clock::now();
  server->stop();
  EXPECT_TRUE(server.ended());
  EXPECT_LT(std::chrono::steady_clock::now() - began, 1s);
}

/// 2,000 streams at once, most of them with clients that read nothing until the end, served by two threads.
TEST(HttpStream, TwoThousandStreams) {
  constexpr int kStreams = 2000;
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < 2 * kStreams + 200) GTEST_SKIP() << "needs " << 2 * kStreams + 200 << " open files";

  std::vector<std::shared_ptr<Feed>> feeds;
  for (int i = 0; i < kStreams; ++i) feeds.push_back(std::make_shared<Feed>());
  std::vector<HttpRoute> routes = test_routes();
  routes.push_back({HttpRoute::Method::post, "/stream/{id}", false, [&](const HttpRequest& request) -> HttpOutcome {
                      const auto& feed = feeds[std::stoul(request.parameter)];
                      return feed->answer(feed);
                    }});
  ServerOptions options;
  options.threads = 2;
  TestServer server(options, routes);
  std::vector<RawClient> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back(server->port());
    ASSERT_TRUE(clients.back().send(post("/stream/" + std::to_string(i), "{}")));
  }
  for (const auto& feed : feeds) ASSERT_TRUE(feed->wait_started());
  EXPECT_EQ(server->connections(), kStreams);
  std::string expected;
  for (int event = 0; event < 20; ++event) {
    const std::string text = "data: " + std::to_string(event) + "\n\n";
    expected += text;
    for (const auto& feed : feeds) feed->push(text);
  }
  EXPECT_EQ(server.ask(get("/hello")).status, 200);                                    // others are served meanwhile
  for (int i = 0; i < kStreams; i += 2) clients[static_cast<std::size_t>(i)].reset();  // every other one vanishes
  for (int i = 0; i < kStreams; i += 2) ASSERT_TRUE(feeds[static_cast<std::size_t>(i)]->wait_cancelled());
  for (int i = 1; i < kStreams; i += 2) {
    feeds[static_cast<std::size_t>(i)]->finish();
    ASSERT_EQ(clients[static_cast<std::size_t>(i)].response().body, expected);
  }
  clients.clear();
  EXPECT_TRUE(eventually([&] { return server->connections() == 0; }));
}

}  // namespace
}  // namespace millrace::test
