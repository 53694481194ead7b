#include "backend/cpu/page_selector.h"

#include <algorithm>

#include "backend/cpu/parallel.h"
#include "backend/selected_pages.h"
#include "core/check.h"
#include "quant/kv_format.h"

namespace millrace {

namespace {

constexpr std::int64_t kTaskPages = 64;  // whose bounds a task reads at least
// Scores, and entries of page tables, that are kept at a time: 8 MiB and 4 MiB, and more only where one row needs it.
constexpr std::int64_t kMostScores = 1 << 21, kMostEntries = 1 << 20;

}  // namespace

void PageSelector::begin(const ForwardBatch& batch, const AttendArgs& args) {
  args_ = &args;
  rows_.clear();
  done_ = 0;
  pages_ = candidates_ = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    const std::int32_t* table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)].data();
    for (std::int64_t i = parts_of(args, sequence).answer_all; i < sequence.rows; ++i) {
      const std::int64_t position = sequence.first_place(args.kv.group) + i;
      const PageCandidates some = candidates_of(args, sequence, position);
      pages_ = std::max(pages_, some.first + some.chosen + position / args.kv.page_tokens + 1 - some.end);
      candidates_ = std::max(candidates_, some.end - some.first);
      rows_.push_back({sequence.first_row + i, position, table, some});
    }
  }
  MILLRACE_CHECK(rows_.empty() || args.window == 0, "pages are selected in a layer with a window of {}", args.window);
}

std::span<const AttendTask> PageSelector::next() {
  if (done_ == rows_.size()) return {};
  const std::int64_t most = std::max<std::int64_t>(
      1, std::min(kMostScores / (args_->heads * candidates_), kMostEntries / (args_->kv_heads * pages_)));
  const std::size_t count = std::min(rows_.size() - done_, static_cast<std::size_t>(most));
  const std::span<const Row> rows = std::span<const Row>(rows_).subspan(done_, count);
  done_ += count;
  if (args_->selection->choice == PageChoice::quest) score(rows);
  choose(rows);
  return tasks_;
}

double PageSelector::bounds_read() const {
  if (args_->selection->choice != PageChoice::quest) return 0.0;
  std::int64_t pages = 0;
  for (const Row& row : rows_) pages += row.candidates.end - row.candidates.first;
  const auto head_dim = static_cast<std::size_t>(args_->head_dim);
  const double bounds = 2.0 * sizeof(std::uint16_t) * static_cast<double>(kv_bound_numbers(head_dim)),
               position = 2.0 * static_cast<double>(kv_head_bytes(args_->kv.format, head_dim));
  return static_cast<double>(pages * args_->heads) * bounds / position;
}

void PageSelector::score(std::span<const Row> rows) {
  const AttendArgs& args = *args_;
  MILLRACE_CHECK(args.kv.key_bounds != nullptr, "pages are selected in a layer without bounds");
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t scratch = page_score_scratch(args.heads, args.head_dim);
  scores_.resize(static_cast<std::size_t>(count * args.heads * candidates_));
  scratch_.resize(static_cast<std::size_t>(pool_->threads() * scratch));
  // As many tasks as keep the threads busy, no smaller than pays.
  const std::int64_t wanted = (4 * pool_->threads() + count - 1) / count,
                     pieces = std::clamp<std::int64_t>(candidates_ / kTaskPages, 1, wanted),
                     pages = (candidates_ + pieces - 1) / pieces;
  for_each(*pool_, count * pieces, pages * args.heads * args.head_dim, kParallelElements,
           [&](std::int64_t task, int thread) {
             const std::int64_t r = task / pieces, begin = task % pieces * pages;
             const Row& row = rows[static_cast<std::size_t>(r)];
             kernels_->score_pages({.args = &args,
                                    .page_table = row.page_table,
                                    .row = row.row,
                                    .first = row.candidates.first + begin,
                                    .end = std::min(row.candidates.end, row.candidates.first + begin + pages),
                                    .scores = scores_.data() + r * args.heads * candidates_ + begin,
                                    .stride = candidates_,
                                    .scratch = scratch_.data() + thread * scratch});
           });
}

void PageSelector::choose(std::span<const Row> rows) {
  const AttendArgs& args = *args_;
  const std::int64_t group = args.heads / args.kv_heads, tasks = static_cast<std::int64_t>(rows.size()) * args.kv_heads;
  choosers_.resize(static_cast<std::size_t>(pool_->threads()));
  tables_.resize(static_cast<std::size_t>(tasks * pages_));
  entries_.resize(tables_.size());
  tasks_.resize(static_cast<std::size_t>(tasks));
  for_each(*pool_, tasks, (args.selection->mass < 1.0 ? 4 * group : 4) * candidates_, kParallelElements,
           [&](std::int64_t task, int thread) {
             const std::int64_t r = task / args.kv_heads, kv_head = task % args.kv_heads;
             const Row& row = rows[static_cast<std::size_t>(r)];
             const std::int64_t last = row.position / args.kv.page_tokens;
             const bool scored = args.selection->choice == PageChoice::quest;
             const std::vector<std::int32_t>& chosen = choosers_[static_cast<std::size_t>(thread)].choose(
                 *args.selection, row.candidates, last,
                 scored ? scores_.data() + (r * args.heads + kv_head * group) * candidates_ : nullptr, group,
                 candidates_, {row.position, args.layer, static_cast<std::uint32_t>(kv_head)}, args.scale);
             std::int32_t* table = tables_.data() + task * pages_;
             std::int32_t* entries = entries_.data() + task * pages_;
             std::ranges::copy(chosen, entries);
             for (std::size_t p = 0; p < chosen.size(); ++p) table[p] = row.page_table[chosen[p]];
             // The row's own position comes last, at the same place of its page.
             const std::int64_t position =
                 (static_cast<std::int64_t>(chosen.size()) - 1 - last) * args.kv.page_tokens + row.position;
             tasks_[static_cast<std::size_t>(task)] = {.args = &args,
                                                       .page_table = table,
                                                       .batch_row = row.row,
                                                       .position = position,
                                                       .rows = 1,
                                                       .begin = 0,
                                                       .end = position + 1,
                                                       .kv_head = static_cast<std::int32_t>(kv_head),
                                                       .entries = entries};
           });
}

}  // namespace millrace
