// Logins: that every signature reaches the server, with one that says what a test wants signed, and with a real one.
#include "cluster/nats_login.h"

#include <gtest/gtest.h>
#include <nats/nats.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "nats_fixture.h"

namespace millrace::test {
namespace {

using ByteString = std::basic_string<unsigned char>;

/// An identity as deploy/issue_credentials makes it, from 32 bytes.
class Identity {
 public:
  explicit Identity(unsigned char byte) {
    const ByteString secret(32, byte);
    key_.reset(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, secret.data(), secret.size()));
    ByteString own(32, 0);
    std::size_t bytes = own.size();
    EXPECT_EQ(EVP_PKEY_get_raw_public_key(key_.get(), own.data(), &bytes), 1);
    seed = text({18 << 3 | (20 << 3) >> 5, (20 << 3 & 31) << 3}, secret);
    name = text({20 << 3}, own);
  }

  /// OpenSSL's, so that libnats' is checked by another.
  [[nodiscard]] ByteString sign(const std::string& nonce) const {
    ByteString signature(64, 0);
    std::size_t bytes = signature.size();
    const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
    EXPECT_EQ(EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_.get()), 1);
    EXPECT_EQ(EVP_DigestSign(context.get(), signature.data(), &bytes,
                             reinterpret_cast<const unsigned char*>(nonce.data()), nonce.size()),
              1);
    return signature;
  }
  /// What the server wants signed, where the signature begins with 0, or not.
  [[nodiscard]] std::string nonce(bool begins_with_zero, int number = 0) const {
    for (int i = number * 10'000;; ++i) {
      const std::string nonce = "nonce-" + std::to_string(i);
      if ((sign(nonce)[0] == 0) == begins_with_zero) return nonce;
    }
  }

  std::string seed, name;  // as NATS writes them

 private:
  /// Base 32, with the CRC-16 (XMODEM) behind it.
  static std::string text(std::initializer_list<int> head, const ByteString& key) {
    ByteString bytes(head.begin(), head.end());
    bytes += key;
    unsigned crc = 0, bits = 0, held = 0;
    for (const unsigned char byte : bytes) {
      crc ^= static_cast<unsigned>(byte) << 8;
      for (int i = 0; i < 8; ++i) crc = (crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1) & 0xffff;
    }
    bytes += {static_cast<unsigned char>(crc & 255), static_cast<unsigned char>(crc >> 8)};
    std::string text;
    const auto take = [&](unsigned five) { text += "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[five & 31]; };
    for (const unsigned char byte : bytes) {
      held = held << 8 | byte;
      for (bits += 8; bits >= 5; bits -= 5) take(held >> (bits - 5));
    }
    if (bits > 0) take(held << (5 - bits));
    return text;
  }

  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key_{nullptr, &EVP_PKEY_free};
};

/// A server that follows a script, one login after the other, and lets in whoever has signed what it asked.
class ScriptedServer {
 public:
  enum class Then { judge, break_off };
  struct Login {
    std::string nonce;
    Then then = Then::judge;
  };

