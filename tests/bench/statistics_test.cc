#include "bench/statistics.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bench/report.h"

namespace millrace::bench {
namespace {

RequestRecord answered(double ttft, double e2e, std::int64_t tokens) {
  RequestRecord record{.ttft_s = ttft, .e2e_s = e2e, .input_tokens = 10, .output_tokens = tokens, .status = 200};
  record.itl_s.assign(static_cast<std::size_t>(tokens - 1), (e2e - ttft) / static_cast<double>(tokens - 1));
  record.usage_reported = true;
  return record;
}

RequestRecord failed(const char* why) {
  RequestRecord record;
  record.failure = why;
  record.detail = "because";
  return record;
}

TEST(Quantile, LiesBetweenNeighbours) {
  const std::vector<double> samples{1, 2, 3, 4};
  EXPECT_DOUBLE_EQ(quantile(samples, 0), 1);
  EXPECT_DOUBLE_EQ(quantile(samples, 1), 4);
  EXPECT_DOUBLE_EQ(quantile(samples, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(quantile(samples, 0.95), 3.85);  // as numpy.percentile(samples, 95)
  EXPECT_DOUBLE_EQ(quantile(std::vector<double>{7}, 0.99), 7);
}

TEST(Distribution, OfUnsortedSamples) {
  std::vector<double> samples;
  for (int i = 100; i >= 0; --i) samples.push_back(i);
  const auto d = distribution(samples);
  ASSERT_TRUE(d);
  EXPECT_DOUBLE_EQ(d->mean, 50);
  EXPECT_DOUBLE_EQ(d->p50, 50);
  EXPECT_DOUBLE_EQ(d->p95, 95);
  EXPECT_DOUBLE_EQ(d->p99, 99);
  EXPECT_FALSE(distribution({}));
}

TEST(ParseSlo, LimitsAndNonsense) {
  const auto slo = parse_slo("ttft:0.5,e2e:3");
  ASSERT_TRUE(slo.ok());
  EXPECT_EQ(slo->ttft_s, 0.5);
  EXPECT_FALSE(slo->tpot_s);
  EXPECT_EQ(slo->e2e_s, 3);
  for (const char* text : {"", "ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:nan", "ttft:inf", "ttft:1s", "itl:1",
                           "ttft:1,ttft:2", "ttft:1,,e2e:2"}) {
    EXPECT_FALSE(parse_slo(text).ok()) << text;
  }
}

TEST(Summarize, CountsWhatSucceeded) {
  std::vector<RequestRecord> records{answered(0.1, 1.1, 11), answered(0.3, 0.5, 3), failed("http_429"),
                                     answered(0.2, 0.2, 1),  failed("timeout"),     failed("http_429")};
  records[0].cached_tokens = 8;
  records[1].due_s = 1.0;
  records[1].start_s = 1.5;
  records[3].usage_reported = false;
  const Slo slo{.ttft_s = 0.25, .tpot_s = 0.1};
  const LoadReport report = summarize(records, 2.0, slo, {.cpu_s = 0.25, .retries = 0, .connections = 4});
  EXPECT_EQ(report.requests, 6);
  EXPECT_EQ(report.failed, 3);
  EXPECT_EQ(report.failures, (std::map<std::string, std::int64_t>{{"http_429", 2}, {"timeout", 1}}));
  EXPECT_EQ(report.input_tokens, 30);
  EXPECT_EQ(report.output_tokens, 15);
  EXPECT_EQ(report.cached_tokens, 8);
  EXPECT_EQ(report.without_usage, 1);
  EXPECT_EQ(report.good_requests, 2);  // the one with a single token has no TPOT to miss
  EXPECT_NEAR(report.ttft_s->mean, 0.2, 1e-12);
  EXPECT_NEAR(report.tpot_s->mean, 0.1, 1e-12);
  EXPECT_NEAR(report.late_p99_s, 0.475, 1e-12);  // 0.5 and five zeros
  EXPECT_FALSE(Slo{}.met_by(records[2]));
}

TEST(Report, KeysOfTheContractComeFirst) {
  const std::vector<RequestRecord> records{answered(0.1, 1.1, 11), failed("timeout")};
  const auto document = report_json(summarize(records, 2.0, Slo{.e2e_s = 1.0}, {}));
  const std::vector<std::string> contract{"requests", "failed", "output_tokens_per_second", "ttft_s", "tpot_s", "itl_s",
                                          "e2e_s",    "goodput"};
  std::size_t i = 0;
  for (const auto& [key, value] : document.items()) {
    if (i < contract.size()) {
      EXPECT_EQ(key, contract[i]);
    }
    ++i;
  }
  EXPECT_EQ(document.at("requests"), 2);
  EXPECT_EQ(document.at("output_tokens_per_second"), 5.5);
  EXPECT_EQ(document.at("goodput"), 0.0);
  EXPECT_EQ(document.at("requests_per_second"), 0.5);
  EXPECT_EQ(document.at("total_tokens_per_second"), 10.5);
  EXPECT_EQ(document.at("ttft_s").at("p99"), 0.1);
  EXPECT_EQ(document.at("failures").at("timeout"), 1);
  EXPECT_TRUE(document.at("cached_tokens").is_null());
  EXPECT_EQ(report_json(summarize(records, 2.0, std::nullopt, {})).at("goodput"), 0.5);  // without limits
}

TEST(Report, NothingMeasured) {
  const std::vector<RequestRecord> records{failed("connect")};
  const LoadReport report = summarize(records, 0.0, std::nullopt, {});
  EXPECT_TRUE(report_json(report).at("ttft_s").is_null());
  EXPECT_EQ(report_json(report).at("output_tokens_per_second"), 0.0);
  EXPECT_NE(report_text(report).find("1 x connect: because"), std::string::npos);
}

TEST(RecordLine, IsJson) {
  RequestRecord record = answered(0.1, 1.1, 3);
  record.number = 4;
  auto line = nlohmann::json::parse(record_line(record));
  EXPECT_EQ(line.at("number"), 4);
  EXPECT_EQ(line.at("itl_s").size(), 2u);
  EXPECT_TRUE(line.at("failure").is_null());
  EXPECT_TRUE(line.at("cost_usd").is_null());
  EXPECT_TRUE(line.at("node").is_null());
  record.cost_usd = 0.25;
  record.node = "rack";
  line = nlohmann::json::parse(record_line(record));
  EXPECT_EQ(line.at("cost_usd"), 0.25);
  EXPECT_EQ(line.at("node"), "rack");
  line = nlohmann::json::parse(record_line(failed("http_500")));
  EXPECT_EQ(line.at("failure"), "http_500");
  EXPECT_TRUE(line.at("tpot_s").is_null());
}

}  // namespace
}  // namespace millrace::bench
