#include "runtime/step_batch.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace millrace {

ForwardBatch make_forward_batch(const StepPlan& plan, std::int32_t page_tokens,
                                const std::function<SequenceView(const StepEntry&)>& view, PageMasses& masses) {
  ForwardBatch batch;
  std::vector<std::int64_t> pages;  // of each sequence that is measured
  bool measured = false;
  batch.sequences.reserve(plan.entries.size());
  for (const StepEntry& entry : plan.entries) {
    const SequenceView sequence = view(entry);
    SequenceRows rows{.first_row = static_cast<std::int32_t>(batch.rows()),
                      .rows = entry.rows,
                      .first_position = entry.first_position,
                      .admission_length = sequence.prompt_tokens,
                      .answer_begin = sequence.answer_begin,
                      .measured_from = sequence.measured_from};
    rows.page_tables.reserve(sequence.tables.size());
    pages.push_back(0);
    for (const PageTable& table : sequence.tables) {
      rows.page_tables.push_back(table.entries());
      if (rows.measured()) pages.back() = std::max(pages.back(), std::int64_t{std::ssize(table.entries())});
    }
    if (std::ranges::any_of(sequence.tables, [](const PageTable& table) { return table.dropped() > 0; })) {
      for (const PageTable& table : sequence.tables) rows.dropped.push_back(table.dropped() * page_tokens);
    }
    for (const std::vector<MovedPages>& moved : sequence.moved) {
      rows.moved.emplace_back(moved);
      for (const MovedPages& some : moved) {
        if (some.by > 0) batch.turns.push_back(some.by);
      }
    }
    measured = measured || rows.measured();
    for (std::int32_t r = 0; r < entry.rows; ++r) {
      const std::int64_t position = entry.first_position + r;
      if (entry.all_logits || (entry.samples && r + 1 == entry.rows)) {
        batch.logit_rows.push_back(static_cast<std::int32_t>(batch.rows()));
      }
      batch.token_ids.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      batch.positions.push_back(position);
    }
    batch.sequences.push_back(std::move(rows));
  }
  std::ranges::sort(batch.turns);
  batch.turns.erase(std::unique(batch.turns.begin(), batch.turns.end()), batch.turns.end());
  if (measured) {
    const std::size_t groups = batch.sequences.front().page_tables.size();
    masses.reset(groups, pages);
    batch.masses = &masses;
  }
  return batch;
}

UnscheduledSequences::UnscheduledSequences(KvLimits limits, std::optional<KvRetention> keep)
    : limits_(std::move(limits)), keep_(keep), masses_(std::make_unique<PageMasses>()) {
  limits_.prefix_cache = false;
  allocator_ = std::make_unique<KvAllocator>(limits_);
}

SequenceId UnscheduledSequences::add(std::vector<std::int32_t> tokens, std::int64_t prompt_tokens,
                                     std::optional<std::int64_t> answer_begin, std::int64_t pinned_tokens) {
  sequences_.push_back(
      {std::move(tokens), prompt_tokens, answer_begin.value_or(prompt_tokens), allocator_->make(), std::nullopt});
  Sequence& added = sequences_.back();
  if (keep_) added.retention.emplace(*keep_, limits_.windows, limits_.page_tokens, added.answer_begin, pinned_tokens);
  return sequences_.size() - 1;
}

std::int64_t UnscheduledSequences::step_end(SequenceId id) {
  settle();
  const std::optional<Retention>& retention = sequences_.at(id).retention;
  return retention ? retention->next_decision() : Retention::kNever;
}

void UnscheduledSequences::settle() {
  for (std::size_t e = 0; e < ran_.size(); ++e) {
    Sequence& sequence = sequences_.at(ran_[e].id);
    if (!sequence.retention) continue;
    const std::int64_t end = ran_[e].first_position + ran_[e].rows;
    if (keep_->measures()) sequence.retention->add(*masses_, e, ran_[e].first_position, end);
    if (end == sequence.retention->next_decision()) {
      allocator_->drop(sequence.kv, sequence.retention->decide(), {});
    }
  }
  ran_.clear();
}

ForwardBatch UnscheduledSequences::batch(const StepPlan& plan) {
  settle();
  ran_ = plan.entries;  // once it has run
  for (const StepEntry& entry : plan.entries) {
    SequenceKv& kv = sequences_.at(entry.id).kv;
    const std::optional<Retention>& retention = sequences_.at(entry.id).retention;
    const std::int64_t end = entry.first_position + entry.rows;
    MILLRACE_CHECK(!retention || end <= retention->next_decision(), "rows up to {} before what is kept is decided",
                   end);
    allocator_->trim(kv, entry.first_position);
    const bool grown = allocator_->grow(kv, entry.first_position + entry.rows);
    MILLRACE_CHECK(grown, "no pages for sequence {}", entry.id);
  }
  const auto view = [this](const StepEntry& entry) -> SequenceView {
    const Sequence& sequence = sequences_.at(entry.id);
    return {sequence.tokens,
            sequence.prompt_tokens,
            sequence.kv.tables,
            sequence.answer_begin,
            sequence.retention ? sequence.retention->measured_from() : Retention::kNever,
            sequence.retention ? sequence.retention->moved() : std::span<const std::vector<MovedPages>>()};
  };
  return make_forward_batch(plan, limits_.page_tokens, view, *masses_);
}

}  // namespace millrace
