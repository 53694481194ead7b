// Faults that happen to a simulated cloud, by the numbers of a seed.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "sim_cloud.h"

namespace millrace::test {

enum class Fault : std::uint8_t {
  node_crash,
  node_freeze,
  node_cut,
  node_drain,
  node_replaced,  // a second process of the same identity, while the first one still runs
  clock_jump,
  gateway_crash,
  gateway_freeze,
  gateway_cut,
  storm,  // loss, doubling, reordering, delay
  server_restart,
};
constexpr std::array<std::string_view, 11> kFaultNames{
    "node crashes",    "node freezes",    "node is cut off",    "node drains", "node is replaced", "clock jumps",
    "gateway crashes", "gateway freezes", "gateway is cut off", "storm",       "server restarts"};

using FaultCounts = std::array<std::int64_t, kFaultNames.size()>;

struct FaultRun {
  FaultCounts faults{};
  std::int64_t streams = 0, lost = 0, cancelled = 0, identical = 0, moved = 0, tokens = 0;
  GatewayStreams::Counters gateway;
  NodeStreams::Counters node;
  std::string wrong;  // the first broken promise; empty: none
};

/// A cloud lives through `faults` faults with `streams` streams; then all is mended, and every promise is checked.
FaultRun run_faults(std::uint64_t seed, int faults, int streams);

}  // namespace millrace::test