  ScriptedServer(const Identity& identity, std::vector<Login> script)
      : identity_(identity), script_(std::move(script)), socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(socket_, 8), 0);
    ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    url = "nats://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    thread_ = std::thread([this] { run(); });
  }
  ~ScriptedServer() {
    ended_ = true;
    thread_.join();
    ::close(socket_);
  }
  ScriptedServer(const ScriptedServer&) = delete;
  ScriptedServer& operator=(const ScriptedServer&) = delete;

  /// The client that is there loses its connection.
  void drop() { dropped_ = true; }
  /// What CONNECT has said, one for each login; empty: the client hung up.
  [[nodiscard]] std::vector<std::string> heard() {
    const std::lock_guard lock(mutex_);
    return heard_;
  }

  std::string url;

 private:
  void run() {
    for (const Login& login : script_) {
      while (!readable(socket_)) {
        if (ended_) return;
      }
      dropped_ = false;
      const int client = ::accept(socket_, nullptr, nullptr);
      say(client, R"(INFO {"server_id":"s","version":"2.9.10","proto":1,"max_payload":1048576,"headers":true,)"
                  R"("auth_required":true,"nonce":")" +
                      login.nonce + "\"}\r\n");
      if (login.then == Then::judge) serve(client, login.nonce);
      ::close(client);
    }
  }

  void serve(int client, const std::string& nonce) {
    std::string text;
    while (text.find("PING\r\n") == std::string::npos && hear(client, text)) {
    }
    {
      const std::lock_guard lock(mutex_);
      heard_.push_back(text.substr(0, text.find("\r\n")));
    }
    if (text.empty()) return;
    if (!is_signed(text, nonce)) return say(client, "-ERR 'Authorization Violation'\r\n");
    say(client, "PONG\r\n");
    while (!dropped_) {
      text.clear();
      if (!hear(client, text)) return;
      if (text.find("PING\r\n") != std::string::npos) say(client, "PONG\r\n");
    }
  }

  bool is_signed(const std::string& connect, const std::string& nonce) const {
    const std::string before = R"("sig":")";
    const std::size_t at = connect.find(before);
    if (at == std::string::npos) return false;
    std::string base64 = connect.substr(at + before.size(), 86);
    std::ranges::replace(base64, '-', '+');
    std::ranges::replace(base64, '_', '/');
    ByteString bytes(66, 0);
    base64 += "==";
    EVP_DecodeBlock(bytes.data(), reinterpret_cast<const unsigned char*>(base64.data()), 88);
    return bytes.substr(0, 64) == identity_.sign(nonce);  // Ed25519 has one signature for each key and text
  }

  [[nodiscard]] bool readable(int socket) const {
    pollfd wanted{socket, POLLIN, 0};
    return ::poll(&wanted, 1, 20) > 0;
  }
  static void say(int client, const std::string& text) { (void)::send(client, text.data(), text.size(), MSG_NOSIGNAL); }
  /// False: there is nobody any more.
  bool hear(int client, std::string& text) const {
    while (!readable(client)) {
      if (ended_ || dropped_) return false;
    }
    std::array<char, 4096> bytes{};
    const ssize_t came = ::recv(client, bytes.data(), bytes.size(), 0);
    if (came > 0) text.append(bytes.data(), static_cast<std::size_t>(came));
    return came > 0;
  }

  const Identity& identity_;
  std::vector<Login> script_;
  int socket_;
  std::atomic<bool> ended_{false}, dropped_{false};
  std::mutex mutex_;
  std::vector<std::string> heard_;  // guarded by mutex_
  std::thread thread_;
};

class NatsLoginTest : public testing::Test {
 protected:
  NatsLoginTest() {
    std::string name = std::filesystem::temp_directory_path() / "millrace-login-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~NatsLoginTest() override { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  NatsOptions options(const std::string& url) {
    return {.url = url, .name = "one", .nkey_seed = file("seed", identity_.seed + "\n"), .nkey = identity_.name};
  }
  Result<std::unique_ptr<NatsTransport>> connect(const NatsOptions& options) {
    return NatsTransport::connect(options, loop_, [this](const std::string& message) { messages_ += message + "\n"; });
  }
  bool run_until(const std::function<bool()>& holds) {
    const Instant end = loop_.now() + seconds(20);
    std::function<void()> look = [&] {
      if (holds() || loop_.now() > end) return loop_.stop();
      loop_.after(milliseconds(5), look);
    };
    look();
    loop_.run();
    return holds();
  }

  const Identity identity_{7};
  std::filesystem::path folder_;
  EventLoop loop_;
  std::string messages_;
};

TEST_F(NatsLoginTest, AnySignatureLetsIn) {
  ScriptedServer server(identity_, {{identity_.nonce(true, 0)}, {identity_.nonce(true, 1)}, {identity_.nonce(false)}});
  const auto transport = connect(options(server.url));
  ASSERT_TRUE(transport.ok()) << transport.error().message;
  EXPECT_TRUE((*transport)->connected());
}

TEST_F(NatsLoginTest, AnySignatureLetsInAgain) {
  ScriptedServer server(identity_, {{identity_.nonce(false, 0)},
                                    {identity_.nonce(true, 0)},
                                    {identity_.nonce(true, 1)},
                                    {identity_.nonce(true, 2)},
                                    {identity_.nonce(false, 1)}});
  const auto transport = connect(options(server.url));
  ASSERT_TRUE(transport.ok()) << transport.error().message;
  server.drop();
  ASSERT_TRUE(run_until([&] { return messages_.find("is lost") != std::string::npos; }));
  EXPECT_TRUE(run_until([&] { return (*transport)->connected(); })) << messages_;
  EXPECT_EQ(messages_.find("given up"), std::string::npos) << messages_;
}

