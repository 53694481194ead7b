#include "sched/scheduler.h"

#include <algorithm>
#include <limits>

#include "core/check.h"

namespace millrace {

namespace {

/// Rows that are computed together are found together.
KvLimits kv_limits(const SchedulerLimits& limits) {
  KvLimits kv = limits.kv;
  kv.rows_together = static_cast<std::int32_t>(std::max<std::int64_t>(1, limits.prompt_block / kv.page_tokens));
  kv.share_parts = limits.prompt_block == 1;
  return kv;
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), kv_(kv_limits(limits)) {
  MILLRACE_CHECK(limits.max_batch_tokens >= 1 && limits.max_sequences >= 1, "{} tokens, {} sequences",
                 limits.max_batch_tokens, limits.max_sequences);
  MILLRACE_CHECK(limits.max_logit_rows >= limits.max_sequences, "{} logit rows for {} sequences", limits.max_logit_rows,
                 limits.max_sequences);
  const std::int64_t block = limits.prompt_block;
  MILLRACE_CHECK(!limits.keep || !limits.share_answers, "answers are shared of which not everything is kept");
  MILLRACE_CHECK(
      block == 1 || (block % limits.kv.page_tokens == 0 && !limits.share_answers &&
                     std::min(limits.max_batch_tokens, limits.max_logit_rows) >= block + limits.max_sequences),
      "blocks of {}: pages of {}, {} tokens, {} logit rows, {} sequences", block, limits.kv.page_tokens,
      limits.max_batch_tokens, limits.max_logit_rows, limits.max_sequences);
}

Status Scheduler::add(SequenceId id, SequenceSpec spec) {
  const auto tokens = static_cast<std::int64_t>(spec.tokens.size()), prompt_tokens = tokens - spec.answer_tokens;
  MILLRACE_CHECK(prompt_tokens > 0 && spec.max_tokens >= tokens, "{} of {} tokens", tokens, spec.max_tokens);
  MILLRACE_CHECK(!by_id_.contains(id), "sequence {} exists", id);
  std::optional<Retention> retention;
  if (limits_.keep && spec.samples && spec.max_tokens > prompt_tokens) {
    retention.emplace(*limits_.keep, limits_.kv.windows, limits_.kv.page_tokens, prompt_tokens,
                      std::min(spec.pinned_tokens, prompt_tokens));
    const std::vector<std::int64_t> most = promised_pages(*retention, spec.max_tokens);
    if (!kv_.can_hold(std::min(prompt_tokens + kv_.page_tokens(), spec.max_tokens), most)) {
      return fail(
          "the request needs KV memory for {} tokens of prompt, or for {} that are kept, but there is room for "
          "{} tokens",
          prompt_tokens, std::ranges::max(most) * kv_.page_tokens(), kv_.total_rows() * kv_.page_tokens());
    }
  } else if (kv_.rows_for(spec.max_tokens) > kv_.total_rows()) {
    return fail("the request needs KV memory for {} tokens ({} of prompt), but there is room for {} tokens",
                spec.max_tokens, prompt_tokens, kv_.total_rows() * kv_.page_tokens());
  }
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<SlotIndex>(slots_.size()));
    slots_.emplace_back();
  }
  const SlotIndex index = free_slots_.back();
  free_slots_.pop_back();
  Slot& slot = slots_[index];
  slot = {};
  slot.id = id;
  slot.known = std::move(spec.tokens);
  slot.prompt_tokens = prompt_tokens;
  slot.kv = kv_.make();
  slot.rank = {arrivals_ + std::int64_t{spec.priority} * kOvertaking, arrivals_};
  ++arrivals_;
  slot.cache_name = std::move(spec.cache_name);
  slot.max_tokens = spec.max_tokens;
  slot.samples = spec.samples && spec.max_tokens > tokens;
  slot.all_logits = spec.all_logits;
  slot.shares = spec.shares && !spec.all_logits;
  slot.retention = std::move(retention);
  slot.state = State::waiting;
  by_id_.emplace(id, index);
  waiting_.emplace(slot.rank, index);
  return Ok{};
}

