// StepRunner: the engine of a simulated node, step by step, behind the seam that NodeStreams has engines behind. The
// same node as StepNode is: what takes how long is said there.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cluster/node_streams.h"
#include "cluster/sim_clock.h"
#include "simulate/meter.h"
#include "simulate/node_queue.h"
#include "simulate/pool.h"
#include "simulate/workload.h"

namespace millrace {

/// A placement's seed is the index of its request in the work: what the answer has and which blocks its prompt shares
/// is read there.
class StepRunner : public StreamRunner {
 public:
  /// `zero`: the time at which the clock began. The references must outlive it.
  StepRunner(Transport& transport, const SimClock& clock, UnixSeconds zero, const SimNode& node, const Workload& work,
             NodeMeter& meter);
  ~StepRunner() override;

  void start(RunId run, Placement placement, Sink sink) override;
  void pause(RunId run) override { set_paused(run, true); }
  void resume(RunId run) override { set_paused(run, false); }
  void cancel(RunId run) override;

  [[nodiscard]] NodeLoad load() const { return queue_.load(); }
  SimPrefixCache::News take_news() { return queue_.cache().take_news(); }
  /// Time that has passed with nothing to do is counted up to now.
  void count_idle();

 private:
  struct Run {
    Sink sink;
    NodeJob job;  // while it decodes
    std::int64_t left = 0;
    bool decoding = false, paused = false, in_step = false;
  };

  void set_paused(RunId run, bool paused);
  void step();
  void stepped(double seconds, double batch_share);
  /// At the prices of now.
  void set_prices();

  Transport* transport_;
  const SimClock* clock_;
  UnixSeconds zero_;
  const SimNode* node_;
  const Workload* work_;
  NodeMeter* meter_;
  NodeQueue queue_;
  std::map<RunId, Run> runs_;
  bool stepping_ = false;
  Transport::TimerId timer_ = 0;
  Instant counted_;
};

}  // namespace millrace
