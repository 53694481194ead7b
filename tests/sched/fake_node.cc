#include "sched/fake_node.h"

#include <algorithm>
#include <set>

#include "core/check.h"

namespace millrace {

namespace {

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return x ^ (x >> 32);
}

/// What pages of a group hold differs from what others of its pool do.
std::uint64_t of_group(std::size_t group) {
  return mix(group, 1);
}

}  // namespace

void FakeSequence::append(std::int32_t token) {
  // Trees of the prefix cache hold what is not interchangeable, so a tree's name is part of what a page holds.
  std::uint64_t before = chain.empty() ? std::hash<std::string>{}(spec.cache_name) : chain.back();
  const bool of_prompt = tokens.size() < spec.tokens.size();
  if (!policy.share_answers && !of_prompt) before = mix(before, spec.tokens.size());
  if (policy.prompt_block > 1 && of_prompt) before = mix(before, ahead_of(tokens.size()));
  chain.push_back(mix(before, static_cast<std::uint64_t>(token)));
  tokens.push_back(token);
}

std::uint64_t FakeSequence::ahead_of(std::size_t position) const {
  const auto block = static_cast<std::size_t>(policy.prompt_block);
  const std::size_t end = std::min(spec.tokens.size(), (position / block + 1) * block);
  std::uint64_t all = end;
  for (std::size_t p = position + 1; p < end; ++p) all = mix(all, static_cast<std::uint64_t>(spec.tokens[p]));
  return all;
}

bool FakeSequence::complete() const {
  const bool samples = spec.samples && spec.max_tokens > static_cast<std::int64_t>(spec.tokens.size());
  return samples ? static_cast<std::int64_t>(tokens.size()) >= spec.max_tokens : prompt_done;
}

std::int32_t fake_sample(std::uint64_t chain, std::uint64_t seed) {
  return static_cast<std::int32_t>(mix(chain, seed) % 3);  // few tokens, so that generations meet
}

std::uint64_t fake_mass(std::uint64_t row, std::uint64_t page) {
  return mix(row, page) % 1000;
}

FakePolicy fake_policy(const SchedulerLimits& limits) {
  return {limits.share_answers, limits.prompt_block, limits.keep, limits.kv.page_tokens, limits.kv.windows};
}

std::vector<std::int32_t> fake_answer(const SequenceSpec& spec, std::uint64_t seed, const FakePolicy& policy) {
  FakeSequence sequence{.spec = spec, .seed = seed, .tokens = {}, .chain = {}, .policy = policy};
  for (const std::int32_t token : spec.tokens) sequence.append(token);
  const auto prompt = static_cast<std::int64_t>(spec.tokens.size());
  std::optional<Retention> retention;
  if (policy.keep && spec.samples) {
    retention.emplace(*policy.keep, policy.windows, policy.page_tokens, prompt, std::min(spec.pinned_tokens, prompt));
  }
  std::vector<std::vector<std::int64_t>> pages(policy.windows.size());  // that are kept, by their first position
  PageMasses masses;
  for (std::int64_t row = 0; spec.samples && static_cast<std::int64_t>(sequence.tokens.size()) < spec.max_tokens;
       ++row) {
    std::uint64_t kept = 0;
    if (retention) {
      masses.reset(pages.size(), std::vector<std::int64_t>{static_cast<std::int64_t>(sequence.tokens.size())});
      for (std::size_t g = 0; g < pages.size(); ++g) {
        if (policy.windows[g] > 0) continue;
        if (row % policy.page_tokens == 0) pages[g].push_back(row);
        for (std::size_t p = 0; p < pages[g].size(); ++p) {
          const std::uint64_t page = sequence.chain[static_cast<std::size_t>(pages[g][p])];
          masses.of(g, 0)[p] = fake_mass(sequence.chain[static_cast<std::size_t>(row)], page);
          kept = mix(kept, page);
        }
      }
      if (policy.keep->measures()) retention->add(masses, 0, row, row + 1);
    }
    const std::uint64_t chain = sequence.chain[static_cast<std::size_t>(row)];
    if (row + 1 == static_cast<std::int64_t>(sequence.tokens.size())) {
      sequence.append(fake_sample(retention ? mix(chain, kept) : chain, seed));
    }
    if (!retention || row + 1 != retention->next_decision()) continue;
    const std::vector<std::vector<std::int32_t>> dropped = retention->decide();
    for (std::size_t g = 0; g < pages.size(); ++g) {
      for (auto it = dropped[g].rbegin(); it != dropped[g].rend(); ++it) pages[g].erase(pages[g].begin() + *it);
    }
  }
  return sequence.tokens;
}

