// The server over loopback: requests, limits, timeouts, keys, CORS, draining.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <random>

#include "server/http_client.h"

namespace millrace::test {
namespace {

using namespace std::chrono_literals;

ServerOptions quick_timeouts() {
  ServerOptions options;
  options.limits.header_timeout = 200ms;
  options.limits.idle_timeout = 300ms;
  options.limits.write_timeout = 300ms;
  return options;
}

TEST(HttpServer, AnswersAndKeepsTheConnection) {
  TestServer server({}, test_routes());
  RawClient client = server.connect();
  for (int i = 0; i < 3; ++i) {
    client.send(get("/hello?key=secret"));
    const auto response = client.response();
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "hi");
    EXPECT_EQ(response.headers.at("content-type"), "text/plain");
    EXPECT_TRUE(response.headers.contains("date"));
    EXPECT_FALSE(response.headers.contains("connection"));
  }
  client.send(post("/echo", "abc"));
  EXPECT_EQ(client.response().body, "abc");
  client.send(post("/echo", ""));
  EXPECT_EQ(client.response().status, 200);
  client.send("GET http://elsewhere/items/a%2Fb HTTP/1.1\r\nHost: elsewhere\r\n\r\n");
  EXPECT_EQ(client.response().body, "a/b");
  const auto records = server.records();
  ASSERT_GE(records.size(), 5U);
  EXPECT_EQ(records[0].path, "/hello");
  EXPECT_EQ(records[0].route, "/hello");
  EXPECT_EQ(records[0].status, 200);
  EXPECT_GT(records[0].bytes, 100U);
  EXPECT_TRUE(records[0].peer.starts_with("127.0.0.1:"));
}

TEST(HttpServer, ClosesWhenAsked) {
  TestServer server({}, test_routes());
  RawClient client = server.connect();
  client.send(get("/hello", "Connection: close\r\n"));
  EXPECT_EQ(client.response().headers.at("connection"), "close");
  EXPECT_EQ(client.receive(), "");

  RawClient old = server.connect();
  old.send("GET /hello HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.response().body, "hi");
  EXPECT_EQ(old.receive(), "");

  RawClient old_keeps = server.connect();
  for (int i = 0; i < 2; ++i) {
    old_keeps.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    EXPECT_EQ(old_keeps.response().headers.at("connection"), "keep-alive");
  }

  RawClient half = server.connect();  // half-closed behind the request: still answered
  half.send(get("/hello"));
  half.end_of_input();
  EXPECT_EQ(half.response().body, "hi");
}

TEST(HttpServer, PipelinedRequestsAreAnsweredInOrder) {
  TestServer server({}, test_routes());
  RawClient client = server.connect();
  std::string all = "\r\n";  // an empty line before a request is passed over
  for (int i = 0; i < 2000; ++i)
    all += i % 2 == 0 ? post("/echo", std::to_string(i)) : get("/items/" + std::to_string(i));
  std::thread writer([&] { client.send(all); });
  for (int i = 0; i < 2000; ++i) ASSERT_EQ(client.response().body, std::to_string(i));
  writer.join();
}

TEST(HttpServer, HeadAndOptionsAndWrongMethods) {
  TestServer server({}, test_routes());
  RawClient client = server.connect();
  client.send(get("/hello", "", "HEAD"));
  auto response = client.response(true);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.headers.at("content-length"), "2");
  client.send(get("/echo", "", "HEAD"));
  response = client.response(true);
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.headers.at("allow"), "POST, OPTIONS");
  client.send(get("/hello", "", "OPTIONS"));
  response = client.response();
  EXPECT_EQ(response.status, 204);
  EXPECT_EQ(response.headers.at("allow"), "GET, HEAD, OPTIONS");
  client.send(get("*", "", "OPTIONS"));
  EXPECT_EQ(client.response().status, 204);
  client.send(get("/nowhere", "", "OPTIONS"));
  EXPECT_EQ(client.response().status, 404);
  for (const char* method : {"DELETE", "PUT", "PATCH", "TRACE", "BREW"}) {
    client.send(get("/hello", "", method));
    response = client.response();
    EXPECT_EQ(response.status, 405) << method;
    EXPECT_NE(response.body.find("method_not_supported"), std::string::npos);
  }
  client.send(post("/nowhere", "body that is read past"));
  response = client.response();
  EXPECT_EQ(response.status, 404);
  EXPECT_NE(response.body.find(R"("type":"invalid_request_error")"), std::string::npos);
  client.send(get("/hello"));
  EXPECT_EQ(client.response().status, 200);
}

