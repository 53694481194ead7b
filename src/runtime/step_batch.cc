#include "runtime/step_batch.h"

#include <utility>

#include "core/check.h"

namespace millrace {

ForwardBatch make_forward_batch(const StepPlan& plan, const std::function<SequenceView(const StepEntry&)>& view) {
  ForwardBatch batch;
  batch.sequences.reserve(plan.entries.size());
  for (const StepEntry& entry : plan.entries) {
    const SequenceView sequence = view(entry);
    SequenceRows rows{.first_row = static_cast<std::int32_t>(batch.rows()),
                      .rows = entry.rows,
                      .first_position = entry.first_position,
                      .admission_length = sequence.prompt_tokens,
                      .answer_begin = sequence.answer_begin};
    rows.page_tables.reserve(sequence.tables.size());
    for (const PageTable& table : sequence.tables) rows.page_tables.push_back(table.entries());
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
  return batch;
}

UnscheduledSequences::UnscheduledSequences(std::int32_t pages, std::int32_t page_tokens,
                                           std::vector<std::int64_t> windows)
    : allocator_(std::make_unique<KvAllocator>(KvLimits{
          .pages = pages, .page_tokens = page_tokens, .windows = std::move(windows), .prefix_cache = false})) {}

SequenceId UnscheduledSequences::add(std::vector<std::int32_t> tokens, std::int64_t prompt_tokens,
                                     std::optional<std::int64_t> answer_begin) {
  sequences_.push_back({std::move(tokens), prompt_tokens, answer_begin.value_or(prompt_tokens), allocator_->make()});
  return sequences_.size() - 1;
}

ForwardBatch UnscheduledSequences::batch(const StepPlan& plan) {
  for (const StepEntry& entry : plan.entries) {
    SequenceKv& kv = sequences_.at(entry.id).kv;
    allocator_->trim(kv, entry.first_position);
    const bool grown = allocator_->grow(kv, entry.first_position + entry.rows);
    MILLRACE_CHECK(grown, "no pages for sequence {}", entry.id);
  }
  return make_forward_batch(plan, [this](const StepEntry& entry) -> SequenceView {
    const Sequence& sequence = sequences_.at(entry.id);
    return {sequence.tokens, sequence.prompt_tokens, sequence.kv.tables, sequence.answer_begin};
  });
}

}  // namespace millrace