StepPlan Scheduler::schedule() {
  ++step_;
  budget_ = limits_.max_batch_tokens;
  logit_budget_ = limits_.max_logit_rows;
  StepPlan plan;
  plan.step = step_;
  plan.entries.reserve(running_.size() + 1);
  plan_decodes(plan);
  plan_prompts(plan);
  return plan;
}

void Scheduler::plan_decodes(StepPlan& plan) {
  prompts_.clear();
  for (std::size_t i = 0; i < running_.size() && budget_ > 0;) {
    const SlotIndex index = running_[i];
    const std::int64_t left = slots_[index].left();
    if (left > 1) prompts_.push_back(index);
    if (left == 1 && logit_budget_ > 0 && make_room(index, slots_[index].computed + 1, plan)) plan_rows(plan, index, 1);
    if (i < running_.size() && running_[i] == index) {
      ++i;
    } else {
      i = place_of(slots_[index].rank);  // some were preempted
    }
  }
}

void Scheduler::plan_prompts(StepPlan& plan) {
  // Those that run and those that wait, merged by rank. Nobody passes one that waits for memory.
  auto next = prompts_.begin();
  auto waiting = waiting_.begin();
  while (budget_ > 0) {
    while (next != prompts_.end() && slots_[*next].state != State::running) ++next;  // preempted since
    while (waiting != waiting_.end() && slots_[waiting->second].left() == 0) ++waiting;
    const bool waits = waiting != waiting_.end();
    if (next != prompts_.end() && (!waits || slots_[*next].rank < waiting->first)) {
      plan_prompt(plan, *next++);
      continue;
    }
    // Who is admitted should get on: beside others, only where a block has room.
    if (!waits || (budget_ < limits_.prompt_block && !plan.entries.empty())) return;
    const auto candidate = waiting++;
    const SlotIndex index = candidate->second;
    if (slots_[index].all_logits && logit_budget_ == 0) continue;
    const Admission admission = admit(index, plan);
    if (admission == Admission::no_room) {
      waiting = waiting_.end();
    } else if (admission == Admission::admitted) {
      waiting_.erase(candidate);
      plan_prompt(plan, index);
    }
  }
}

Scheduler::Admission Scheduler::admit(SlotIndex index, StepPlan& plan) {
  while (true) {
    const Admission admission = try_admit(index, plan);
    if (admission != Admission::no_room || !preempt_held(plan.entries.empty(), plan)) return admission;
  }
}

Scheduler::Admission Scheduler::try_admit(SlotIndex index, StepPlan& plan) {
  if (running_.size() >= static_cast<std::size_t>(limits_.max_sequences)) return Admission::no_room;
  Slot& slot = slots_[index];
  // Looking a long prompt up takes time, and the answer rarely changes before pages come back.
  constexpr std::int64_t kAskAgain = 8;
  const bool refused = slot.refused_in >= 0 && step_ - slot.refused_in < kAskAgain && !running_.empty();
  if (refused && kv_.available() < slot.wanted) return Admission::no_room;
  // Every sequence that runs may want a page soon; who is admitted should not have to go again at once.
  const auto spare = static_cast<std::int64_t>(running_.size());
  KvAllocator::Admission admission;
  if (slot.kv.is_swapped()) {
    admission = kv_.swap_in(slot.kv, most_pages(slot, {}), spare, plan.copies);
    admission.cached_tokens = slot.computed;
  } else {
    std::vector<std::int64_t> most;
    if (slot.retention) most = promised_pages(*slot.retention, slot.max_tokens);
    admission = kv_.admit(slot.kv,
                          {.name = slot.cache_name,
                           .tokens = shared_tokens(slot),
                           .positions = promised_positions(slot),
                           .most = most,
                           .share = slot.shares,
                           .may_wait = !slot.waited,
                           .spare = spare,
                           .step = step_},
                          plan.copies);
  }
  if (admission.wait) {
    slot.waited = true;
    return Admission::next_step;
  }
  if (!admission.admitted) {
    slot.refused_in = step_;
    slot.wanted = admission.wanted;
    return Admission::no_room;
  }
  slot.computed = slot.committed = admission.cached_tokens;
  // What it goes by is no row's attention, or some row must run before it.
  if (slot.retention && slot.computed == slot.retention->next_decision()) decide(slot);
  slot.planned_in = slot.changed_in = step_;
  slot.state = State::running;
  if (slot.admission++ == 0) {
    slot.cached_tokens = std::min(admission.cached_tokens, slot.prompt_tokens);
    counters_.admitted_tokens += slot.prompt_tokens;
    counters_.cached_tokens += slot.cached_tokens;
  }
  running_.insert(running_.begin() + static_cast<std::ptrdiff_t>(place_of(slot.rank)), index);
  return Admission::admitted;
}

