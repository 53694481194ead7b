// TLS with a certificate that the test makes.

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <filesystem>
#include <fstream>

#include "server/http_client.h"

namespace millrace::test {
namespace {

template <typename T, void (*Free)(T*)>
struct Freed {
  void operator()(T* object) const { Free(object); }
};
template <typename T, void (*Free)(T*)>
using Owned = std::unique_ptr<T, Freed<T, Free>>;

std::string text_of(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<std::size_t>(size)};
}

/// A self-signed certificate for 127.0.0.1 and its key, as PEM files.
class Certificate {
 public:
  Certificate() {
    const Owned<EVP_PKEY, EVP_PKEY_free> key(EVP_EC_gen("P-256"));
    const Owned<X509, X509_free> certificate(X509_new());
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
    X509_set_pubkey(certificate.get(), key.get());
    X509_NAME* name = X509_get_subject_name(certificate.get());
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("127.0.0.1"), -1, -1,
                               0);
    X509_set_issuer_name(certificate.get(), name);
    X509_sign(certificate.get(), key.get(), EVP_sha256());
    const Owned<BIO, BIO_free_all> out(BIO_new(BIO_s_mem()));
    PEM_write_bio_X509(out.get(), certificate.get());
    std::ofstream(cert_path) << text_of(out.get());
    const Owned<BIO, BIO_free_all> key_out(BIO_new(BIO_s_mem()));
    PEM_write_bio_PrivateKey(key_out.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    std::ofstream(key_path) << text_of(key_out.get());
  }
  ~Certificate() {
    std::filesystem::remove(cert_path);
    std::filesystem::remove(key_path);
  }
  Certificate(const Certificate&) = delete;
  Certificate& operator=(const Certificate&) = delete;

  const std::string cert_path = ::testing::TempDir() + "millrace_tls_cert.pem";
  const std::string key_path = ::testing::TempDir() + "millrace_tls_key.pem";
};

/// TLS over a RawClient's socket; the peer must show the certificate of `trusted`.
class TlsClient {
 public:
  TlsClient(const TestServer& server, const std::string& trusted, int version = TLS1_3_VERSION)
      : tcp_(server.connect()), context_(SSL_CTX_new(TLS_client_method())) {
    SSL_CTX_load_verify_locations(context_.get(), trusted.c_str(), nullptr);
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_max_proto_version(context_.get(), version);
    SSL_CTX_set_min_proto_version(context_.get(), version);
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), tcp_.fd());
  }

  bool handshake() { return SSL_connect(ssl_.get()) == 1; }
  void send(const std::string& bytes) { SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())); }
  std::string receive_until(const std::string& end) {
    std::string all;
    std::string buffer(16 << 10, '\0');
    while (all.find(end) == std::string::npos) {
      const int size = SSL_read(ssl_.get(), buffer.data(), static_cast<int>(buffer.size()));
      if (size <= 0) break;
      all.append(buffer, 0, static_cast<std::size_t>(size));
    }
    return all;
  }
  /// The server has said that nothing more comes (not merely closed).
  bool ended() {
    char byte = 0;
    return SSL_read(ssl_.get(), &byte, 1) == 0 && SSL_get_error(ssl_.get(), 0) == SSL_ERROR_ZERO_RETURN;
  }
  void vanish() { tcp_.reset(); }

 private:
  RawClient tcp_;
  Owned<SSL_CTX, SSL_CTX_free> context_;
  Owned<SSL, SSL_free> ssl_;
};

ServerOptions with(const Certificate& certificate) {
  ServerOptions options;
  options.tls_cert = certificate.cert_path;
  options.tls_key = certificate.key_path;
  return options;
}

TEST(HttpTls, RequestsStreamsAndTheEnd) {
  const Certificate certificate;
  const auto feed = std::make_shared<Feed>();
  TestServer server(with(certificate), test_routes(feed));
  EXPECT_TRUE(server->url().starts_with("https://127.0.0.1:"));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(server, certificate.cert_path, version);
    ASSERT_TRUE(client.handshake());
    client.send(get("/hello"));
    EXPECT_TRUE(client.receive_until("\r\n\r\nhi").ends_with("hi"));
    const std::string large(300'000, 'x');
    client.send(post("/echo", large));
    EXPECT_TRUE(client.receive_until("\r\n\r\n" + large).ends_with(large));
    client.send(get("/hello", "Connection: close\r\n"));
    EXPECT_TRUE(client.receive_until("\r\n\r\nhi").ends_with("hi"));
    EXPECT_TRUE(client.ended());
  }
  TlsClient client(server, certificate.cert_path);
  ASSERT_TRUE(client.handshake());
  client.send(post("/stream", "{}"));
  ASSERT_TRUE(feed->wait_started());
  for (int i = 0; i < 50; ++i) {
    feed->push("data: " + std::to_string(i) + "\n\n");
    client.receive_until("data: " + std::to_string(i) + "\n\n");
  }
  client.vanish();
  EXPECT_TRUE(feed->wait_cancelled());
}

TEST(HttpTls, OldVersionsAndPlainTextAreRefused) {
  const Certificate certificate;
  ServerOptions options = with(certificate);
  options.limits.header_timeout = std::chrono::milliseconds(200);
  TestServer server(options, test_routes());
  TlsClient old(server, certificate.cert_path, TLS1_1_VERSION);
  EXPECT_FALSE(old.handshake());
  RawClient plain = server.connect();
  plain.send(get("/hello"));
  EXPECT_EQ(plain.response().status, 0);
  RawClient silent = server.connect();
  EXPECT_EQ(silent.receive_all(), "");
  EXPECT_TRUE(eventually([&] { return server->connections() == 0; }));
}

TEST(HttpTls, FilesThatDoNotFitAreAnError) {
  const Certificate certificate;
  ServerOptions options = with(certificate);
  options.port = 0;
  options.tls_key = options.tls_cert;
  const auto server = Server::listen(options, {});
  ASSERT_FALSE(server.ok());
  EXPECT_NE(server.error().message.find(options.tls_cert), std::string::npos);
}

}  // namespace
}  // namespace millrace::test
