// What a simulated cloud is asked: requests of a trace, some of them batch work.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "bench/trace.h"

namespace millrace {

struct SimRequest {
  double arrival = 0.0;                                       // seconds from the start
  double deadline = std::numeric_limits<double>::infinity();  // of batch work
  std::int32_t prompt = 0, answer = 0;                        // tokens
  std::uint32_t first_block = 0, blocks = 0;                  // of Workload::blocks
  bool batch = false;
};

struct Workload {
  std::vector<SimRequest> requests;   // in order of arrival
  std::vector<std::uint64_t> blocks;  // a hash for each full block of a prompt, of all that stands before it too
  std::int64_t block_tokens = bench::kTraceBlockTokens;

  [[nodiscard]] std::span<const std::uint64_t> blocks_of(const SimRequest& request) const {
    return std::span(blocks).subspan(request.first_block, request.blocks);
  }
};

struct WorkloadOptions {
  double rate_scale = 1.0;                // arrivals come so many times as fast
  double hours = 0.0;                     // the trace is played again until then; 0: once
  std::int64_t requests = 0;              // … or until there are so many; at most so many; 0: no limit
  double batch_share = 0.0;               // of requests, drawn by lot
  double batch_deadline = 24.0 * 3600.0;  // seconds from arrival
  std::uint64_t seed = 1;
};

/// A trace that is played again shares no prompts with its first time: its users would have gone on.
Workload make_workload(const bench::Trace& trace, const WorkloadOptions& options);

}  // namespace millrace
