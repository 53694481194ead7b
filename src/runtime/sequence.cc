#include "runtime/sequence.h"

#include <algorithm>

#include "core/check.h"

namespace millrace {

ForwardBatch make_forward_batch(const StepPlan& plan, const std::vector<std::int64_t>& windows, bool all_logits,
                                const std::function<Sequence&(SequenceId)>& find) {
  ForwardBatch batch;
  for (const StepEntry& entry : plan.entries) {
    Sequence& sequence = find(entry.id);
    SequenceRows rows{.first_row = static_cast<std::int32_t>(batch.rows()),
                      .rows = entry.rows,
                      .first_position = entry.first_position,
                      .admission_length = sequence.prompt_tokens};
    for (std::size_t group = 0; group < sequence.tables.size(); ++group) {
      PageTable& table = sequence.tables[group];
      if (windows[group] > 0) {
        // The first row of this step sees positions above first_position - window; what lies below is never read again.
        table.trim_below(std::max<std::int64_t>(0, entry.first_position - windows[group] + 1));
      }
      MILLRACE_CHECK(table.grow(entry.first_position + entry.rows), "sequence {} has no reserved page", entry.id);
      rows.page_tables.push_back(table.entries());
    }
    for (std::int32_t r = 0; r < entry.rows; ++r) {
      const std::int64_t position = entry.first_position + r;
      if (all_logits || (entry.samples && r + 1 == entry.rows)) {
        batch.logit_rows.push_back(static_cast<std::int32_t>(batch.rows()));
      }
      batch.token_ids.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      batch.positions.push_back(position);
    }
    batch.sequences.push_back(std::move(rows));
  }
  return batch;
}

}  // namespace millrace