FakeNode::FakeNode(const SchedulerLimits& limits, bool look_everywhere)
    : limits_(limits), look_everywhere_(look_everywhere), scheduler_(limits) {
  const std::size_t pages = static_cast<std::size_t>(limits.kv.pages) + static_cast<std::size_t>(limits.kv.swap_pages);
  const std::size_t slots = pages * static_cast<std::size_t>(limits.kv.page_tokens);
  memory_.resize(limits.kv.windows.size());
  for (std::size_t g = 0; g < memory_.size(); ++g) {  // each group brings its pages with it
    std::vector<std::uint64_t>& memory = memory_of(g);
    memory.resize(memory.size() + slots, 0);
  }
}

bool FakeNode::add(SequenceId id, SequenceSpec spec, std::uint64_t seed) {
  if (!scheduler_.add(id, spec).ok()) return false;
  auto sequence = std::make_shared<FakeSequence>();
  sequence->seed = seed;
  sequence->policy = fake_policy(limits_);
  sequence->spec = std::move(spec);
  for (const std::int32_t token : sequence->spec.tokens) sequence->append(token);
  alive_.emplace(id, std::move(sequence));
  return true;
}

void FakeNode::finish(SequenceId id) {
  scheduler_.finish(id);
  alive_.erase(id);
}

void FakeNode::hold(SequenceId id, bool held) {
  scheduler_.hold(id, held);
}

bool FakeNode::schedule() {
  Step step;
  step.plan = scheduler_.schedule();
  check_plan(step.plan);
  if (step.plan.empty()) return false;
  for (const StepEntry& entry : step.plan.entries) {
    const auto found = alive_.find(entry.id);
    MILLRACE_CHECK(found != alive_.end(), "sequence {} is over, and planned", entry.id);
    const SequenceView view = scheduler_.sequence(entry);
    const FakeSequence& sequence = *found->second;
    MILLRACE_CHECK(view.prompt_tokens == static_cast<std::int64_t>(sequence.spec.tokens.size()), "{} prompt tokens",
                   view.prompt_tokens);
    MILLRACE_CHECK(view.answer_begin == view.prompt_tokens, "the answer begins at {}", view.answer_begin);
    MILLRACE_CHECK(view.tokens.size() <= sequence.tokens.size() &&
                       std::equal(view.tokens.begin(), view.tokens.end(), sequence.tokens.begin()),
                   "sequence {} has other tokens", entry.id);
    const std::int64_t block = limits_.prompt_block, end = entry.first_position + entry.rows;
    MILLRACE_CHECK(entry.first_position >= view.prompt_tokens ||
                       (entry.first_position % block == 0 && (end >= view.prompt_tokens || end % block == 0)),
                   "rows {} to {} of a prompt of {}, in blocks of {}", entry.first_position, end, view.prompt_tokens,
                   block);
    Entry kept{.sequence = found->second, .tables = {}, .dropped = {}, .measured_from = view.measured_from};
    for (const PageTable& table : view.tables) {
      kept.tables.emplace_back(table.entries().begin(), table.entries().end());
      kept.dropped.push_back(table.dropped());
    }
    step.entries.push_back(std::move(kept));
  }
  steps_.push_back(std::move(step));
  return true;
}

void FakeNode::check_plan(const StepPlan& plan) const {
  std::int64_t rows = 0, logit_rows = 0;
  std::set<SequenceId> ids;
  for (const StepEntry& entry : plan.entries) {
    MILLRACE_CHECK(entry.rows >= 1 && entry.first_position >= 0, "{} rows from {}", entry.rows, entry.first_position);
    MILLRACE_CHECK(ids.insert(entry.id).second, "sequence {} is planned twice", entry.id);
    rows += entry.rows;
    logit_rows += entry.all_logits ? entry.rows : entry.samples ? 1 : 0;
  }
  MILLRACE_CHECK(rows <= limits_.max_batch_tokens, "{} rows", rows);
  MILLRACE_CHECK(logit_rows <= limits_.max_logit_rows, "{} logit rows", logit_rows);
  MILLRACE_CHECK(plan.entries.size() <= static_cast<std::size_t>(limits_.max_sequences), "{} entries",
                 plan.entries.size());
}

