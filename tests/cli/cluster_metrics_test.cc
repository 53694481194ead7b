// What Prometheus is told of tenants, audits, batches and hedges, from figures as the rooms give them.
#include "cli/cluster_metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace millrace::cli {
namespace {

/// The value of the series with these label values.
std::optional<double> value(const std::vector<MetricFamily>& families, const std::string& name,
                            const std::string& label = {}, const std::string& further = {}) {
  for (const MetricFamily& family : families) {
    if (family.name != name) continue;
    for (const MetricFamily::Value& one : family.values) {
      if (one.label == label && (further.empty() || one.more.front().second == further)) return one.value;
    }
  }
  return std::nullopt;
}

/// Names are said once, counters end in _total and gauges do not, every family has a text.
void expect_conventional(const std::vector<MetricFamily>& families) {
  std::set<std::string> names;
  for (const MetricFamily& family : families) {
    EXPECT_TRUE(names.insert(family.name).second) << family.name;
    EXPECT_TRUE(family.name.starts_with("millrace:")) << family.name;
    EXPECT_EQ(family.name.ends_with("_total"), family.is_counter) << family.name;
    EXPECT_TRUE(family.help.ends_with('.')) << family.name;
    EXPECT_FALSE(family.values.empty()) << family.name;
  }
}

TEST(ClusterMetrics, TenantsHaveASeriesEach) {
  std::map<std::string, TenantFigures> tenants;
  TenantFigures& acme = tenants["acme"];
  acme.tally = {.admitted = 7, .replayed = 2, .tokens = 900, .charged = nano_usd(0.25)};
  acme.tally.refused[static_cast<std::size_t>(TenantRefusal::spend)] = 3;
  acme.running = 1;
  acme.spent = nano_usd(1.5);
  acme.free = nano_usd(0.5);
  acme.reserved = nano_usd(0.125);
  acme.limit = nano_usd(10);
  tenants["free"].tally.admitted = 1;
  std::vector<MetricFamily> families;
  add_tenants(families, tenants);
  expect_conventional(families);
  EXPECT_EQ(value(families, "millrace:tenant_admitted_requests_total", "acme"), 7);
  EXPECT_EQ(value(families, "millrace:tenant_admitted_requests_total", "free"), 1);
  EXPECT_EQ(value(families, "millrace:tenant_replayed_requests_total", "acme"), 2);
  EXPECT_EQ(value(families, "millrace:tenant_refused_requests_total", "acme", "spend"), 3);
  EXPECT_EQ(value(families, "millrace:tenant_refused_requests_total", "acme", "tokens"), 0);
  EXPECT_EQ(value(families, "millrace:tenant_running_requests", "acme"), 1);
  EXPECT_EQ(value(families, "millrace:tenant_tokens_total", "acme"), 900);
  EXPECT_EQ(value(families, "millrace:tenant_charged_usd_total", "acme"), 0.25);
  EXPECT_EQ(value(families, "millrace:tenant_spent_usd", "acme"), 1.5);
  EXPECT_EQ(value(families, "millrace:tenant_limit_usd", "acme"), 10);
  EXPECT_EQ(value(families, "millrace:tenant_lease_usd", "acme"), 0.5);
  EXPECT_EQ(value(families, "millrace:tenant_reserved_usd", "acme"), 0.125);
  EXPECT_FALSE(value(families, "millrace:tenant_spent_usd", "free").has_value()) << "it has no limit";

  std::vector<MetricFamily> none;
  add_tenants(none, {});
  EXPECT_TRUE(none.empty());
}

TEST(ClusterMetrics, AuditsByWhatCameOfThem) {
  std::vector<MetricFamily> families;
  add_audits(families,
             {.chosen = 28,
              .unscorable = 1,
              .no_reference = 2,
              .crowded = 3,
              .failed = 4,
              .controls = 5,
              .early = 6,
              .judged = 7,
              .alarms = 8},
             9);
  expect_conventional(families);
  const std::string name = "millrace:audits_total";
  EXPECT_EQ(value(families, name, "unscorable"), 1);
  EXPECT_EQ(value(families, name, "no_reference"), 2);
  EXPECT_EQ(value(families, name, "crowded"), 3);
  EXPECT_EQ(value(families, name, "failed"), 4);
  EXPECT_EQ(value(families, name, "control"), 5);
  EXPECT_EQ(value(families, name, "early"), 6);
  EXPECT_EQ(value(families, name, "judged"), 7);
  EXPECT_EQ(value(families, "millrace:audit_alarms_total"), 8);
  EXPECT_EQ(value(families, "millrace:audit_streams"), 9);
}

TEST(ClusterMetrics, BatchesByStatusAndLinesByWhatBecameOfThem) {
  BatchWorker::Figures figures{.running = 5,
                               .left = 90,
                               .counters = {.started = 20,
                                            .doubled = 1,
                                            .tried_again = 2,
                                            .yielded = 3,
                                            .waited = 4,
                                            .completed = 11,
                                            .failed = 6,
                                            .claimed = 7,
                                            .taken_over = 8,
                                            .lost = 9}};
  for (std::size_t status = 0; status < kBatchStatuses; ++status) {
    figures.batches[status] = static_cast<std::int64_t>(10 + status);
  }
  std::vector<MetricFamily> families;
  add_batches(families, figures);
  expect_conventional(families);
  EXPECT_EQ(value(families, "millrace:batches", "validating"), 10);
  EXPECT_EQ(value(families, "millrace:batches", "in_progress"), 12);
  EXPECT_EQ(value(families, "millrace:batches", "cancelled"), 17);
  EXPECT_EQ(value(families, "millrace:batch_lines_left"), 90);
  EXPECT_EQ(value(families, "millrace:batch_lines_running"), 5);
  EXPECT_EQ(value(families, "millrace:batch_results_total", "completed"), 11);
  EXPECT_EQ(value(families, "millrace:batch_results_total", "failed"), 6);
  EXPECT_EQ(value(families, "millrace:batch_lines_total", "started"), 20);
  EXPECT_EQ(value(families, "millrace:batch_lines_total", "yielded"), 3);
  EXPECT_EQ(value(families, "millrace:batch_tasks_total", "taken_over"), 8);
}

TEST(ClusterMetrics, Hedges) {
  std::vector<MetricFamily> families;
  add_hedges(families, {.hedged = 3, .won = 2});
  expect_conventional(families);
  EXPECT_EQ(value(families, "millrace:hedges_started_total"), 3);
  EXPECT_EQ(value(families, "millrace:hedges_won_total"), 2);
}

}  // namespace
}  // namespace millrace::cli
