// StepNode: a node with continuous batching, step by step; steps that are alike are taken at once, so that an answer of
// a thousand tokens is a handful of events.
//
// A step computes a token of each of n sequences that decode, and up to C tokens of prompts, r in all, one prompt after
// the other. Weights are read once in it, whatever it is for, so it takes
//
//   max(step, r / prefill rate) + step_per_sequence * (n - 1)
//
// as a node that is paced (`millrace node --pace`) does. A prompt's first token is that of the step that ends it. Who
// comes while a step runs waits for its end.
#pragma once

#include <cstdint>
#include <queue>
#include <unordered_map>
#include <vector>

#include "simulate/meter.h"
#include "simulate/node_queue.h"
#include "simulate/pool.h"

namespace millrace {

struct NodeEvent {
  enum class Kind : std::uint8_t { first_token, ended };
  Kind kind = Kind::first_token;
  std::uint64_t id = 0;
  double at = 0.0;
  std::int64_t cached = 0;  // tokens of the prompt
};

/// Times are seconds since the start, and only go forward.
class StepNode {
 public:
  /// `node` must outlive it.
  StepNode(const SimNode& node, std::int64_t block_tokens);

  /// The caller has advanced it up to now, here and below.
  void start(const NodeJob& job);

  /// When something happens next; infinity: nothing does.
  [[nodiscard]] double next_event() const;
  /// Time passes, and what happens up to `now` is told.
  void advance(double now, std::vector<NodeEvent>& events);

  struct Lost {
    std::uint64_t id = 0;
    std::int64_t emitted = 0;  // tokens that had come
  };
  /// Tokens of this job that have come; 0 where it is not here.
  [[nodiscard]] std::int64_t emitted(std::uint64_t id) const;
  /// Of the step that runs.
  [[nodiscard]] double step_seconds() const { return step_s_; }
  /// Nobody wants it any more.
  void cancel(std::uint64_t id);
  /// It dies, with all that it has and keeps.
  std::vector<Lost> fail();
  void repair() { up_ = true; }

  [[nodiscard]] bool is_up() const { return up_; }
  [[nodiscard]] bool is_idle() const { return steps_ == 0; }
  [[nodiscard]] NodeLoad load() const { return queue_.load(); }
  SimPrefixCache::News take_news() { return queue_.cache().take_news(); }
  NodeMeter& meter() { return meter_; }
  [[nodiscard]] const NodeMeter& meter() const { return meter_; }

 private:
  struct Decoding {
    NodeJob job;
    std::int64_t joined = 0;  // token_ of its first one
    std::uint32_t use = 0;    // of the slot: another one each time
  };
  struct Due {
    std::int64_t token;
    std::uint32_t slot, use;
  };
  struct Later {
    bool operator()(const Due& a, const Due& b) const {
      return a.token != b.token ? a.token > b.token : a.slot > b.slot;
    }
  };

  /// Begins with the steps behind now, if there is something to do.
  void plan();
  /// So many of them have been done.
  void take(std::int64_t steps);
  void end_steps(std::vector<NodeEvent>& events);
  void join(const NodeJob& job, std::vector<NodeEvent>& events);
  void leave(std::uint32_t slot);
  /// Ends of answers that were cancelled are taken away, so that the first one is somebody's.
  void drop_cancelled();

  const SimNode* node_;
  std::int64_t block_tokens_;
  bool up_ = true;
  double now_ = 0.0;
  NodeQueue queue_;
  // Those that run: so many that are alike.
  std::int64_t steps_ = 0;
  double begun_ = 0.0, step_s_ = 0.0;
  StepWork work_ = {};
  std::int64_t token_ = 0;  // of the last step: one that was there from the beginning would have so many
  std::int64_t running_ = 0, running_batch_ = 0;
  std::vector<Decoding> slots_;
  std::vector<std::uint32_t> free_slots_;
  std::unordered_map<std::uint64_t, std::uint32_t> slot_of_;  // by job
  std::priority_queue<Due, std::vector<Due>, Later> due_;     // the end of each answer
  NodeMeter meter_;
};

}  // namespace millrace