TEST(HttpServer, RequestIdsAreEchoedOrMade) {
  TestServer server({}, test_routes());
  RawClient client = server.connect();
  client.send(get("/hello", "X-Request-Id: abc-1.2\r\n"));
  EXPECT_EQ(client.response().headers.at("x-request-id"), "abc-1.2");
  client.send(get("/hello", "X-Request-Id: two words\r\n"));
  EXPECT_TRUE(client.response().headers.at("x-request-id").starts_with("req-"));
  EXPECT_EQ(server.records()[0].id, "abc-1.2");
}

TEST(HttpServer, AHandlerThatFailsIsAServerError) {
  TestServer server({}, test_routes());
  const auto response = server.ask(post("/throw", "x"));
  EXPECT_EQ(response.status, 500);
  EXPECT_EQ(response.body.find("secret"), std::string::npos);
}

TEST(HttpServer, LimitsOfSize) {
  ServerOptions options;
  options.limits.header_bytes = 4 << 10;
  options.limits.body_bytes = 100'000;
  options.limits.all_bodies_bytes = 150'000;
  TestServer server(options, test_routes());
  EXPECT_EQ(server.ask(get("/hello", "X: " + std::string(5000, 'x') + "\r\n")).status, 431);
  EXPECT_EQ(server.ask(get("/" + std::string(5000, 'x'))).status, 431);
  EXPECT_EQ(server.ask(post("/echo", std::string(100'000, 'x'))).body.size(), 100'000U);
  // Refused by its length alone, before any of it is sent, and also when the client sends it nevertheless.
  EXPECT_EQ(server.ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n").status, 413);
  EXPECT_EQ(server.ask(post("/echo", std::string(3'000'000, 'x'))).status, 413);
  EXPECT_EQ(server.ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n").status, 413);
  std::string chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  RawClient client = server.connect();
  client.send(chunked + "5\r\nhello\r\n6;name=value\r\n there\r\n0\r\nTrailer: x\r\n\r\n");
  EXPECT_EQ(client.response().body, "hello there");
  for (int i = 0; i < 11; ++i) chunked += "2710\r\n" + std::string(10'000, 'x') + "\r\n";
  EXPECT_EQ(server.ask(chunked).status, 413);
  // Bodies of all connections together are bounded too, and given back.
  RawClient holder = server.connect();
  holder.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + std::string(99'998, 'x'));
  EXPECT_TRUE(eventually([&] { return server.ask(post("/echo", std::string(99'000, 'x'))).status == 503; }));
  holder.send("x");
  EXPECT_EQ(holder.response().status, 200);
  EXPECT_EQ(server.ask(post("/echo", std::string(99'000, 'x'))).status, 200);
}

TEST(HttpServer, ExpectContinue) {
  ServerOptions options;
  options.limits.body_bytes = 1000;
  TestServer server(options, test_routes());
  RawClient client = server.connect();
  client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.receive_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("abc");
  EXPECT_EQ(client.response().body, "abc");
  // What will be refused is not asked for.
  EXPECT_EQ(server.ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\nExpect: 100-continue\r\n\r\n").status,
            413);
  EXPECT_EQ(server.ask("POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").status,
            404);
  EXPECT_EQ(server.ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: tea\r\n\r\nabc").status, 417);
}

TEST(HttpServer, SlowClientsAreNotWaitedFor) {
  TestServer server(quick_timeouts(), test_routes());
  RawClient silent = server.connect();  // never says a word: closed without an answer
  EXPECT_EQ(silent.receive_all(), "");
  RawClient slow = server.connect();  // a header that never ends
  slow.send("GET /hello HTTP/1.1\r\n");
  for (int i = 0; i < 20 && slow.send("X: y\r\n"); ++i) std::this_thread::sleep_for(20ms);
  EXPECT_EQ(slow.response().status, 408);
  RawClient body = server.connect();
  body.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nabc");
  EXPECT_EQ(body.response().status, 408);
  RawClient idle = server.connect();
  idle.send(get("/hello"));
  EXPECT_EQ(idle.response().status, 200);
  const auto began = std::chrono::steady_clock::now();
  EXPECT_EQ(idle.receive(), "");
  const auto waited = std::chrono::steady_clock::now() - began;
  EXPECT_GT(waited, 200ms);
  EXPECT_LT(waited, 3s);
  EXPECT_TRUE(eventually([&] { return server->connections() == 0; }));
}

TEST(HttpServer, MalformedRequestsGetAnErrorAndTheEnd) {
  TestServer server(quick_timeouts(), test_routes());
  const struct {
    std::string request;
    int status;
  } cases[] = {
      {"NONSENSE\r\n\r\n", 400},
      {"GET\r\n\r\n", 400},
      {"GET /hello\r\n\r\n", 400},
      {"GET /hello HTTP/2.0\r\nHost: x\r\n\r\n", 505},
      {"GET /hello HTTP/1.1\r\n\r\n", 400},                        // no Host
      {"GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},  // two
      {"GET hello HTTP/1.1\r\nHost: x\r\n\r\n", 400},              // no path
      {"GET http:///hello HTTP/1.1\r\nHost: x\r\n\r\n", 400},      // no host in it
      {"GET /hello HTTP/1.1\r\nHost : x\r\n\r\n", 400},            // blank before the colon
      {"GET /hello HTTP/1.1\r\nHost: x\r\nBad\x01Name: y\r\n\r\n", 400},
      {"GET /hello HTTP/1.1\r\nHost: x\r\nA: b\x02\r\n\r\n", 400},
      {std::string("GET /hello HTTP/1.1\r\nHost: x\r\nA: b\0\r\n\r\n", 40), 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3x\r\n\r\nabc", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 4\r\n\r\nabc", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400},
      {"POST /echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabc", 501},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;" + std::string(200'000, 'x'), 400},
      {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11), 400},  // TLS to a plain port
  };
  for (const auto& [request, status] : cases) {
    RawClient client = server.connect();
    client.send(request);
    const auto response = client.response();
    EXPECT_EQ(response.status, status) << request.substr(0, 100);
    EXPECT_NE(response.body.find(R"({"error":{"message":)"), std::string::npos);
    EXPECT_EQ(client.receive_all(), "") << request.substr(0, 100);  // nothing after it is taken for a request
  }
  EXPECT_EQ(server.ask(get("/hello")).status, 200);
}

TEST(HttpServer, SurvivesRandomBytes) {
  ServerOptions options = quick_timeouts();
  options.limits.header_timeout = 50ms;
  TestServer server(options, test_routes());
  std::mt19937_64 random(7);
  const std::string seed = post("/echo", "hello", "Transfer-Encoding: chunked\r\nX-Request-Id: a\r\n") + get("/hello");
  for (int i = 0; i < 300; ++i) {
    std::string bytes;
    if (i % 2 == 0) {
      bytes = seed;
      for (int change = 0; change < 4; ++change) bytes[random() % bytes.size()] = static_cast<char>(random());
    } else {
      for (std::size_t size = random() % 2000; size > 0; --size) bytes.push_back(static_cast<char>(random()));
    }
    RawClient client = server.connect();
    client.send(bytes);
    if (i % 3 == 0) client.end_of_input();
    if (i % 5 == 0) client.reset();
    if (i % 5 != 0 && i % 3 == 0) (void)client.receive_all();
  }
  EXPECT_EQ(server.ask(get("/hello")).status, 200);
  EXPECT_TRUE(eventually([&] { return server->connections() == 0; }));
}

TEST(HttpServer, TooManyConnectionsAreToldSo) {
  ServerOptions options;
  options.max_connections = 3;
  TestServer server(options, test_routes());
  std::vector<RawClient> held;
  for (int i = 0; i < 3; ++i) {
    held.push_back(server.connect());
    held.back().send(get("/hello"));
    EXPECT_EQ(held.back().response().status, 200);
  }
  RawClient other = server.connect();
  other.send(get("/hello"));
  const auto response = other.response();
  EXPECT_EQ(response.status, 503);
  EXPECT_TRUE(response.headers.contains("retry-after"));
  EXPECT_EQ(other.receive(), "");
  held.clear();
  EXPECT_TRUE(eventually([&] { return server.ask(get("/hello")).status == 200; }));
}

TEST(HttpServer, RunningOutOfDescriptorsPassesAndDoesNotSpin) {
  TestServer server({}, test_routes());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  RawClient client = server.connect();
  client.send(get("/hello"));
  ASSERT_EQ(client.response().status, 200);
  // The limit is set so that the client's socket is the last descriptor that the process may have.
  std::vector<RawClient> extra;
  extra.push_back(server.connect());
  ASSERT_TRUE(eventually([&] { return server->connections() == 2; }));
  const int highest = std::max(client.fd(), extra.back().fd());
  rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(highest + 3);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  std::vector<RawClient> waiting;
  for (int i = 0; i < 4; ++i) waiting.push_back(server.connect());
  const std::clock_t cpu = std::clock();
  std::this_thread::sleep_for(500ms);
  EXPECT_LT(static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC, 0.2);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  for (RawClient& late : waiting) {
    if (!late.connected()) continue;
    late.send(get("/hello"));
    EXPECT_EQ(late.response().status, 200);
  }
}

TEST(HttpServer, Keys) {
  const std::string path = ::testing::TempDir() + "millrace_keys_test";
  std::ofstream(path) << "# ours\nkey-one\n\n  key-two  \r\n";
  ServerOptions options;
  options.api_key_file = path;
  TestServer server(options, test_routes());
  const auto ask = [&](const std::string& header) { return server.ask(post("/tenant", "", header)); };
  const auto none = ask("");
  EXPECT_EQ(none.status, 401);
  EXPECT_EQ(none.headers.at("www-authenticate"), "Bearer");
  EXPECT_NE(none.body.find("invalid_api_key"), std::string::npos);
  EXPECT_EQ(ask("Authorization: Bearer key-three\r\n").status, 401);
  EXPECT_EQ(ask("Authorization: Bearer key-on\r\n").status, 401);
  EXPECT_EQ(ask("Authorization: Bearer \r\n").status, 401);
  EXPECT_EQ(ask("Authorization: key-one\r\n").status, 401);
  EXPECT_EQ(ask("Authorization: Bearer # ours\r\n").status, 401);
  const auto one = ask("Authorization: Bearer key-one\r\n");
  const auto two = ask("Authorization: bearer  key-two\r\n");
  EXPECT_EQ(one.status, 200);
  EXPECT_EQ(two.status, 200);
  EXPECT_EQ(one.body.size(), 32U);
  EXPECT_NE(one.body, two.body);
  EXPECT_EQ(server.ask(get("/ready")).status, 200);
  EXPECT_EQ(server.ask(get("/nowhere")).status, 401);  // what there is to ask for is not told either
  std::filesystem::remove(path);
}

TEST(HttpServer, KeysAreReadAgainOnSighup) {
  const std::string path = ::testing::TempDir() + "millrace_keys_again_test";
  std::ofstream(path) << "old\n";
  std::atomic<int> read = 0, failed = 0;
  ServerOptions options;
  options.signals = true;
  options.api_key_file = path;
  options.on_message = [&](const std::string& message) {
    if (message == "API keys read again") ++read;
    if (message.starts_with("API keys stay as they were: ")) ++failed;
  };
  TestServer server(options, test_routes());
  const auto status = [&](const std::string& key) {
    return server.ask(post("/tenant", "", "Authorization: Bearer " + key + "\r\n")).status;
  };
  EXPECT_EQ(status("old"), 200);
  std::ofstream(path) << "new\n";
  EXPECT_EQ(status("new"), 401);
  std::raise(SIGHUP);
  EXPECT_TRUE(eventually([&] { return read == 1; }));
  EXPECT_EQ(status("new"), 200);
  EXPECT_EQ(status("old"), 401);
  std::filesystem::remove(path);
  std::raise(SIGHUP);
  EXPECT_TRUE(eventually([&] { return failed == 1; }));
  EXPECT_EQ(status("new"), 200);
}

TEST(HttpServer, Cors) {
  ServerOptions options;
  options.cors = {"https://a.example"};
  TestServer server(options, test_routes());
  const auto preflight = server.ask(get("/echo",
                                        "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n"
                                        "Access-Control-Request-Headers: authorization, x-stainless-os\r\n",
                                        "OPTIONS"));
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "https://a.example");
  EXPECT_EQ(preflight.headers.at("access-control-allow-methods"), "POST, OPTIONS");
  EXPECT_EQ(preflight.headers.at("access-control-allow-headers"), "authorization, x-stainless-os");
  EXPECT_EQ(preflight.headers.at("vary"), "Origin");
  const auto other = server.ask(get("/hello", "Origin: https://b.example\r\n"));
  EXPECT_FALSE(other.headers.contains("access-control-allow-origin"));
  const auto error = server.ask(get("/nowhere", "Origin: https://a.example\r\n"));
  EXPECT_EQ(error.headers.at("access-control-allow-origin"), "https://a.example");
  options.cors = {"*"};
  TestServer open(options, test_routes());
  EXPECT_EQ(open.ask(get("/hello", "Origin: null\r\n")).headers.at("access-control-allow-origin"), "*");
  TestServer closed({}, test_routes());
  EXPECT_FALSE(closed.ask(get("/hello", "Origin: x\r\n")).headers.contains("access-control-allow-origin"));
}

TEST(HttpServer, WhatCannotBeListenedOn) {
  TestServer server({}, test_routes());
  ServerOptions taken;
  taken.port = server->port();
  auto second = Server::listen(taken, {});
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("cannot listen on 127.0.0.1:"), std::string::npos);
  const auto refused = [](auto change) {
    ServerOptions options;
    options.port = 0;
    change(options);
    return !Server::listen(options, {}).ok();
  };
  EXPECT_FALSE(refused([](ServerOptions&) {}));
  EXPECT_TRUE(refused([](ServerOptions& options) { options.host = "no such host"; }));
  EXPECT_TRUE(refused([](ServerOptions& options) { options.api_key_file = "/nowhere/keys"; }));
  EXPECT_TRUE(refused([](ServerOptions& options) { options.tls_cert = "/nowhere/cert"; }));
  EXPECT_TRUE(refused([](ServerOptions& options) { options.tls_cert = options.tls_key = "/nowhere/cert"; }));
}

TEST(HttpServer, TheSamePortServesAgainAtOnce) {
  std::uint16_t port = 0;
  RawClient client = [&] {
    TestServer first({}, test_routes());
    port = first->port();
    RawClient connected = first.connect();
    connected.send(get("/hello"));
    EXPECT_EQ(connected.response().status, 200);
    return connected;  // the server's side closes first and leaves its address in TIME_WAIT
  }();
  ServerOptions options;
  options.port = port;
  EXPECT_TRUE(Server::listen(options, test_routes()).ok());
}

}  // namespace
}  // namespace millrace::test