std::int64_t Scheduler::promised_positions(const Slot& slot) const {
  if (!slot.retention) return slot.tokens();
  // What is dropped first may be others', too, and give no memory back: a row more is there in any case.
  return std::min(slot.max_tokens, slot.prompt_tokens + kv_.page_tokens());
}

std::vector<std::int64_t> Scheduler::promised_pages(const Retention& retention, std::int64_t max_tokens) const {
  const std::vector<std::int64_t>& windows = limits_.kv.windows;
  std::int64_t first_drop = 0;  // that many rows are taken before nothing is promised anew
  for (std::size_t g = 0; g < windows.size(); ++g) {
    if (windows[g] > 0) continue;
    first_drop = first_drop == 0 ? retention.most_pages(g) : std::min(first_drop, retention.most_pages(g));
  }
  std::vector<std::int64_t> pages;
  for (std::size_t g = 0; g < windows.size(); ++g) {
    const std::int64_t most = retention.most_pages(g);
    pages.push_back(std::min(windows[g] > 0 ? std::max(most, first_drop) : most, kv_.rows_for(max_tokens)));
  }
  return pages;
}

std::vector<std::int64_t> Scheduler::most_pages(const Slot& slot,
                                                std::span<const std::vector<std::int32_t>> dropped) const {
  std::vector<std::int64_t> pages;
  for (std::size_t g = 0; g < slot.kv.tables.size(); ++g) {
    const std::int64_t gone = slot.kv.tables[g].dropped() + (dropped.empty() ? 0 : std::ssize(dropped[g]));
    pages.push_back(std::min(slot.retention->most_pages(g), kv_.rows_for(slot.max_tokens) - gone));
  }
  return pages;
}

std::size_t Scheduler::place_of(const Rank& rank) const {
  const auto place = std::ranges::upper_bound(running_, rank, {}, [this](SlotIndex i) { return slots_[i].rank; });
  return static_cast<std::size_t>(place - running_.begin());
}

