#include "backend/cpu/attention.h"

#include <algorithm>
#include <atomic>

#include "backend/cpu/parallel.h"
#include "core/check.h"

namespace millrace {

void Attention::attend(const ForwardBatch& batch, const AttendArgs& args) {
  plan_.make(batch, args, pool_->threads());
  const std::int64_t group = args.heads / args.kv_heads;
  scratch_->reserve(std::max(attend_scratch(attend_block_rows(args) * group, args.head_dim, 1),
                             attend_scratch(group, args.head_dim, kAttendHeads)));
  begin_masses(batch, args);
  attend_blocks(args, plan_.first());
  attend_blocks(args, plan_.resumed());
  if (args.prompt_selection != nullptr) {
    block_selector_.begin(batch, args, rounds(args.kv.format), attend_block_rows(args));
    for (auto tasks = block_selector_.next(); !tasks.empty(); tasks = block_selector_.next())
      attend_chosen(args, tasks);
  }
  if (args.hyper != nullptr) hyper_.attend(batch, args, kernel(args), attend_block_rows(args));
  if (args.selection != nullptr) {
    page_selector_.begin(batch, args);
    for (auto tasks = page_selector_.next(); !tasks.empty(); tasks = page_selector_.next()) attend_chosen(args, tasks);
  }
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

void Attention::begin_masses(const ForwardBatch& batch, const AttendArgs& args) {
  measured_ = nullptr;
  if (batch.masses == nullptr || args.window > 0) return;
  MILLRACE_CHECK(args.kv.page_tokens == 16, "attention is measured by pages of 16, not {}", args.kv.page_tokens);
  measured_ = &batch;
  sequence_of_row_.resize(static_cast<std::size_t>(batch.rows()));
  for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    std::fill_n(sequence_of_row_.begin() + sequence.first_row, sequence.rows, static_cast<std::int32_t>(s));
  }
  mass_scratch_.resize(static_cast<std::size_t>(pool_->threads()));
}

void Attention::run(AttendTask task, int thread) {
  const AttendKernel of_level = kernel(*task.args);
  task.scratch = scratch_->of(thread);
  const auto last = static_cast<std::size_t>(task.batch_row + task.rows - 1);
  const SequenceRows* sequence =
      measured_ == nullptr ? nullptr : &measured_->sequences[static_cast<std::size_t>(sequence_of_row_[last])];
  const bool measured =
      sequence != nullptr &&
      sequence->first_position + static_cast<std::int64_t>(last) - sequence->first_row >= sequence->measured_from;
  if (!measured) return of_level(task);
  MassScratch& scratch = mass_scratch_[static_cast<std::size_t>(thread)];
  const std::int64_t chunks = (task.end + kAttentionChunk - 1) / kAttentionChunk;
  const std::int64_t queries = task.kv_heads * task.rows * (task.args->heads / task.args->kv_heads);
  scratch.largest.resize(std::max(scratch.largest.size(), static_cast<std::size_t>(queries * chunks)));
  scratch.pages.resize(scratch.largest.size() * (kAttentionChunk / 16));
  const AttendMasses masses{.pages = scratch.pages.data(),
                            .largest = scratch.largest.data(),
                            .chunks = chunks,
                            .first_kv_head = task.kv_head};
  task.masses = &masses;
  of_level(task);
  add_masses(task, static_cast<std::size_t>(sequence_of_row_[last]), thread);
}

void Attention::add_masses(const AttendTask& task, std::size_t sequence, int thread) {
  const AttendArgs& args = *task.args;
  const SequenceRows& rows = measured_->sequences[sequence];
  MassScratch& scratch = mass_scratch_[static_cast<std::size_t>(thread)];
  const std::int64_t pages = (task.end + 15) / 16, stride = task.masses->chunks * (kAttentionChunk / 16);
  const std::int64_t queries = task.rows * (args.heads / args.kv_heads);
  scratch.sums.assign(static_cast<std::size_t>(pages), 0);
  for (std::int64_t q = 0; q < task.kv_heads * queries; ++q) {
    const std::int64_t row = task.batch_row + q % queries / (args.heads / args.kv_heads);
    if (rows.first_position + row - rows.first_row < rows.measured_from) continue;
    const float* parts = task.masses->pages + q * stride;
    for (std::int64_t p = 0; p < pages; ++p) scratch.sums[static_cast<std::size_t>(p)] += mass_units(parts[p]);
  }
  const std::span<std::uint64_t> target = measured_->masses->of(static_cast<std::size_t>(args.kv.group), sequence);
  for (std::int64_t p = 0; p < pages; ++p) {
    const auto entry = static_cast<std::size_t>(task.entries == nullptr ? p : std::int64_t{task.entries[p]});
    std::atomic_ref<std::uint64_t>(target[entry])
        .fetch_add(scratch.sums[static_cast<std::size_t>(p)], std::memory_order_relaxed);
  }
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
  for_each(*pool_, static_cast<std::int64_t>(tasks.size()), products, kParallelProducts,
           [&](std::int64_t index, int thread) { run(tasks[static_cast<std::size_t>(index)], thread); });
}

}  // namespace millrace
