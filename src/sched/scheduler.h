// Scheduler: decides each step's ragged batch (iteration-level scheduling, Yu et al. 2022, "Orca") and owns the token
// state of all sequences. Pure: no clock, thread, device or text in it.
//
// - Every running sequence that decodes gets one row; what is left of the token budget goes to prompts, in chunks, so a
//   long prompt never holds up running streams.
// - Order is by rank: the number of the arrival, plus kOvertaking arrivals for each unit of `priority`. Lower ranks go
//   first everywhere: a request is overtaken by a bounded number of later ones, so nobody starves.
// - A sequence is admitted when the KV memory of all its known tokens can be promised to it; what it generates takes
//   pages one by one. When they run out, the sequence of the highest rank is preempted: it gives back its pages and
//   waits to be computed again, from what the prefix cache still has of it. The sequence of the lowest rank always
//   gets on, and so everybody ends.
// - Tokens whose keys and values exist already, or will after this step, are taken from the prefix cache.
// - Where a cache keeps some pages of a sequence only (retention.h), all that it will hold at once is promised at its
//   admission: the prompt, and no more than what is kept of it and the answer. One that is preempted is swapped out, if
//   there is room for that, since to compute it again takes all of the prompt's memory once more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/result.h"
#include "kv/page_masses.h"
#include "recipe/kv_retention.h"
#include "sched/kv_allocator.h"
#include "sched/retention.h"
#include "sched/sequence.h"
#include "sched/step_plan.h"

namespace millrace {

struct SchedulerLimits {
  std::int32_t max_batch_tokens = 512;  // rows of a step
  std::int32_t max_sequences = 64;      // sequences that run at once, and so the most entries of a step
  std::int32_t max_logit_rows = 64;     // rows of a step whose logits are wanted; at least max_sequences
  KvLimits kv;
  // False: what rows of an answer store is not what a prompt with its tokens would, so that only prompts are shared.
  bool share_answers = true;
  // Rows of a prompt are computed, and shared, in blocks of as many positions, but for its last: a whole number of
  // pages, or 1. Above 1, answers must not be shared, max_batch_tokens and max_logit_rows leave room for a block
  // beside max_sequences rows, and what a partial page holds is not copied.
  std::int64_t prompt_block = 1;
  // What is kept of a sequence; everything without it. Answers must not be shared then.
  std::optional<KvRetention> keep;
};

struct SequenceSpec {
  std::vector<std::int32_t> tokens;  // the prompt, and what its answer has already
  std::int64_t max_tokens = 0;       // prompt and answer
  std::int64_t answer_tokens = 0;    // of `tokens`, the last: computed as rows of the answer, as they were when drawn
  std::int32_t priority = 0;         // lower goes first
  std::string cache_name;            // the tree of the prefix cache that it may share
  bool samples = true;  // false, or no room in max_tokens: nothing is generated; it is done when the prompt is computed
  bool all_logits = false;         // the logits of every position of the prompt are wanted
  bool shares = true;              // false: computes every position itself (whoever needs what comes of each)
  std::int64_t pinned_tokens = 0;  // of the prompt, the first: they are kept for ever
};

class Scheduler {
 public:
  static constexpr std::int64_t kOvertaking = 64;
  /// Steps after which a held sequence may lose its place and pages to one that waits for them.
  static constexpr std::int64_t kHoldPatience = 32;

  explicit Scheduler(const SchedulerLimits& limits);

  /// A new sequence; `id` is the caller's and never used twice. Error, with the figures: it can never fit.
  Status add(SequenceId id, SequenceSpec spec);

  /// Decides the next step. Plans are run, and committed, in the order in which they were made. The next one may be
  /// made before the last is committed: then the token of an entry that samples is not known yet when the entry that
  /// runs it is planned. A plan must be run, or abandoned, whatever happens to its sequences meanwhile: others may have
  /// been given what it computes. An empty plan: nothing can run before a commit(), add(), finish() or hold(…, false).
  StepPlan schedule();

  /// The step ran. `sampled`: a token for each entry that samples, in order. Entries of sequences that have been
  /// finished meanwhile are passed over. `masses`, of the entries in order: what the rows that a sequence's view says
  /// are measured gave to its pages; null where none are.
  void commit(const StepPlan& plan, std::span<const std::int32_t> sampled, const PageMasses* masses = nullptr);

  /// The step of the plan could not be computed, and is never committed; nor are plans that were made after it, which
  /// may read what it was to store, and which need not be run. Nothing is left of them: sequences that had a part in
  /// one wait to be computed again from the tokens they had, and nobody finds their rows in the prefix cache.
  void abandon(const StepPlan& plan);

  /// The sequence is over, or cancelled, at any moment: its pages are free from the next schedule() on.
  void finish(SequenceId id);

  /// A held sequence is not scheduled and is the first to be preempted; also, after kHoldPatience steps or when nothing
  /// else could run, for a sequence that waits to be admitted.
  void hold(SequenceId id, bool held);

  /// Of an entry of the last plan. Valid until the next call that changes anything.
  [[nodiscard]] SequenceView sequence(const StepEntry& entry) const;
  [[nodiscard]] bool contains(SequenceId id) const { return by_id_.contains(id); }
  /// Tokens of the prompt that were found in the prefix cache when the sequence first ran.
  [[nodiscard]] std::int64_t cached_tokens(SequenceId id) const;

  [[nodiscard]] bool idle() const { return by_id_.empty(); }
  [[nodiscard]] std::int64_t running() const { return static_cast<std::int64_t>(running_.size()); }
  [[nodiscard]] std::int64_t waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  /// Tokens of prompts that are not scheduled yet, of whoever waits or runs.
  [[nodiscard]] std::int64_t prompt_tokens_left() const {
    std::int64_t left = 0;
    for (const Slot& slot : slots_) {
      if (slot.state != State::free) left += std::max<std::int64_t>(0, slot.prompt_tokens - slot.computed);
    }
    return left;
  }

