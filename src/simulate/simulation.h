// A simulated cloud: the router that serves, nodes that are models of nodes, real traces, prices by the hour, failures.
// docs/simulate.md says what is modelled and how it is counted. Deterministic: the same options give the same result,
// bit for bit.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bench/statistics.h"
#include "cluster/router.h"
#include "simulate/meter.h"
#include "simulate/pool.h"
#include "simulate/workload.h"

namespace millrace {

enum class SimDetail : std::uint8_t {
  protocol,  // gateways' and nodes' own code, every message and every step on a virtual clock
  requests,  // the same router and nodes; a request is a handful of events
};

enum class BatchMode : std::uint8_t { at_once, deferred };

struct SimOptions {
  RoutePolicy policy = RoutePolicy::cheapest_in_slo;
  SimDetail detail = SimDetail::requests;
  BatchMode batch = BatchMode::deferred;
  std::uint64_t seed = 1;
  UnixSeconds start{0};
  double ttft_slo = 2.0, tpot_slo = 0.1;  // seconds, of requests that are not batch work
  bool churn = true;                      // nodes fail and come back
  bool limits_known = false;              // requests allow no more tokens than their answers have
  int gateways = 1;                       // each with a router of its own, which learns of the others' work by beats
};

/// How the requests of one kind fared.
struct SimAnswers {
  std::int64_t requests = 0, done = 0, failed = 0;
  std::int64_t input_tokens = 0, output_tokens = 0, cached_tokens = 0;  // of those that are done
  std::int64_t in_slo = 0;                                              // … within both limits
  std::int64_t late = 0;                                                // done behind their deadline, or failed
  std::optional<bench::Distribution> ttft_s = {}, tpot_s = {};
};

struct SimTypeUse {
  std::int64_t nodes = 0, requests = 0, in_slo = 0;
  double busy_s = 0.0, usd = 0.0;
};

struct SimResult {
  SimOptions options = {};
  std::int64_t nodes = 0;
  SimAnswers interactive = {}, batch = {};
  SimWork interactive_work = {}, batch_work = {}, idle_work = {};
  double billed_usd = 0.0;  // what answers were told that they cost
  std::int64_t migrations = 0;
  std::int64_t node_failures = 0;
  double arrivals_s = 0.0;  // from the start to the last arrival
  double ended_s = 0.0;     // to the end of the last answer
  double busy_share = 0.0;  // of the time that nodes were up
  std::map<std::string, SimTypeUse> by_type = {};
};

/// `nodes` and `work` may be shared by several simulations at once.
SimResult simulate(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options);

}  // namespace millrace
