#include "backend/cpu/attention.h"

#include <algorithm>

#include "backend/cpu/parallel.h"
#include "core/check.h"

namespace millrace {

void Attention::attend(const ForwardBatch& batch, const AttendArgs& args) {
  plan_.make(batch, args, pool_->threads());
  const std::int64_t group = args.heads / args.kv_heads;
  scratch_->reserve(std::max(attend_scratch(attend_block_rows(args) * group, args.head_dim, 1),
                             attend_scratch(group, args.head_dim, kAttendHeads)));
  masses_.begin(batch, args, pool_->threads());
  reads_.begin(batch, args, pool_->threads());
  attend_blocks(args, plan_.first());
  attend_blocks(args, plan_.resumed());
  if (args.turns != nullptr) moved_.attend(batch, args, kernel(args));
  if (args.prompt_selection != nullptr) {
    block_selector_.begin(batch, args, rounds(args.kv.format), attend_block_rows(args));
    for (auto tasks = block_selector_.next(); !tasks.empty(); tasks = block_selector_.next())
      attend_chosen(args, tasks);
    reads_.add(block_selector_.scores_read());
  }
  if (args.hyper != nullptr) reads_.add(hyper_.attend(batch, args, kernel(args), attend_block_rows(args)));
  if (args.selection != nullptr) {
    page_selector_.begin(batch, args);
    for (auto tasks = page_selector_.next(); !tasks.empty(); tasks = page_selector_.next()) attend_chosen(args, tasks);
    reads_.add(page_selector_.bounds_read());
  }
  reads_.end();
}

void Attention::bound_keys(const ForwardBatch& batch, const RopeStoreArgs& args) {
  const KvLayer& kv = args.kv;
  bound_tasks_.clear();
  for (const SequenceRows& sequence : batch.sequences) {
    const std::int64_t full = (sequence.first_place(kv.group) + sequence.rows) / kv.page_tokens;
    const auto table = sequence.page_tables[static_cast<std::size_t>(kv.group)];
    for (std::int64_t page = sequence.first_place(kv.group) / kv.page_tokens; sequence.rows > 0 && page < full;
         ++page) {
      bound_tasks_.push_back({.kv = &kv,
                              .kv_heads = args.kv_heads,
                              .head_dim = args.head_dim,
                              .page = table[static_cast<std::size_t>(page)]});
    }
  }
  const std::int64_t numbers = std::int64_t{args.kv_heads} * args.head_dim * kv.page_tokens;
  for_each(*pool_, static_cast<std::int64_t>(bound_tasks_.size()), numbers, kParallelElements,
           [&](std::int64_t task, int) { kernels_->bound_keys(bound_tasks_[static_cast<std::size_t>(task)]); });
}

void Attention::run(AttendTask task, int thread) {
  task.scratch = scratch_->of(thread);
  const AttendMasses* const masses = masses_.of(task, (task.end + kAttentionChunk - 1) / kAttentionChunk, thread);
  task.masses = masses;
  task.left_out = reads_.left_out(thread);
  kernel (*task.args)(task);
  if (masses != nullptr) masses_.add(task, *masses, thread);
}

/// Kv heads that a task of a row takes. What a page has of neighbouring heads lies side by side, and memory is read
/// faster in longer pieces; but no thread should be without work.
std::int32_t Attention::heads_together(std::int64_t blocks, std::int32_t kv_heads) const {
  for (std::int32_t together = kAttendHeads; together > 1; together /= 2) {
    const std::int64_t tasks = blocks * (kv_heads / together), threads = pool_->threads();
    if (kv_heads % together == 0 && (tasks == threads || tasks >= 4 * threads)) return together;
  }
  return 1;
}

/// The blocks, each for every kv head.
void Attention::attend_blocks(const AttendArgs& args, std::span<const AttendTask> blocks) {
  const auto count = static_cast<std::int64_t>(blocks.size());
  if (count == 0) return;
  const bool single = std::ranges::all_of(blocks, [](const AttendTask& block) { return block.rows == 1; });
  const std::int32_t together = single ? heads_together(count, args.kv_heads) : 1;
  const std::int64_t parts = args.kv_heads / together, tasks = count * parts;
  std::int64_t pairs = 0;  // of a query and a key, about
  for (const AttendTask& block : blocks) {
    reads_.add(block, args.heads);
    const std::int64_t seen = block.end - block.begin;
    pairs += block.rows * (args.window > 0 ? std::min(args.window, seen) : seen);
  }
  for_each(*pool_, tasks, 2 * pairs * args.heads * args.head_dim / tasks, kParallelProducts,
           [&](std::int64_t index, int thread) {
             AttendTask task = blocks[static_cast<std::size_t>(index / parts)];
             task.kv_head = static_cast<std::int32_t>(index % parts) * together;
             task.kv_heads = together;
             run(task, thread);
           });
}

/// Rows that have a page table of their own, and for each kv head another.
void Attention::attend_chosen(const AttendArgs& args, std::span<const AttendTask> tasks) {
  const AttendTask& first = tasks.front();
  const std::int64_t products = 2 * first.rows * first.end * args.heads / args.kv_heads * args.head_dim;
  for (const AttendTask& task : tasks) reads_.add(task, args.heads / args.kv_heads);
  for_each(*pool_, static_cast<std::int64_t>(tasks.size()), products, kParallelProducts,
           [&](std::int64_t index, int thread) { run(tasks[static_cast<std::size_t>(index)], thread); });
}

}  // namespace millrace
