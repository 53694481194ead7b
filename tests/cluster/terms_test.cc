#include "cluster/terms.h"

#include <gtest/gtest.h>

#include "cluster/tariff.h"

namespace millrace {
namespace {

constexpr double kHour = 3600.0;

std::string csv_of(const std::string& line) {
  std::string header = "tariff,utc_offset_h";
  for (int hour = 0; hour < 24; ++hour) header += (hour < 10 ? ",h0" : ",h") + std::to_string(hour);
  return header + "\n" + line + "\n";
}

std::string rising(const std::string& name, const std::string& offset) {
  std::string line = name + "," + offset;
  for (int hour = 0; hour < 24; ++hour) line += "," + std::to_string(hour - 1);
  return line;
}

TEST(TariffTest, GoesByLocalHours) {
  const auto tariffs = parse_tariffs(csv_of(rising("east", "8") + "\n" + rising("half", "-3.5")), "t.csv");
  ASSERT_TRUE(tariffs.ok()) << tariffs.error().message;
  const Tariff& east = tariffs->at(0);
  EXPECT_EQ(east.at(UnixSeconds(0.0)), 7.0) << "08:00 there";
  EXPECT_EQ(east.at(UnixSeconds(kHour - 0.001)), 7.0);
  EXPECT_EQ(east.at(UnixSeconds(kHour)), 8.0);
  EXPECT_EQ(east.at(UnixSeconds(16 * kHour)), -1.0) << "midnight, at a negative price";
  EXPECT_EQ(east.at(UnixSeconds(-9 * kHour)), 22.0) << "before 1970";
  const Tariff& half = tariffs->at(1);
  EXPECT_EQ(half.at(UnixSeconds(0.0)), 19.0) << "20:30 there";
  EXPECT_EQ(half.at(UnixSeconds(kHour / 2)), 20.0);
  EXPECT_DOUBLE_EQ(half.mean(), 10.5);
}

TEST(TariffTest, SaysWhatIsWrong) {
  const auto message = [](const std::string& csv) {
    const auto tariffs = parse_tariffs(csv, "t.csv");
    return tariffs.ok() ? "" : tariffs.error().message;
  };
  EXPECT_NE(message("hour,price\n"), "");
  EXPECT_NE(message(csv_of("")), "");
  EXPECT_NE(message(csv_of("a,0,1,2")).find("t.csv:2: "), std::string::npos);
  EXPECT_NE(message(csv_of(rising("a", "x"))).find("offset"), std::string::npos);
  EXPECT_NE(message(csv_of(rising("a", "25"))).find("offset"), std::string::npos);
  EXPECT_NE(message(csv_of(rising("a", "1") + "x")).find("hour 23"), std::string::npos);
  EXPECT_NE(message(csv_of(rising("a", "1") + "\n" + rising("a", "1"))).find("twice"), std::string::npos);
}

TEST(TermsTest, GoThroughJson) {
  NodeTerms terms{.usd_per_hour = 0.34,
                  .busy_watts = 450,
                  .idle_watts = 40,
                  .pue = 1.05,
                  .tariff = {.name = "home", .utc_offset_hours = 1.0},
                  .region = "eu",
                  .labels = {"gpu"},
                  .trusted = true};
  terms.tariff.usd_per_kwh[3] = 0.14;
  const auto again = parse_terms(terms_json(terms));
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(terms_json(*again), terms_json(terms));
  EXPECT_EQ(again->region, "eu");
  EXPECT_TRUE(again->trusted);
  EXPECT_DOUBLE_EQ(usd_per_second(again->price(UnixSeconds(2 * kHour))), (0.34 + 0.45 * 1.05 * 0.14) / kHour);
  const auto flat = parse_terms(R"({"busy_watts": 100, "tariff": 0.3})");
  ASSERT_TRUE(flat.ok());
  EXPECT_EQ(flat->tariff.at(UnixSeconds(12345.0)), 0.3);
}

TEST(TermsTest, SayWhatIsWrong) {
  for (const auto& [text, part] :
       std::vector<std::pair<std::string, std::string>>{{"[]", "object"},
                                                        {R"({"usd_per_hours": 1})", "usd_per_hours"},
                                                        {R"({"usd_per_hour": -1})", "usd_per_hour"},
                                                        {R"({"usd_per_hour": "1"})", "usd_per_hour"},
                                                        {R"({"pue": 0.5})", "pue"},
                                                        {R"({"data_class": "secret"})", "data_class"},
                                                        {R"({"tariff": {"usd_per_kwh": [1, 2]}})", "24 prices"},
                                                        {R"({"tariff": {"usd_per_kwh": 1, "x": 1}})", "\"x\""},
                                                        {R"({"tariff": "cheap"})", "tariff"},
                                                        {R"({"labels": "gpu"})", "labels"},
                                                        {R"({"labels": [1]})", "labels"}}) {
    const auto terms = parse_terms(text);
    ASSERT_FALSE(terms.ok()) << text;
    EXPECT_NE(terms.error().message.find(part), std::string::npos) << terms.error().message;
  }
}

}  // namespace
}  // namespace millrace
