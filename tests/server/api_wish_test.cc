#include "server/api_wish.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

HttpRequest with(std::vector<std::pair<std::string, std::string>> headers) {
  HttpRequest request;
  request.headers = std::move(headers);
  return request;
}

TEST(ApiWishTest, TakesHeaders) {
  const auto none = parse_wish(with({}));
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->ttft_slo || none->tpot_slo || none->trusted);
  const auto all = parse_wish(with({{"x-slo-ttft-ms", "250"},
                                    {"x-slo-tpot-ms", "12.5"},
                                    {"x-millrace-region", "eu"},
                                    {"x-millrace-labels", " gpu, ,night"},
                                    {"x-millrace-data-class", "trusted"}}));
  ASSERT_TRUE(all.ok());
  EXPECT_DOUBLE_EQ(all->ttft_slo.value_or(0), 0.25);
  EXPECT_DOUBLE_EQ(all->tpot_slo.value_or(0), 0.0125);
  EXPECT_EQ(all->region, "eu");
  EXPECT_EQ(all->labels, (std::vector<std::string>{"gpu", "night"}));
  EXPECT_TRUE(all->trusted);
}

TEST(ApiWishTest, NamesTheHeaderThatIsWrong) {
  for (const auto& [header, value] :
       std::vector<std::pair<std::string, std::string>>{{"x-slo-ttft-ms", "0"},
                                                        {"x-slo-ttft-ms", "soon"},
                                                        {"x-slo-tpot-ms", "-3"},
                                                        {"x-slo-tpot-ms", "nan"},
                                                        {"x-slo-tpot-ms", "1e300"},
                                                        {"x-millrace-data-class", "secret"},
                                                        {"x-millrace-region", std::string(65, 'r')},
                                                        {"x-millrace-labels", "1,2,3,4,5,6,7,8,9"}}) {
    const auto wish = parse_wish(with({{header, value}}));
    ASSERT_FALSE(wish.ok()) << header << ": " << value;
    EXPECT_EQ(wish.error().status, 400);
    EXPECT_EQ(wish.error().param, header);
  }
}

}  // namespace
}  // namespace millrace