std::vector<std::uint64_t>& FakeNode::memory_of(std::size_t group) {
  return memory_[limits_.kv.pools.empty() ? group : static_cast<std::size_t>(limits_.kv.pools[group])];
}

std::uint64_t& FakeNode::slot(std::size_t group, std::int32_t page, std::int64_t position) {
  const std::int64_t page_tokens = limits_.kv.page_tokens;
  return memory_of(group).at(static_cast<std::size_t>(page * page_tokens + position % page_tokens));
}

std::uint64_t FakeNode::read(std::size_t group, std::int32_t page, std::int64_t position) {
  return slot(group, page, position) ^ of_group(group);
}

std::vector<SequenceId> FakeNode::run() {
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  copy(step.plan);
  for (std::size_t e = 0; e < step.entries.size(); ++e) {
    const StepEntry& planned = step.plan.entries[e];
    const Entry& entry = step.entries[e];
    for (std::int64_t row = planned.first_position; row < planned.first_position + planned.rows; ++row) {
      MILLRACE_CHECK(row < static_cast<std::int64_t>(entry.sequence->tokens.size()), "a row of no token yet");
      for (std::size_t g = 0; g < entry.tables.size(); ++g) {
        slot(g, page_of(entry, g, row), row) = entry.sequence->chain[static_cast<std::size_t>(row)] ^ of_group(g);
      }
    }
  }
  std::vector<std::int32_t> sampled;
  std::vector<std::uint64_t> last(step.entries.size());
  PageMasses masses;
  std::size_t most_pages = 0;
  for (const Entry& entry : step.entries) {
    for (const auto& table : entry.tables) most_pages = std::max(most_pages, table.size());
  }
  masses.reset(limits_.kv.windows.size(), std::vector(step.entries.size(), static_cast<std::int64_t>(most_pages)));
  for (std::size_t e = 0; e < step.entries.size(); ++e) {
    const StepEntry& planned = step.plan.entries[e];
    const Entry& entry = step.entries[e];
    const std::int64_t end = planned.first_position + planned.rows;
    for (std::int64_t row = planned.first_position; row < end; ++row) {
      look(entry, row);
      if (row >= entry.measured_from) measure(entry, e, row, masses);
    }
    last[e] = read(0, page_of(entry, 0, end - 1), end - 1);
    if (entry.sequence->policy.keep) last[e] = mix(last[e], kept(entry));
    rows_run_ += planned.rows;
  }
  for (std::size_t e = 0; e < step.entries.size(); ++e) {
    const StepEntry& planned = step.plan.entries[e];
    FakeSequence& sequence = *step.entries[e].sequence;
    const std::int64_t end = planned.first_position + planned.rows;
    if (planned.all_logits && planned.first_position <= sequence.prompt_logits) {
      sequence.prompt_logits = std::max(sequence.prompt_logits, end);
    }
    sequence.prompt_done = sequence.prompt_done || end >= static_cast<std::int64_t>(sequence.spec.tokens.size());
    if (!planned.samples) continue;
    MILLRACE_CHECK(end == static_cast<std::int64_t>(sequence.tokens.size()), "sampled behind {} of {} tokens", end,
                   sequence.tokens.size());
    sampled.push_back(fake_sample(last[e], sequence.seed));
    sequence.append(sampled.back());
  }
  scheduler_.commit(step.plan, sampled, &masses);
  std::vector<SequenceId> completed;
  for (const StepEntry& entry : step.plan.entries) {
    const auto found = alive_.find(entry.id);
    if (found != alive_.end() && found->second->complete()) completed.push_back(entry.id);
  }
  return completed;
}

std::vector<SequenceId> FakeNode::fail() {
  const Step step = std::move(steps_.front());
  steps_.clear();
  copy(step.plan);
  std::vector<SequenceId> ids;
  for (std::size_t e = 0; e < step.entries.size(); ++e) {
    const StepEntry& planned = step.plan.entries[e];
    for (std::int64_t row = planned.first_position; row < planned.first_position + planned.rows; ++row) {
      for (std::size_t g = 0; g < step.entries[e].tables.size(); ++g) {
        slot(g, page_of(step.entries[e], g, row), row) = random_();
      }
    }
    if (alive_.contains(planned.id)) ids.push_back(planned.id);
  }
  scheduler_.abandon(step.plan);
  return ids;
}

