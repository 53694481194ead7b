// Gateways that plan the hours of their lines, on a virtual clock: what waits, and that it is done in time.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "batches/batch_hours.h"
#include "sim_batches.h"

namespace millrace::test {
namespace {

using nlohmann::json;
using std::chrono::hours;
using std::chrono::minutes;

bool has_ended(SimBatches& sim, const std::string& id) {
  const json status = sim.batch(id)["status"];
  return status == "completed" || status == "failed" || status == "expired" || status == "cancelled";
}

/// Each line has an answer, and none was charged twice.
void expect_complete(SimBatches& sim, const std::string& id, int lines) {
  const json batch = sim.batch(id);
  EXPECT_EQ(batch["status"], "completed");
  EXPECT_EQ(batch["request_counts"]["total"], lines);
  EXPECT_EQ(batch["request_counts"]["completed"], lines);
  for (const auto& [name, times] : sim.places.charged) EXPECT_EQ(times, 1) << name;
}

/// Nodes whose power is dear by day and cheap from 1 to 5 o'clock; it is half past ten in the evening when all begins.
std::vector<BatchSupply> nodes_of(const SimPlaces& places) {
  BatchSupply nodes{.kind = 1, .count = static_cast<double>(places.places) / 4};
  nodes.nodes = {.speed = {.prefill = 1e4, .step = 0.008, .step_per_sequence = 0.0}, .places = 4, .watts = 300.0};
  nodes.nodes.tariff.usd_per_kwh.fill(0.4);
  for (std::size_t hour = 1; hour < 5; ++hour) nodes.nodes.tariff.usd_per_kwh[hour] = 0.1;
  nodes.busy = static_cast<double>(std::min(places.places, places.interactive + places.lines));
  return {nodes};
}

TEST(BatchHoursOfGateways, WaitForTheCheapHoursAndEndInTime) {
  SimBatches sim(23);
  sim.supply = [&] { return nodes_of(sim.places); };
  sim.add_gateways(2);
  const std::string id = sim.create(sim.upload(batch_file(200)), "12h");
  sim.run_until([] { return false; }, minutes(145));
  EXPECT_GE(sim.counters().started, 16) << "some tell how long others take";
  EXPECT_LE(sim.counters().started, 32) << "of each gateway a block, at most";
  EXPECT_EQ(sim.places.lines, 0);
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(10)));
  EXPECT_EQ(sim.counters().started, 200);
  expect_complete(sim, id, 200);
}

TEST(BatchHoursOfGateways, BeginAtOnceWhereTheDeadlineDoesNotWait) {
  SimBatches sim(24);
  sim.supply = [&] { return nodes_of(sim.places); };
  sim.add_gateways(2);
  const std::string id = sim.create(sim.upload(batch_file(200)), "1h");
  ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, minutes(5)));
  expect_complete(sim, id, 200);
}

/// Gateways that are killed and a store that fails: all are done by the deadline nevertheless, most when it is cheap.
TEST(BatchHoursOfGateways, EndInTimeWhateverIsKilledWhileTheyWait) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(seed);
    SimBatches sim(seed);
    sim.supply = [&] { return nodes_of(sim.places); };
    sim.disturbs = true;
    sim.add_gateways(3);
    const std::string id = sim.create(sim.upload(batch_file(300)), "6h");
    sim.run_until([] { return false; }, minutes(145));
    EXPECT_LE(sim.batch(id)["request_counts"]["completed"], 150);
    ASSERT_TRUE(sim.run_until([&] { return has_ended(sim, id); }, hours(4)));
    expect_complete(sim, id, 300);
  }
}

}  // namespace
}  // namespace millrace::test