void Scheduler::plan_prompt(StepPlan& plan, SlotIndex index) {
  Slot& slot = slots_[index];
  if (slot.shares) {
    const std::int64_t before = std::min(slot.computed, slot.prompt_tokens);
    const std::int64_t saved = kv_.catch_up(slot.kv, shared_tokens(slot), slot.computed);
    slot.computed += saved;
    if (saved > 0) slot.changed_in = step_;
    if (slot.admission == 1) {
      const std::int64_t of_prompt = std::min(slot.computed, slot.prompt_tokens) - before;
      slot.cached_tokens += of_prompt;
      counters_.cached_tokens += of_prompt;
    }
    if (slot.retention && slot.computed == slot.retention->next_decision()) decide(slot);
  }
  const std::int64_t most =
      slot.retention ? std::min(slot.left(), slot.retention->next_decision() - slot.computed) : slot.left();
  std::int64_t rows = std::min(budget_, most);
  if (slot.all_logits) rows = std::min(rows, logit_budget_);
  const std::int64_t page = kv_.page_tokens();
  const std::int64_t end = slot.computed + rows;
  // A chunk ends with a page, where there is a choice: whole rows can be shared.
  if (rows < most && end / page * page > slot.computed) rows = end / page * page - slot.computed;
  if (rows == slot.left() && slot.samples && logit_budget_ == 0)
    --rows;  // the last row in a step that can say its logits
  if (rows < most) rows = last_cut(slot, slot.computed + rows) - slot.computed;
  if (rows <= 0) return;
  // A prompt's rows were promised; those of an answer that is computed again, as far as there were some.
  if (slot.planned_in == step_ || make_room(index, slot.computed + rows, plan)) plan_rows(plan, index, rows);
}

std::int64_t Scheduler::last_cut(const Slot& slot, std::int64_t end) const {
  if (end >= slot.prompt_tokens) return end;
  return std::max(slot.computed, end / limits_.prompt_block * limits_.prompt_block);
}

void Scheduler::plan_rows(StepPlan& plan, SlotIndex index, std::int64_t rows) {
  Slot& slot = slots_[index];
  const bool grown = kv_.grow(slot.kv, slot.computed + rows);
  MILLRACE_CHECK(grown, "sequence {} was promised pages for {} tokens", slot.id, slot.computed + rows);
  const bool last = rows == slot.left();
  const bool samples = slot.samples && last;
  const bool of_prompt = slot.computed < slot.prompt_tokens;
  plan.entries.push_back({.id = slot.id,
                          .slot = index,
                          .rows = static_cast<std::int32_t>(rows),
                          .first_position = slot.computed,
                          .admission = slot.admission,
                          .samples = samples,
                          .all_logits = slot.all_logits && of_prompt});
  budget_ -= rows;
  logit_budget_ -= plan.entries.back().all_logits ? rows : samples ? 1 : 0;
  counters_.computed_tokens += rows;
  slot.computed += rows;
  slot.pending += samples ? 1 : 0;
  slot.through = last && (!samples || slot.tokens() >= slot.max_tokens);
  slot.planned_in = slot.changed_in = step_;
  publish(slot, of_prompt && slot.computed >= slot.prompt_tokens);
}

std::span<const std::int32_t> Scheduler::shared_tokens(const Slot& slot) const {
  const std::span<const std::int32_t> known(slot.known);
  if (limits_.share_answers) return known;
  const std::int64_t most = slot.retention ? slot.retention->computed_from() : slot.prompt_tokens;
  return known.first(std::min(known.size(), static_cast<std::size_t>(most) + 1));
}

void Scheduler::publish(Slot& slot, bool partial) {
  std::int64_t filled = std::min(slot.computed, static_cast<std::int64_t>(slot.known.size()));
  if (!limits_.share_answers) filled = std::min(filled, slot.prompt_tokens);
  filled = filled / limits_.prompt_block * limits_.prompt_block;
  partial = partial && limits_.prompt_block == 1;
  if (partial || static_cast<std::int64_t>(slot.kv.nodes.size() + 1) * kv_.page_tokens() <= filled) {
    kv_.publish(slot.kv, slot.known, filled, partial, slot.planned_in);
  }
}

bool Scheduler::make_room(SlotIndex index, std::int64_t tokens, StepPlan& plan) {
  while (!kv_.grow(slots_[index].kv, tokens)) {
    const SlotIndex loser = victim();
    preempt(loser, plan);
    if (loser == index) return false;
  }
  return true;
}

