// HTTPS against a certificate that signs itself.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "bench/load_test.h"
#include "bench/scripted_server.h"

namespace millrace::bench {
namespace {

class Tls : public testing::Test {
 protected:
  ~Tls() override { std::filesystem::remove(ca_file_); }

  LoadResult run(const Target& target) {
    LoadPlan plan{.requests = {}, .concurrency = 1, .range = {10, 1000}};
    for (std::uint64_t i = 0; i < 3; ++i) plan.requests.push_back({0.0, {{Stream::request, i, 5}}, 2});
    auto result = run_load(target, {.model = "m"}, plan, {});
    EXPECT_TRUE(result.ok()) << result.error().message;
    return std::move(*result);
  }

  Identity identity_ = make_identity();
  std::filesystem::path ca_file_ = std::filesystem::path(testing::TempDir()) / "bench_tls_ca.pem";
  ScriptedServer server_{[](const ReceivedRequest&) -> Reply {
                           return {{{stream_head() + chunk(token_event())},
                                    {chunk(token_event() + end_events(5, 2)) + last_chunk(), 0.01}}};
                         },
                         &identity_};
};

TEST_F(Tls, IsVerifiedUnlessToldOtherwise) {
  Target target{.url = *parse_url(server_.url()), .timeout_s = 5};
  for (const RequestRecord& record : run(target).records) {
    EXPECT_EQ(record.failure, "tls");
    EXPECT_NE(record.detail.find("certificate"), std::string::npos) << record.detail;
  }
  EXPECT_TRUE(server_.received().empty());
  target.verify = false;
  const LoadResult unverified = run(target);
  for (const RequestRecord& record : unverified.records) EXPECT_TRUE(record.ok()) << record.detail;
  EXPECT_EQ(unverified.client.connections, 1);
}

TEST_F(Tls, TrustsTheGivenCertificateForItsOwnNameOnly) {
  std::ofstream(ca_file_) << identity_.certificate;
  Target target{.url = *parse_url(server_.url()), .ca_file = ca_file_.string(), .timeout_s = 5};
  for (const RequestRecord& record : run(target).records) EXPECT_TRUE(record.ok()) << record.detail;
  target.url.host = "localhost";  // the certificate is for the address
  for (const RequestRecord& record : run(target).records) EXPECT_EQ(record.failure, "tls");
  target.ca_file = "/nonexistent.pem";
  EXPECT_FALSE(run_load(target, {.model = "m"}, {}, {}).ok());
}

}  // namespace
}  // namespace millrace::bench
