// A node's scheduler as the simulator has it: who has a place and KV memory, whose prompt is computed, what the prefix
// cache keeps. What both levels of detail have in common.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "cluster/router.h"

namespace millrace {

/// Blocks of prompts in a node's KV memory. Those of no sequence stay until their room is needed, and the one that was
/// not used for longest goes first.
class SimPrefixCache {
 public:
  SimPrefixCache(std::int64_t tokens, std::int64_t block_tokens) : capacity_(tokens), block_tokens_(block_tokens) {}

  /// Memory for a sequence: these blocks and `more` tokens. The number of blocks that were there; nothing: no room.
  std::optional<std::int64_t> reserve(std::span<const std::uint64_t> blocks, std::int64_t more);
  /// The sequence has ended; its blocks may be found until they have to go.
  void release(std::span<const std::uint64_t> blocks, std::int64_t more);

  [[nodiscard]] std::int64_t used() const { return used_; }
  /// Tokens that a sequence may have, those of blocks that nobody uses included.
  [[nodiscard]] std::int64_t free() const {
    return capacity_ - used_ + static_cast<std::int64_t>(free_.size()) * block_tokens_;
  }

  struct News {
    std::vector<std::uint64_t> added, removed;
  };
  /// What has changed since it was asked last.
  News take_news();

 private:
  struct Block {
    std::int64_t users = 0;
    std::list<std::uint64_t>::iterator place = {};  // in free_, where nobody uses it
  };

  std::int64_t capacity_, block_tokens_;
  std::int64_t used_ = 0;  // tokens, those of free blocks included
  std::unordered_map<std::uint64_t, Block> blocks_;
  std::list<std::uint64_t> free_;  // used longest ago first
  News news_;
};

struct NodeJob {
  std::uint64_t id = 0;
  std::int64_t prompt = 0;                     // tokens to compute, those of an answer that has begun included
  std::int64_t answer = 0;                     // tokens still to come
  std::span<const std::uint64_t> blocks = {};  // of the prompt; they must outlive the job
  bool batch = false;                          // waits behind all that is not
  double left = 0.0;                           // tokens of the prompt not computed yet, once it is admitted
  std::int64_t cached = 0;                     // tokens
};

class NodeQueue {
 public:
  NodeQueue(std::int64_t places, std::int64_t kv_tokens, std::int64_t block_tokens)
      : places_(places), block_tokens_(block_tokens), cache_(kv_tokens, block_tokens) {}

  void add(const NodeJob& job) {
    (job.batch ? waiting_batch_ : waiting_).push_back(job);
    waiting_tokens_ += job.prompt;
  }

  /// Whose prompt is computed now; null: nobody's. In order of arrival, batch work behind all others, also in the
  /// middle of a prompt.
  NodeJob* prefill();
  /// The one of them that is being computed; null: none is.
  [[nodiscard]] NodeJob* computed() { return begun_.empty() ? nullptr : &begun_.back(); }
  /// It has been computed, and its sequence decodes from now on.
  NodeJob take_prefilled();
  /// A sequence that decoded has ended.
  void end(const NodeJob& job);
  /// Of one that waits or whose prompt is computed. False: there is none of this number.
  bool cancel(std::uint64_t id);

  [[nodiscard]] bool empty() const { return waiting_.empty() && waiting_batch_.empty() && begun_.empty(); }
  [[nodiscard]] std::int64_t decoding() const { return decoding_; }
  [[nodiscard]] NodeLoad load() const;
  SimPrefixCache& cache() { return cache_; }
  /// All that have not begun to decode.
  [[nodiscard]] std::vector<NodeJob> undecoded() const;

 private:
  bool admit(std::deque<NodeJob>& waiting);
  [[nodiscard]] std::int64_t more_than_blocks(const NodeJob& job) const;

  std::int64_t places_, block_tokens_;
  std::int64_t decoding_ = 0, waiting_tokens_ = 0;
  SimPrefixCache cache_;
  std::deque<NodeJob> waiting_, waiting_batch_;
  std::vector<NodeJob> begun_;  // admitted, the prompt not computed: the last one is computed now
};

/// What a step computes of prompts.
struct StepWork {
  double rows = 0.0, batch_rows = 0.0;  // tokens; those of batch work among them
  std::vector<NodeJob> ended = {};      // whose prompts it computes to their end
};

/// Takes the parts of prompts that the next step has, at most `chunk` tokens.
StepWork plan_step(NodeQueue& queue, double chunk);

/// How long a step takes with so many tokens of prompts and sequences that decode (step_node.h says why).
double step_seconds(const NodeSpeed& speed, double rows, std::int64_t decoding);
/// Which part of it is for batch work: each by what its tokens would take alone.
double batch_share(const NodeSpeed& speed, const StepWork& work, std::int64_t decoding, std::int64_t batch);

}  // namespace millrace