Scheduler::SlotIndex Scheduler::victim() const {
  // One that has nothing left to do, else a held one, else the last in rank. Whoever has an entry in this step already
  // keeps its pages.
  constexpr SlotIndex kNobody = std::numeric_limits<SlotIndex>::max();
  SlotIndex last = kNobody, held = kNobody;
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    const Slot& slot = slots_[*it];
    if (slot.planned_in == step_) continue;
    if (slot.through) return *it;
    if (held == kNobody && slot.held) held = *it;
    if (last == kNobody) last = *it;
  }
  MILLRACE_CHECK(last != kNobody, "a sequence asks for a page in a step that it is planned in");
  return held != kNobody ? held : last;
}

bool Scheduler::preempt_held(bool impatient, StepPlan& plan) {
  const auto may_go = [&](SlotIndex index) {
    const Slot& slot = slots_[index];
    return slot.planned_in != step_ &&
           (slot.through || (slot.held && (impatient || step_ - slot.held_since >= kHoldPatience)));
  };
  const auto found = std::find_if(running_.rbegin(), running_.rend(), may_go);
  if (found == running_.rend()) return false;
  preempt(*found, plan);
  return true;
}

void Scheduler::give_back(Slot& slot) {
  // In an answer that is not shared, the prompt's last row has been published, and its page may be out of every window.
  publish(slot, limits_.share_answers || slot.computed <= slot.prompt_tokens);
  kv_.release(slot.kv);
}

void Scheduler::preempt(SlotIndex index, StepPlan& plan) {
  Slot& slot = slots_[index];
  // What runs at this moment would be lost with its masses.
  const bool settled = slot.committed == slot.computed && !slot.through && slot.kv.apart;
  if (settled && kv_.swap_out(slot.kv, plan.copies)) {
    ++counters_.swaps;
    slot.changed_in = step_;
  } else {
    give_back(slot);
    start_again(slot);
  }
  wait_again(index);
  counters_.preemptions += slot.through ? 0 : 1;
}

void Scheduler::start_again(Slot& slot) {
  slot.computed = slot.committed = 0;
  if (slot.retention) slot.retention->restart();
}

void Scheduler::wait_again(SlotIndex index) {
  Slot& slot = slots_[index];
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(place_of(slot.rank)) - 1);
  slot.state = State::waiting;
  slot.waited = false;
  waiting_.emplace(slot.rank, index);
}

void Scheduler::decide(Slot& slot) {
  const std::vector<std::vector<std::int32_t>> dropped = slot.retention->decide();
  std::int64_t pages = 0;
  for (const auto& entries : dropped) pages += std::ssize(entries);
  if (pages == 0) return;
  counters_.dropped_pages += pages;
  counters_.freed_pages += kv_.drop(slot.kv, dropped, most_pages(slot, dropped));
}

void Scheduler::commit(const StepPlan& plan, std::span<const std::int32_t> sampled, const PageMasses* masses) {
  MILLRACE_CHECK(plan.step > lost_, "plan {} is committed, and those up to {} are lost", plan.step, lost_);
  std::size_t next = 0;
  for (std::size_t e = 0; e < plan.entries.size(); ++e) {
    const StepEntry& entry = plan.entries[e];
    const std::int32_t* token = nullptr;
    if (entry.samples) {
      MILLRACE_CHECK(next < sampled.size(), "{} tokens for more entries", sampled.size());
      token = &sampled[next++];
    }
    Slot& slot = slots_[entry.slot];
    if (slot.state == State::free || slot.id != entry.id) continue;  // finished meanwhile
    if (token != nullptr) {
      slot.known.push_back(*token);
      --slot.pending;
    }
    if (slot.state != State::running || slot.admission != entry.admission) continue;  // preempted meanwhile
    slot.committed = entry.first_position + entry.rows;
    // What is trimmed or dropped must be known.
    publish(slot, false);
    kv_.trim(slot.kv, slot.committed);
    if (!slot.retention) continue;
    if (limits_.keep->measures()) {
      if (slot.committed > slot.retention->measured_from()) {
        MILLRACE_CHECK(masses != nullptr && masses->sequences() == plan.entries.size(),
                       "nothing was measured of sequence {}", slot.id);
        slot.retention->add(*masses, e, entry.first_position, slot.committed);
      }
    }
    if (slot.committed == slot.retention->next_decision()) decide(slot);
  }
  MILLRACE_CHECK(next == sampled.size(), "{} tokens for {} entries that sample", sampled.size(), next);
}