TEST_F(NatsLoginTest, ALoginThatIsBrokenOffIsTriedAgain) {
  using Then = ScriptedServer::Then;
  ScriptedServer server(identity_, {{"a", Then::break_off}, {"b", Then::break_off}, {identity_.nonce(false)}});
  const auto transport = connect(options(server.url));
  ASSERT_TRUE(transport.ok()) << transport.error().message;
  EXPECT_TRUE((*transport)->connected());

  ScriptedServer never(identity_, std::vector<ScriptedServer::Login>(9, {"a", Then::break_off}));
  const auto none = connect(options(never.url));
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("NATS at " + never.url), std::string::npos) << none.error().message;
}

TEST_F(NatsLoginTest, WhoIsNotKnownIsToldSo) {
  const Identity other(8);
  ScriptedServer server(other, {{identity_.nonce(false)}, {identity_.nonce(false)}});
  const auto transport = connect(options(server.url));
  ASSERT_FALSE(transport.ok());
  EXPECT_NE(transport.error().message.find("refuses one: "), std::string::npos) << transport.error().message;
  EXPECT_NE(transport.error().message.find("Authorization Violation"), std::string::npos) << transport.error().message;
  EXPECT_EQ(server.heard().size(), 1u) << "it is asked once";
}

TEST_F(NatsLoginTest, AJwtIsSaidWithItsSignature) {
  ScriptedServer server(identity_, {{identity_.nonce(true)}, {identity_.nonce(false)}});
  const std::string credentials = file("creds",
                                       "-----BEGIN NATS USER JWT-----\neyJ0eXAi.eyJq.c2ln\n"
                                       "------END NATS USER JWT------\n\n"
                                       "-----BEGIN USER NKEY SEED-----\n" +
                                           identity_.seed + "\n------END USER NKEY SEED------\n");
  const auto transport = connect({.url = server.url, .name = "one", .credentials = credentials});
  ASSERT_TRUE(transport.ok()) << transport.error().message;
  EXPECT_NE(server.heard().back().find(R"("jwt":"eyJ0eXAi.eyJq.c2ln")"), std::string::npos) << server.heard().back();
}

TEST_F(NatsLoginTest, FilesAreReadFirst) {
  const auto error = [&](NatsOptions options) {
    const auto transport = connect(options);
    return transport.ok() ? "none" : transport.error().message;
  };
  const std::string empty = file("empty", "\n"), none = folder_ / "none",
                    seed_alone = file("seed_alone", identity_.seed + "\n");
  EXPECT_EQ(error({.name = "one", .nkey_seed = none, .nkey = identity_.name}), none + ": No such file or directory");
  EXPECT_EQ(error({.name = "one", .nkey_seed = empty, .nkey = identity_.name}), empty + " has no seed of a user");
  EXPECT_EQ(error({.name = "one", .credentials = seed_alone}), seed_alone + " has no JWT");
}

TEST(NatsSignature, OldLibrariesTakeAZeroForNone) {
  const unsigned char zero[64] = {0, 1}, one[64] = {1, 0};
  EXPECT_FALSE(is_sent(zero, 0x030401));
  EXPECT_FALSE(is_sent(zero, 0x0307ff));
  EXPECT_TRUE(is_sent(zero, 0x030800));
  EXPECT_TRUE(is_sent(one, 0x030401));
}

class NatsLogins : public Nats {
 protected:
  void SetUp() override {
    if (!NatsServer::available()) GTEST_SKIP() << "this machine has no nats-server (Debian: apt install nats-server)";
    server_.emplace("--gateway gate --node one");
  }
};

/// With one login in 256 refused (see is_sent), it would fail 93 times in 100.
TEST_F(NatsLogins, SevenHundredInTurnAreLetIn) {
  const NatsOptions options = server_->options("one");
  for (int i = 0; i < 700; ++i) {
    const auto transport = NatsTransport::connect(options, loop_, [](const std::string&) {});
    ASSERT_TRUE(transport.ok()) << "login " << i << ": " << transport.error().message;
    ASSERT_TRUE((*transport)->connected()) << "login " << i;
  }
}

}  // namespace
}  // namespace millrace::test
