#include "backend/cpu/moved_attender.h"

#include <algorithm>
#include <limits>

#include "backend/cpu/parallel.h"
#include "backend/selected_pages.h"
#include "backend/turned_queries.h"

namespace millrace {

void MovedAttender::attend(const ForwardBatch& batch, const AttendArgs& args, AttendKernel kernel) {
  rows_.clear();
  std::int64_t products = 0;
  for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    if (!turns_queries(args, sequence)) continue;
    for (std::int64_t i = 0; i < sequence.rows; ++i) {
      rows_.push_back({sequence.first_row + i, sequence.first_place(args.kv.group) + i, s});
      reads_->add(static_cast<double>((rows_.back().place + 1) * args.heads));
      products += 2 * rows_.back().place * args.heads * args.head_dim;
    }
  }
  if (rows_.empty()) return;
  args_ = args;
  args_.skip_margin = std::numeric_limits<float>::infinity();
  threads_.resize(static_cast<std::size_t>(pool_->threads()));
  state_.resize(static_cast<std::size_t>(batch.rows() * args.heads * 2));
  const auto tasks = static_cast<std::int64_t>(rows_.size()) * args.kv_heads;
  for_each(*pool_, tasks, products / tasks, kParallelProducts, [&](std::int64_t task, int thread) {
    run(batch, kernel, rows_[static_cast<std::size_t>(task / args.kv_heads)],
        static_cast<std::int32_t>(task % args.kv_heads), thread);
  });
}

void MovedAttender::run(const ForwardBatch& batch, AttendKernel kernel, const Row& row, std::int32_t kv_head,
                        int thread) {
  const AttendArgs& args = args_;
  const SequenceRows& sequence = batch.sequences[row.sequence];
  const auto moved = sequence.moved_in(args.kv.group);
  const std::int64_t page_tokens = args.kv.page_tokens, last_entry = row.place / page_tokens,
                     group = args.heads / args.kv_heads;
  const std::int32_t* const table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)].data();
  const auto end_of = [&](std::size_t m) {
    return m + 1 == moved.size() ? last_entry + 1 : std::int64_t{moved[m + 1].first};
  };
  const auto chunks_of = [&](std::size_t m) {
    return ((end_of(m) - moved[m].first) * page_tokens + kAttentionChunk - 1) / kAttentionChunk;
  };
  std::int64_t chunks = 0;
  for (std::size_t m = 0; m < moved.size(); ++m) chunks += chunks_of(m);

  Thread& own = threads_[static_cast<std::size_t>(thread)];
  own.turned.resize(static_cast<std::size_t>(group * args.head_dim));
  own.entries.clear();
  AttendTask task{.args = &args,
                  .batch_row = row.row,
                  .rows = 1,
                  .begin = 0,
                  .state = state_.data(),
                  .kv_head = kv_head,
                  .scratch = scratch_->of(thread)};
  AttendMasses* const masses = masses_->of(task, chunks, thread);
  task.masses = masses;
  for (std::size_t m = 0; m < moved.size(); ++m) {
    const bool last = m + 1 == moved.size();
    const std::int64_t first = moved[m].first, end = end_of(m);
    task.page_table = table + first;
    task.end = last ? row.place + 1 - first * page_tokens : (end - first) * page_tokens;
    task.position = task.end - 1;
    task.resume = m > 0;
    task.suspend = !last;
    task.turned = last ? nullptr : own.turned.data();
    for (std::int64_t g = 0; g < group && !last; ++g) {
      turn_query(batch, row.sequence, *args.turns, moved[m].by,
                 args.q + row.row * args.q_stride + (kv_head * group + g) * args.head_dim, args.head_dim,
                 own.turned.data() + g * args.head_dim);
    }
    kernel(task);
    if (masses == nullptr) continue;
    masses->first_chunk += chunks_of(m);
    for (std::int64_t entry = first; entry < end; ++entry) own.entries.push_back(static_cast<std::int32_t>(entry));
    own.entries.resize(static_cast<std::size_t>(masses->first_chunk * (kAttentionChunk / page_tokens)), -1);
  }
  if (masses != nullptr) masses_->add(task, *masses, own.entries, thread);
}

}  // namespace millrace