void Scheduler::abandon(const StepPlan& plan) {
  MILLRACE_CHECK(plan.step > lost_, "plan {} is lost, and those up to {} were", plan.step, lost_);
  lost_ = step_;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    if (slot.state == State::free || slot.changed_in < plan.step) continue;
    // Without publishing: there is nothing to be known of it.
    kv_.release(slot.kv);
    start_again(slot);
    slot.pending = 0;
    slot.through = false;
    if (slot.state == State::running) wait_again(static_cast<SlotIndex>(i));
  }
  kv_.forget(plan.step);
}

void Scheduler::finish(SequenceId id) {
  const auto found = by_id_.find(id);
  MILLRACE_CHECK(found != by_id_.end(), "no sequence {}", id);
  const SlotIndex index = found->second;
  Slot& slot = slots_[index];
  if (slot.state == State::running) {
    give_back(slot);
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(place_of(slot.rank)) - 1);
  } else {
    waiting_.erase({slot.rank, index});
    kv_.release(slot.kv);  // what was swapped out
  }
  slot = {};
  free_slots_.push_back(index);
  by_id_.erase(found);
}

void Scheduler::hold(SequenceId id, bool held) {
  Slot& slot = slots_[by_id_.at(id)];
  if (held && !slot.held) slot.held_since = step_;
  slot.held = held;
}

SequenceView Scheduler::sequence(const StepEntry& entry) const {
  const Slot& slot = slots_[entry.slot];
  return {slot.known,
          slot.prompt_tokens,
          slot.kv.tables,
          slot.prompt_tokens,
          slot.retention ? slot.retention->measured_from() : Retention::kNever,
          slot.retention ? slot.retention->moved() : std::span<const std::vector<MovedPages>>()};
}

std::int64_t Scheduler::cached_tokens(SequenceId id) const {
  return slots_[by_id_.at(id)].cached_tokens;
}

Scheduler::KvUse Scheduler::kv_use() const {
  KvUse use{.pages = kv_.total_rows(), .used_pages = kv_.used_rows(), .cached_pages = kv_.cached_rows()};
  use.allocated_slots = use.used_pages * kv_.page_tokens();
  for (const SlotIndex index : running_) {
    const Slot& slot = slots_[index];
    use.unused_slots += slot.kv.rows * kv_.page_tokens() - slot.computed;
  }
  return use;
}

void Scheduler::check() const {
  std::vector<const SequenceKv*> live;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    const Slot& slot = slots_[running_[i]];
    MILLRACE_CHECK(slot.state == State::running, "slot {} runs and is not running", running_[i]);
    MILLRACE_CHECK(i == 0 || slots_[running_[i - 1]].rank < slot.rank, "running sequences out of order at {}", i);
    MILLRACE_CHECK(slot.computed <= slot.tokens() && slot.tokens() <= slot.max_tokens, "{} of {} of {} tokens",
                   slot.computed, slot.tokens(), slot.max_tokens);
    live.push_back(&slot.kv);
  }
  MILLRACE_CHECK(running_.size() + waiting_.size() == by_id_.size(), "{} run, {} wait, {} exist", running_.size(),
                 waiting_.size(), by_id_.size());
  MILLRACE_CHECK(running_.size() <= static_cast<std::size_t>(limits_.max_sequences), "{} run", running_.size());
  for (const auto& [rank, index] : waiting_) {
    if (slots_[index].kv.is_swapped()) live.push_back(&slots_[index].kv);
  }
  kv_.check(live);
}

}  // namespace millrace
