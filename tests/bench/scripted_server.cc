#include "bench/scripted_server.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace millrace::bench {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::redirect_error;
using asio::use_awaitable;
using asio::ip::tcp;

struct ScriptedServer::State {
  explicit State(Script to_run) : script(std::move(to_run)) {}

  Script script;
  asio::io_context context{1};
  std::optional<asio::ssl::context> tls;
  tcp::acceptor acceptor{context, {asio::ip::address_v4::loopback(), 0}};
  std::uint16_t port = acceptor.local_endpoint().port();
  std::mutex mutex;  // guards received
  std::vector<ReceivedRequest> received;
  std::thread thread;

  asio::awaitable<void> accept() {
    for (int number = 0;; ++number) {
      boost::system::error_code error;
      tcp::socket socket = co_await acceptor.async_accept(redirect_error(use_awaitable, error));
      if (error) co_return;
      socket.set_option(tcp::no_delay(true));
      if (tls) {
        asio::co_spawn(context, serve_tls(std::move(socket), number), asio::detached);
      } else {
        asio::co_spawn(context, serve_plain(std::move(socket), number), asio::detached);
      }
    }
  }

  asio::awaitable<void> serve_plain(tcp::socket socket, int number) { co_await serve(socket, number); }

  asio::awaitable<void> serve_tls(tcp::socket socket, int number) {
    asio::ssl::stream<tcp::socket> stream(std::move(socket), *tls);
    boost::system::error_code error;
    co_await stream.async_handshake(asio::ssl::stream_base::server, redirect_error(use_awaitable, error));
    if (!error) co_await serve(stream, number);
  }

  template <typename Stream>
  asio::awaitable<void> serve(Stream& stream, int number) {
    boost::beast::flat_buffer buffer;
    asio::steady_timer timer(context);
    while (true) {
      boost::system::error_code error;
      http::request<http::string_body> request;
      co_await http::async_read(stream, buffer, request, redirect_error(use_awaitable, error));
      if (error) co_return;
      const Reply reply = answer(request, number);
      for (const Step& step : reply.steps) {
        if (step.pause_s > 0) {
          timer.expires_after(
              std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(step.pause_s)));
          co_await timer.async_wait(redirect_error(use_awaitable, error));
        }
        co_await asio::async_write(stream, asio::buffer(step.bytes), redirect_error(use_awaitable, error));
        if (error) co_return;
      }
      if (reply.close) co_return;
    }
  }

  Reply answer(const http::request<http::string_body>& request, int connection) {
    ReceivedRequest seen{std::string(request.method_string()),
                         std::string(request.target()),
                         std::string(request[http::field::authorization]),
                         request.body(),
                         connection,
                         0};
    {
      const std::lock_guard lock(mutex);
      seen.number = static_cast<int>(received.size());
      received.push_back(seen);
    }
    return script(seen);
  }
};

ScriptedServer::ScriptedServer(Script script, const Identity* tls)
    : state_(std::make_unique<State>(std::move(script))) {
  if (tls != nullptr) {
    state_->tls.emplace(asio::ssl::context::tls_server);
    state_->tls->use_certificate_chain(asio::buffer(tls->certificate));
    state_->tls->use_private_key(asio::buffer(tls->key), asio::ssl::context::pem);
  }
  asio::co_spawn(state_->context, state_->accept(), asio::detached);
  state_->thread = std::thread([state = state_.get()] { state->context.run(); });
}

ScriptedServer::~ScriptedServer() {
  state_->context.stop();
  state_->thread.join();
}

std::uint16_t ScriptedServer::port() const {
  return state_->port;
}

std::string ScriptedServer::url() const {
  return fmt::format("{}://127.0.0.1:{}", state_->tls ? "https" : "http", port());
}

std::vector<ReceivedRequest> ScriptedServer::received() const {
  const std::lock_guard lock(state_->mutex);
  return state_->received;
}

std::string stream_head() {
  return "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
}

std::string chunk(const std::string& bytes) {
  return fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
}

Reply whole_reply(int status, const std::string& body, const std::string& headers) {
  return {{{fmt::format("HTTP/1.1 {} Any\r\nContent-Type: application/json\r\n{}Content-Length: {}\r\n\r\n{}", status,
                        headers, body.size(), body)}}};
}

std::string token_event(const std::string& text) {
  return R"(data: {"choices":[{"index":0,"text":")" + text + R"(","finish_reason":null}]})" + "\n\n";
}

std::string end_events(int prompt_tokens, int completion_tokens, const std::string& usage_more) {
  return R"(data: {"choices":[{"index":0,"text":"","finish_reason":"length"}]})"
         "\n\n" +
         fmt::format(R"(data: {{"choices":[],"usage":{{"prompt_tokens":{},"completion_tokens":{}{}}}}})", prompt_tokens,
                     completion_tokens, usage_more) +
         "\n\ndata: [DONE]\n\n";
}

namespace {

std::string take_pem(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<std::size_t>(size));
  BIO_free(bio);
  return text;
}

}  // namespace

Identity make_identity() {
  EVP_PKEY* const key = EVP_EC_gen("P-256");
  X509* const certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_NAME* const name = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("test"), -1, -1, 0);
  X509_set_issuer_name(certificate, name);
  X509_EXTENSION* const alternative = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "IP:127.0.0.1");
  X509_add_ext(certificate, alternative, -1);
  X509_EXTENSION_free(alternative);
  X509_sign(certificate, key, EVP_sha256());
  BIO* const certificate_text = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(certificate_text, certificate);
  BIO* const key_text = BIO_new(BIO_s_mem());
  PEM_write_bio_PrivateKey(key_text, key, nullptr, nullptr, 0, nullptr, nullptr);
  X509_free(certificate);
  EVP_PKEY_free(key);
  return {take_pem(certificate_text), take_pem(key_text)};
}

}  // namespace millrace::bench
