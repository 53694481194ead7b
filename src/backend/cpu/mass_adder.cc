#include "backend/cpu/mass_adder.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "core/check.h"

namespace millrace {

namespace {

constexpr std::int64_t kChunkPages = kAttentionChunk / 16;

}  // namespace

void MassAdder::begin(const ForwardBatch& batch, const AttendArgs& args, int threads) {
  batch_ = nullptr;
  if (batch.masses == nullptr || args.window > 0) return;
  MILLRACE_CHECK(args.kv.page_tokens == 16, "attention is measured by pages of 16, not {}", args.kv.page_tokens);
  batch_ = &batch;
  sequence_of_row_.resize(static_cast<std::size_t>(batch.rows()));
  for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    std::fill_n(sequence_of_row_.begin() + sequence.first_row, sequence.rows, static_cast<std::int32_t>(s));
  }
  scratch_.resize(static_cast<std::size_t>(threads));
}

AttendMasses* MassAdder::of(const AttendTask& task, std::int64_t chunks, int thread) {
  if (batch_ == nullptr) return nullptr;
  const auto last = static_cast<std::size_t>(task.batch_row + task.rows - 1);
  const SequenceRows& sequence = batch_->sequences[static_cast<std::size_t>(sequence_of_row_[last])];
  if (sequence.first_position + static_cast<std::int64_t>(last) - sequence.first_row < sequence.measured_from) {
    return nullptr;
  }
  Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
  const std::int64_t queries = task.kv_heads * task.rows * (task.args->heads / task.args->kv_heads);
  scratch.largest.resize(std::max(scratch.largest.size(), static_cast<std::size_t>(queries * chunks)));
  scratch.pages.resize(scratch.largest.size() * static_cast<std::size_t>(kChunkPages));
  scratch.masses = {.pages = scratch.pages.data(),
                    .largest = scratch.largest.data(),
                    .chunks = chunks,
                    .first_kv_head = task.kv_head};
  return &scratch.masses;
}

void MassAdder::add(const AttendTask& task, const AttendMasses& masses, std::span<const std::int32_t> entries,
                    int thread) {
  const AttendArgs& args = *task.args;
  const auto sequence = static_cast<std::size_t>(sequence_of_row_[static_cast<std::size_t>(task.batch_row)]);
  const SequenceRows& rows = batch_->sequences[sequence];
  Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
  const std::int64_t queries = task.rows * (args.heads / args.kv_heads);
  scratch.sums.assign(entries.size(), 0);
  for (std::int64_t q = 0; q < task.kv_heads * queries; ++q) {
    const std::int64_t row = task.batch_row + q % queries / (args.heads / args.kv_heads);
    if (rows.first_position + row - rows.first_row < rows.measured_from) continue;
    const float* parts = masses.pages + q * masses.chunks * kChunkPages;
    for (std::size_t p = 0; p < entries.size(); ++p) scratch.sums[p] += mass_units(parts[p]);
  }
  const std::span<std::uint64_t> target = batch_->masses->of(static_cast<std::size_t>(args.kv.group), sequence);
  for (std::size_t p = 0; p < entries.size(); ++p) {
    if (entries[p] < 0) continue;
    std::atomic_ref<std::uint64_t>(target[static_cast<std::size_t>(entries[p])])
        .fetch_add(scratch.sums[p], std::memory_order_relaxed);
  }
}

void MassAdder::add(const AttendTask& task, const AttendMasses& masses, int thread) {
  const auto pages = static_cast<std::size_t>((task.end + 15) / 16);
  if (task.entries != nullptr) return add(task, masses, {task.entries, pages}, thread);
  std::vector<std::int32_t>& entries = scratch_[static_cast<std::size_t>(thread)].entries;
  entries.resize(pages);
  std::iota(entries.begin(), entries.end(), 0);
  add(task, masses, entries, thread);
}

}  // namespace millrace
