#include "server/http_wire.h"

#include <netinet/tcp.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <optional>

namespace millrace {

namespace {

namespace ssl = asio::ssl;
using asio::ip::tcp;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

/// Bytes that the kernel may hold for a reader beyond what is on its way: with the default, thousands of slow readers
/// would each fill megabytes.
constexpr int kUnsentBytes = 128 << 10;

}  // namespace

struct Wire::Impl {
  tcp::socket socket;
  std::optional<ssl::stream<tcp::socket&>> tls;
};

Result<std::shared_ptr<ssl::context>> make_tls_context(const std::string& certificate, const std::string& key) {
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  error_code ec;
  context->set_options(ssl::context::default_workarounds | ssl::context::no_sslv2 | ssl::context::no_sslv3 |
                           ssl::context::no_tlsv1 | ssl::context::no_tlsv1_1 | ssl::context::single_dh_use,
                       ec);
  if (!ec) context->use_certificate_chain_file(certificate, ec);
  if (ec) return fail("TLS certificate {}: {}", certificate, ec.message());
  context->use_private_key_file(key, ssl::context::pem, ec);
  if (ec) return fail("TLS key {}: {}", key, ec.message());
  if (SSL_CTX_check_private_key(context->native_handle()) != 1) {
    return fail("TLS key {} does not belong to the certificate {}", key, certificate);
  }
  return context;
}

Wire::Wire(tcp::socket socket, ssl::context* tls)
    : impl_(std::make_unique<Impl>(Impl{std::move(socket), std::nullopt})) {
  error_code ignored;  // options that a kernel lacks change speed and memory, not meaning
  impl_->socket.set_option(tcp::no_delay(true), ignored);
  impl_->socket.set_option(asio::socket_base::keep_alive(true), ignored);
  impl_->socket.set_option(asio::detail::socket_option::integer<IPPROTO_TCP, TCP_NOTSENT_LOWAT>(kUnsentBytes), ignored);
  impl_->socket.non_blocking(true, ignored);
  if (tls != nullptr) impl_->tls.emplace(impl_->socket, *tls);
}

Wire::~Wire() = default;

asio::any_io_executor Wire::executor() {
  return impl_->socket.get_executor();
}

asio::awaitable<error_code> Wire::handshake() {
  if (!impl_->tls) co_return error_code{};
  auto [ec] = co_await impl_->tls->async_handshake(ssl::stream_base::server, kAwait);
  co_return ec;
}

asio::awaitable<Wire::Transfer> Wire::read_some(asio::mutable_buffer buffer) {
  if (impl_->tls) {
    auto [ec, size] = co_await impl_->tls->async_read_some(buffer, kAwait);
    co_return Transfer{ec, size};
  }
  auto [ec, size] = co_await impl_->socket.async_read_some(buffer, kAwait);
  co_return Transfer{ec, size};
}

asio::awaitable<Wire::Transfer> Wire::write_some(std::string_view data) {
  const asio::const_buffer buffer(data.data(), data.size());
  if (impl_->tls) {
    auto [ec, size] = co_await impl_->tls->async_write_some(buffer, kAwait);
    co_return Transfer{ec, size};
  }
  auto [ec, size] = co_await impl_->socket.async_write_some(buffer, kAwait);
  co_return Transfer{ec, size};
}

std::size_t Wire::write_now(std::string_view data, error_code& ec) {
  ec = {};
  if (impl_->tls) return 0;
  const std::size_t size = impl_->socket.write_some(asio::const_buffer(data.data(), data.size()), ec);
  if (ec == asio::error::would_block || ec == asio::error::try_again) ec = {};
  return size;
}

asio::awaitable<void> Wire::finish() {
  if (impl_->tls) (void)co_await impl_->tls->async_shutdown(kAwait);
  error_code ignored;  // the peer may have gone
  impl_->socket.shutdown(tcp::socket::shutdown_send, ignored);
}

void Wire::close() {
  error_code ignored;
  impl_->socket.close(ignored);
}

}  // namespace millrace