  /// Of KV memory, in pages for each cache group and in slots (a slot is one position's place in a page).
  struct KvUse {
    std::int64_t pages = 0, used_pages = 0, cached_pages = 0;
    std::int64_t allocated_slots = 0, unused_slots = 0;  // of the used pages; unused: no token has been scheduled there
  };
  [[nodiscard]] KvUse kv_use() const;
  [[nodiscard]] const PrefixCache& prefix_cache() const { return kv_.cache(); }

  /// Since the start.
  struct Counters {
    std::int64_t preemptions = 0;
    std::int64_t admitted_tokens = 0, cached_tokens = 0;  // of prompts, at first admission: looked up and found
    std::int64_t computed_tokens = 0;                     // rows scheduled
    std::int64_t dropped_pages = 0, freed_pages = 0;      // dropped from a sequence; of those nobody else had
    std::int64_t swaps = 0;                               // preemptions that nothing had to be computed again for
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

  /// Aborts when invariants are broken. For tests.
  void check() const;

 private:
  using SlotIndex = std::uint32_t;
  using Rank = std::pair<std::int64_t, std::int64_t>;  // the arrival as it counts, the arrival

  enum class State : std::uint8_t { free, waiting, running };

  /// What every step looks at stands together.
  struct Slot {
    SequenceId id = 0;
    std::vector<std::int32_t> known;  // tokens: prompt, then what was sampled
    std::int64_t computed = 0;        // positions scheduled so far
    std::int64_t committed = 0;       // of those, how many have been computed
    std::int64_t pending = 0;         // tokens that planned steps will sample
    std::int64_t prompt_tokens = 0;
    std::int64_t max_tokens = 0;
    std::int64_t planned_in = -1;  // the last step that has an entry of it, or copies for it
    std::int64_t changed_in = -1;  // the same, or that gave or moved its pages: lost with it
    std::uint32_t admission = 0;   // how often it was admitted
    State state = State::free;
    bool held = false, samples = true, all_logits = false, shares = true;
    bool waited = false;   // has been put off once for what others compute
    bool through = false;  // all its rows are planned
    SequenceKv kv;
    Rank rank;
    std::string cache_name;
    std::int64_t cached_tokens = 0;
    std::int64_t held_since = 0;   // a step
    std::int64_t refused_in = -1;  // the last step in which there was no memory for it, and
    std::int64_t wanted = 0;       // the rows that would have been enough
    std::optional<Retention> retention;

    [[nodiscard]] std::int64_t tokens() const { return static_cast<std::int64_t>(known.size()) + pending; }
    /// Rows that it can run now.
    [[nodiscard]] std::int64_t left() const {
      return held || through || (retention && computed == retention->next_decision()) ? 0 : tokens() - computed;
    }
  };

  enum class Admission : std::uint8_t { admitted, next_step, no_room };

  void plan_decodes(StepPlan& plan);
  void plan_prompts(StepPlan& plan);
  void plan_prompt(StepPlan& plan, SlotIndex index);
  void plan_rows(StepPlan& plan, SlotIndex index, std::int64_t rows);
  /// The last place up to `end` where a step may end that computes the slot's rows.
  [[nodiscard]] std::int64_t last_cut(const Slot& slot, std::int64_t end) const;
  void publish(Slot& slot, bool partial);
  void give_back(Slot& slot);  // its memory; what can be shared of it is known
  /// Tokens among whose rows it may have some from others: all but the last.
  [[nodiscard]] std::span<const std::int32_t> shared_tokens(const Slot& slot) const;
  Admission admit(SlotIndex index, StepPlan& plan);
  Admission try_admit(SlotIndex index, StepPlan& plan);
  /// Positions that rows are promised for.
  [[nodiscard]] std::int64_t promised_positions(const Slot& slot) const;
  /// Pages that a sequence which keeps some has of each cache group at most, once the answer has begun.
  [[nodiscard]] std::vector<std::int64_t> promised_pages(const Retention& retention, std::int64_t max_tokens) const;
  /// The same from now on, when these entries of each group's table have been dropped, too; or nothing is.
  [[nodiscard]] std::vector<std::int64_t> most_pages(const Slot& slot,
                                                     std::span<const std::vector<std::int32_t>> dropped) const;
  void decide(Slot& slot);
  [[nodiscard]] std::size_t place_of(const Rank& rank) const;
  bool make_room(SlotIndex index, std::int64_t tokens, StepPlan& plan);
  [[nodiscard]] SlotIndex victim() const;
  bool preempt_held(bool impatient, StepPlan& plan);
  void preempt(SlotIndex index, StepPlan& plan);
  void start_again(Slot& slot);      // it has no memory
  void wait_again(SlotIndex index);  // it ran

  SchedulerLimits limits_;
  KvAllocator kv_;
  std::vector<Slot> slots_;
  std::vector<SlotIndex> free_slots_;
  std::unordered_map<SequenceId, SlotIndex> by_id_;
  std::set<std::pair<Rank, SlotIndex>> waiting_;
  std::vector<SlotIndex> running_;  // in order of rank
  std::vector<SlotIndex> prompts_;  // of this step: running ones that are not through with theirs
  std::int64_t arrivals_ = 0;
  std::int64_t step_ = 0;  // of the last plan
  std::int64_t lost_ = 0;  // the last plan that was there when one failed
  std::int64_t budget_ = 0, logit_budget_ = 0;
  Counters counters_;
};

}  // namespace millrace