void FakeNode::copy(const StepPlan& plan) {
  const auto page_tokens = static_cast<std::size_t>(limits_.kv.page_tokens);
  for (const PageCopy& copy : plan.copies) {
    const auto begin = memory_of(static_cast<std::size_t>(copy.group)).begin();
    std::copy_n(begin + copy.from * static_cast<std::int64_t>(page_tokens), page_tokens,
                begin + copy.to * static_cast<std::int64_t>(page_tokens));
  }
}

std::int32_t FakeNode::page_of(const Entry& entry, std::size_t group, std::int64_t position) const {
  return entry.tables[group].at(static_cast<std::size_t>(position / limits_.kv.page_tokens - entry.dropped[group]));
}

/// What a row gives to the pages, by what it finds in them.
void FakeNode::measure(const Entry& entry, std::size_t index, std::int64_t row, PageMasses& masses) {
  for (std::size_t g = 0; g < entry.tables.size(); ++g) {
    if (limits_.kv.windows[g] > 0) continue;
    for (std::size_t p = 0; p < entry.tables[g].size(); ++p) {
      const auto place = static_cast<std::int64_t>(p) + entry.dropped[g];
      if (place * limits_.kv.page_tokens > row) break;
      masses.of(g, index)[p] +=
          fake_mass(entry.sequence->chain[static_cast<std::size_t>(row)], read(g, entry.tables[g][p], 0));
    }
  }
}

/// Which pages the last row of a step sees.
std::uint64_t FakeNode::kept(const Entry& entry) {
  std::uint64_t all = 0;
  for (std::size_t g = 0; g < entry.tables.size(); ++g) {
    if (limits_.kv.windows[g] > 0) continue;
    for (const std::int32_t page : entry.tables[g]) all = mix(all, read(g, page, 0));
  }
  return all;
}

/// Of which not all positions are there: those that are must be its own, in order, to the last.
void FakeNode::look_at_kept(const Entry& entry, std::size_t group, std::int64_t row) {
  const std::vector<std::uint64_t>& chain = entry.sequence->chain;
  const std::int64_t page_tokens = limits_.kv.page_tokens;
  std::int64_t number = 0;
  for (const std::int32_t page : entry.tables[group]) {
    while (number * page_tokens <= row &&
           read(group, page, 0) != chain[static_cast<std::size_t>(number * page_tokens)]) {
      ++number;
    }
    if (number * page_tokens > row) break;  // behind the row
    for (std::int64_t position = number * page_tokens;
         position <= std::min(row, number * page_tokens + page_tokens - 1); ++position) {
      MILLRACE_CHECK(read(group, page, position) == chain[static_cast<std::size_t>(position)],
                     "row {} finds at position {} of group {}, in page {}, what is not of its own past", row, position,
                     group, page);
    }
    ++number;
  }
  MILLRACE_CHECK(number - 1 == row / page_tokens, "row {} finds {} pages, and not its own", row, number);
}

void FakeNode::look(const Entry& entry, std::int64_t row) {
  for (std::size_t g = 0; g < entry.tables.size(); ++g) {
    if (entry.dropped[g] > 0) {
      look_at_kept(entry, g, row);
      continue;
    }
    const std::int64_t window = limits_.kv.windows[g];
    const std::int64_t first = window > 0 ? std::max<std::int64_t>(0, row - window + 1) : 0;
    if (look_everywhere_ || row - first < 8) {
      for (std::int64_t position = first; position <= row; ++position) look_at(entry, g, position, row);
      continue;
    }
    const auto seen = static_cast<std::uint64_t>(row - first + 1);
    for (const std::int64_t position : {first, row - 1, row, first + static_cast<std::int64_t>(random_() % seen),
                                        first + static_cast<std::int64_t>(random_() % seen)}) {
      look_at(entry, g, position, row);
    }
  }
}

void FakeNode::look_at(const Entry& entry, std::size_t group, std::int64_t position, std::int64_t row) {
  const std::int32_t page = entry.tables[group].at(static_cast<std::size_t>(position / limits_.kv.page_tokens));
  MILLRACE_CHECK(page >= 0, "row {} has no page for position {} of group {}", row, position, group);
  MILLRACE_CHECK(read(group, page, position) == entry.sequence->chain[static_cast<std::size_t>(position)],
                 "row {} finds at position {} of group {}, in page {}, what is not of its own past", row, position,
                 group, page);
}

}  // namespace millrace
