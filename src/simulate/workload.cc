#include "simulate/workload.h"

#include <algorithm>

#include "cluster/sim_network.h"
#include "core/fnv.h"

namespace millrace {

namespace {

constexpr double kSecondsPerHour = 3600.0;

std::uint64_t block_hash(std::uint64_t time, std::int64_t id) {
  Fnv1a hash;
  hash.add(time + 1);
  hash.add(static_cast<std::uint64_t>(id) + 1);
  return hash.value() * 0x9e3779b97f4a7c15u;
}

}  // namespace

Workload make_workload(const bench::Trace& trace, const WorkloadOptions& options) {
  SimDice dice(options.seed ^ 0xba7c);
  Workload work;
  work.block_tokens = trace.block_tokens;
  // One more gap than there are between requests: the last and the first of two times do not fall together.
  const double span = trace.records.back().arrival_s;
  const double gap = trace.records.size() > 1 ? span / static_cast<double>(trace.records.size() - 1) : 1.0;
  const double end = options.hours * kSecondsPerHour;
  const auto most = options.requests > 0 ? static_cast<std::size_t>(options.requests) : std::size_t{0};
  for (std::uint64_t time = 0;; ++time) {
    for (const bench::TraceRecord& record : trace.records) {
      const double arrival = (static_cast<double>(time) * (span + gap) + record.arrival_s) / options.rate_scale;
      if (most > 0 && work.requests.size() == most) return work;
      if (end > 0.0 && arrival >= end) return work;
      SimRequest request{.arrival = arrival,
                         .prompt = std::max(1, record.input_tokens),
                         .answer = std::max(1, record.output_tokens),
                         .first_block = static_cast<std::uint32_t>(work.blocks.size())};
      // The last token of a prompt is always computed.
      const auto full = std::min<std::size_t>(record.hash_ids.size(), static_cast<std::size_t>(request.prompt - 1) /
                                                                          static_cast<std::size_t>(work.block_tokens));
      for (std::size_t b = 0; b < full; ++b) work.blocks.push_back(block_hash(time, record.hash_ids[b]));
      request.blocks = static_cast<std::uint32_t>(full);
      request.batch = dice.chance(options.batch_share);
      if (request.batch) request.deadline = arrival + options.batch_deadline;
      work.requests.push_back(request);
    }
    if (end <= 0.0 && work.requests.size() >= most) return work;
  }
}

}  // namespace millrace
