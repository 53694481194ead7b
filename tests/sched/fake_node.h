// A node without a model: an executor whose KV memory holds, in the slot of each position, a hash of all tokens up to
// there. A row looks through its page tables at what its windows let it see and finds its own past there, or somebody
// else's; a token that is sampled is a function of what was found. So a scheduler that loses, mixes or reuses KV memory
// wrongly is noticed at once.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "sched/scheduler.h"

namespace millrace {

/// What the keys and values of a row depend on beside the tokens up to its own.
struct FakePolicy {
  bool share_answers = true;      // else rows of an answer depend on where the prompt ended
  std::int64_t prompt_block = 1;  // rows of a prompt depend on all tokens of their block that are of the prompt
  // Tokens that are sampled depend on which pages are kept, by what fake_mass() says that rows give to them.
  std::optional<KvRetention> keep = {};
  std::int32_t page_tokens = 16;
  std::vector<std::int64_t> windows = {0};
};

FakePolicy fake_policy(const SchedulerLimits& limits);

/// A generation as it must come out, and what has come out of it so far.
struct FakeSequence {
  SequenceSpec spec;
  std::uint64_t seed = 0;
  std::vector<std::int32_t> tokens;  // prompt, then what was sampled
  std::vector<std::uint64_t> chain;  // [tokens] hashes
  std::int64_t prompt_logits = 0;    // positions whose logits an all_logits sequence was given, from the first on
  bool prompt_done = false;
  FakePolicy policy;

  void append(std::int32_t token);
  /// Tokens behind a position of the prompt that its row depends on.
  [[nodiscard]] std::uint64_t ahead_of(std::size_t position) const;
  /// All its rows have run.
  [[nodiscard]] bool complete() const;
};

/// The token after a position with this hash.
std::int32_t fake_sample(std::uint64_t chain, std::uint64_t seed);

/// What a row gives to the page that begins with a position of this hash.
std::uint64_t fake_mass(std::uint64_t row, std::uint64_t page);

/// The tokens of a sequence that ran alone, without any scheduler: a row at a time.
std::vector<std::int32_t> fake_answer(const SequenceSpec& spec, std::uint64_t seed, const FakePolicy& policy);

class FakeNode {
 public:
  /// `look_everywhere`: rows look at every slot they may see, instead of some.
  FakeNode(const SchedulerLimits& limits, bool look_everywhere);

  Scheduler& scheduler() { return scheduler_; }

  /// False where the scheduler refuses.
  bool add(SequenceId id, SequenceSpec spec, std::uint64_t seed);
  void finish(SequenceId id);
  void hold(SequenceId id, bool held);

  /// Plans a step and keeps what an executor would take from it. False when the plan is empty.
  bool schedule();
  /// Runs and commits the oldest plan. Returns the ids of sequences that have completed with it.
  std::vector<SequenceId> run();
  /// The oldest plan fails: where it was to store something stands anything now. Those behind it never run. Returns
  /// whose entries it had.
  std::vector<SequenceId> fail();

  [[nodiscard]] std::size_t outstanding() const { return steps_.size(); }
  [[nodiscard]] const std::map<SequenceId, std::shared_ptr<FakeSequence>>& alive() const { return alive_; }
  [[nodiscard]] std::int64_t rows_run() const { return rows_run_; }

 private:
  struct Entry {
    std::shared_ptr<FakeSequence> sequence;
    std::vector<std::vector<std::int32_t>> tables;  // as they were when the plan was made
    std::vector<std::int64_t> dropped;              // pages of each
    std::int64_t measured_from = 0;
  };
  struct Step {
    StepPlan plan;
    std::vector<Entry> entries;
  };

  void copy(const StepPlan& plan);
  std::vector<std::uint64_t>& memory_of(std::size_t group);
  std::uint64_t& slot(std::size_t group, std::int32_t page, std::int64_t position);
  std::uint64_t read(std::size_t group, std::int32_t page, std::int64_t position);
  void check_plan(const StepPlan& plan) const;
  void look(const Entry& entry, std::int64_t position);
  void look_at(const Entry& entry, std::size_t group, std::int64_t position, std::int64_t row);
  [[nodiscard]] std::int32_t page_of(const Entry& entry, std::size_t group, std::int64_t position) const;
  void look_at_kept(const Entry& entry, std::size_t group, std::int64_t row);
  void measure(const Entry& entry, std::size_t index, std::int64_t row, PageMasses& masses);
  [[nodiscard]] std::uint64_t kept(const Entry& entry);

  SchedulerLimits limits_;
  bool look_everywhere_;
  Scheduler scheduler_;
  std::vector<std::vector<std::uint64_t>> memory_;  // [pools][pages * page_tokens]
  std::map<SequenceId, std::shared_ptr<FakeSequence>> alive_;
  std::deque<Step> steps_;
  std::mt19937 random_{1};
  std::int64_t rows_run_ = 0;
};

}  // namespace millrace
