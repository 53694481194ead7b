// How many figures a gateway has, however many tenants there are.
#include "tenants/tenant_meter.h"

#include <gtest/gtest.h>

#include <set>

namespace millrace::test {
namespace {

TEST(TenantMeter, LaterTenantsShareALine) {
  TenantMeter meter;
  constexpr std::size_t kTenants = 500;
  for (int round = 0; round < 2; ++round) {
    for (std::size_t i = 0; i < kTenants; ++i) {
      const std::string name = "t" + std::to_string(i);
      meter.admitted(name);
      meter.used(name, 3);
      meter.charged(name, 5);
      meter.refused(name, TenantRefusal::spend);
      meter.replayed(name);
    }
  }
  const auto tallies = meter.tallies();
  EXPECT_EQ(tallies.size(), TenantMeter::kMostNamed + 1);
  EXPECT_EQ(tallies.at("t0").admitted, 2);
  EXPECT_EQ(tallies.at("t63").charged, 10);
  EXPECT_FALSE(tallies.contains("t64"));
  const TenantTally others = tallies.at(TenantMeter::kOthers);
  constexpr std::int64_t kOthers = 2 * (kTenants - TenantMeter::kMostNamed);
  EXPECT_EQ(others.admitted, kOthers);
  EXPECT_EQ(others.tokens, 3 * kOthers);
  EXPECT_EQ(others.charged, 5 * kOthers);
  EXPECT_EQ(others.replayed, kOthers);
  EXPECT_EQ(others.refused[static_cast<std::size_t>(TenantRefusal::spend)], kOthers);
  EXPECT_EQ(meter.name_of("t63"), "t63");
  EXPECT_EQ(meter.name_of("t64"), TenantMeter::kOthers);
}

TEST(TenantMeter, NobodyIsNotCounted) {
  TenantMeter meter;
  meter.admitted("");
  meter.used("", 3);
  EXPECT_TRUE(meter.tallies().empty());
}

TEST(TenantMeter, EachReasonHasAName) {
  std::set<std::string_view> names;
  for (std::size_t why = 0; why < kTenantRefusals; ++why) {
    names.insert(tenant_refusal_name(static_cast<TenantRefusal>(why)));
  }
  EXPECT_EQ(names.size(), kTenantRefusals);
  EXPECT_EQ(tenant_refusal_name(TenantRefusal::account), "account");
  EXPECT_EQ(tenant_refusal_name(TenantRefusal::key), "key");
}

}  // namespace
}  // namespace millrace::test
