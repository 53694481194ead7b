// FluidNode: a node with continuous batching, in time that flows: between two things that happen (a prompt is computed,
// an answer ends) all its sequences advance at one rate, so that an answer of a thousand tokens is two events.
//
// With n sequences that decode a step takes t(n) = step + step_per_sequence * (n - 1). While a prompt is computed every
// step has a chunk of C of its tokens too, and takes t(n) + C / prefill rate. Prompts are computed one after the other,
// and the first token is that of the step behind the prompt.
#pragma once

#include <cstdint>
#include <limits>
#include <queue>
#include <vector>

#include "simulate/meter.h"
#include "simulate/node_queue.h"
#include "simulate/pool.h"

namespace millrace {

struct FluidEvent {
  enum class Kind : std::uint8_t { first_token, ended };
  Kind kind = Kind::first_token;
  std::uint64_t id = 0;
  double at = 0.0;
  std::int64_t cached = 0;  // tokens of the prompt
};

/// Times are seconds since the start, and only go forward.
class FluidNode {
 public:
  /// `node` must outlive it.
  FluidNode(const SimNode& node, std::int64_t block_tokens);

  /// The caller has advanced it up to now, here and below.
  void start(const NodeJob& job);

  /// When something happens next; infinity: nothing does.
  [[nodiscard]] double next_event() const;
  /// Time passes, and what happens up to `now` is told.
  void advance(double now, std::vector<FluidEvent>& events);

  struct Lost {
    std::uint64_t id = 0;
    std::int64_t emitted = 0;  // tokens that had come
  };
  /// It dies, with all that it has and keeps.
  std::vector<Lost> fail();
  void repair() { up_ = true; }

  [[nodiscard]] bool is_up() const { return up_; }
  [[nodiscard]] bool is_idle() const { return running_ == 0 && queue_.empty(); }
  [[nodiscard]] NodeLoad load() const { return queue_.load(); }
  SimPrefixCache::News take_news() { return queue_.cache().take_news(); }
  NodeMeter& meter() { return meter_; }
  [[nodiscard]] const NodeMeter& meter() const { return meter_; }

 private:
  struct Decoding {
    NodeJob job;
    double joined = 0.0;  // tokens_ then
  };
  struct Due {
    double tokens;
    std::uint32_t slot;
    FluidEvent::Kind kind;
  };
  struct Later {
    bool operator()(const Due& a, const Due& b) const {
      if (a.tokens != b.tokens) return a.tokens > b.tokens;
      return a.slot != b.slot ? a.slot > b.slot : a.kind > b.kind;
    }
  };

  [[nodiscard]] double decode_step() const;
  [[nodiscard]] double prefill_end() const;
  [[nodiscard]] double token_due() const;
  /// Nothing happens in between.
  void flow(double seconds);
  void join();

  const SimNode* node_;
  std::int64_t block_tokens_;
  bool up_ = true;
  double now_ = 0.0;
  NodeQueue queue_;
  NodeJob* prefill_ = nullptr;  // of queue_
  double tokens_ = 0.0;         // that a sequence that was there from the beginning would have
  std::int64_t running_ = 0, running_batch_ = 0;
  std::vector<Decoding> slots_;
  std::vector<std::uint32_t> free_slots_;
  std::priority_queue<Due, std::vector<Due>, Later> due_;
  NodeMeter meter_;
};

}  // namespace millrace
