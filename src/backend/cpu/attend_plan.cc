#include "backend/cpu/attend_plan.h"

#include <algorithm>

#include "backend/selected_pages.h"
#include "core/check.h"

namespace millrace {

namespace {

constexpr std::int64_t kAttendQueries = 128;  // of a task, about; more share the work of arranging keys

std::span<const std::int32_t> page_table(const SequenceRows& sequence, const AttendArgs& args) {
  return sequence.page_tables[static_cast<std::size_t>(args.kv.group)];
}

/// Every position that a row of the sequence sees must have a page: kernels trust the table.
void check_pages(const SequenceRows& sequence, const AttendArgs& args) {
  const std::int64_t first =
      args.window > 0 ? std::max<std::int64_t>(0, sequence.first_place(args.kv.group) - args.window + 1) : 0;
  const std::int64_t last = sequence.first_place(args.kv.group) + sequence.rows - 1;
  const auto table = page_table(sequence, args);
  for (std::int64_t page = first / args.kv.page_tokens; page <= last / args.kv.page_tokens; ++page) {
    const auto index = static_cast<std::size_t>(page);
    MILLRACE_CHECK(index < table.size() && table[index] >= 0, "position {} has no page", page * args.kv.page_tokens);
  }
}

std::int64_t count_rows(std::span<const SequenceRows> sequences) {
  std::int64_t rows = 0;
  for (const SequenceRows& sequence : sequences) rows += sequence.rows;
  return rows;
}

/// Into how many blocks to cut the rows of sequences that share a prefix; 0 where each had better read it alone.
///
/// More blocks keep more threads busy and read the prefix more often. Time is counted in queries that a thread takes
/// over the prefix one after the other; to fetch the keys and values for them costs about as much as kFetch more. That
/// comes from times of 1 to 16 rows of 3 queries behind 2,048 tokens with AVX2 (577 + 46 a query in f32, 224 + 43 in
/// bf16), taken when keys had to be transposed as well. Less than an eighth saved is not worth the second round of
/// tasks.
std::int64_t shared_blocks(std::span<const SequenceRows> sequences, const AttendArgs& args, std::int64_t threads) {
  constexpr std::int64_t kFetch = 8;
  const std::int64_t group = args.heads / args.kv_heads, most_rows = attend_block_rows(args);
  std::int64_t alone = 0, longest = 0;
  for (const SequenceRows& sequence : sequences) {
    alone += (sequence.rows + most_rows - 1) / most_rows * kFetch + sequence.rows * group;
    longest = std::max(longest, kFetch + std::min<std::int64_t>(sequence.rows, most_rows) * group);
  }
  std::int64_t best = 0, best_time = std::max(alone * args.kv_heads / threads, longest) * 7 / 8;
  const std::int64_t rows = count_rows(sequences), fewest = (rows + most_rows - 1) / most_rows;
  for (std::int64_t blocks = fewest; blocks > 0 && blocks <= std::max(fewest, std::min(rows, threads)); ++blocks) {
    const std::int64_t rounds = (blocks * args.kv_heads + threads - 1) / threads;
    const std::int64_t time = rounds * (kFetch + (rows + blocks - 1) / blocks * group);
    if (time >= best_time) continue;
    best = blocks;
    best_time = time;
  }
  return best;
}

}  // namespace

std::int64_t attend_block_rows(const AttendArgs& args) {
  return std::max<std::int64_t>(1, kAttendQueries / (args.heads / args.kv_heads));
}

void AttendPlan::make(const ForwardBatch& batch, const AttendArgs& args, int threads) {
  first_.clear();
  resumed_.clear();
  shared_tokens_.assign(batch.sequences.size(), 0);
  for (const SequenceRows& sequence : batch.sequences) {
    if (sequence.rows > 0) check_pages(sequence, args);
  }
  for (const SharedPrefix& set : batch.shared) {
    // Within a window rows see different parts of a prefix, and it is short anyway.
    // Who is measured reads alone: a task must see all that its rows do.
    if (set.group == args.kv.group && args.window == 0 && batch.masses == nullptr)
      add_shared(batch, args, set, threads);
  }
  // The last rows of a prompt have the most to read.
  const std::int64_t block_rows = attend_block_rows(args);
  for (std::size_t s = batch.sequences.size(); s-- > 0;) {
    const SequenceRows& sequence = batch.sequences[s];
    if (turns_queries(args, sequence)) continue;  // MovedAttender
    const std::int64_t begin = shared_tokens_[s];
    std::vector<AttendTask>& blocks = begin > 0 ? resumed_ : first_;
    const RowParts parts = parts_of(args, sequence);
    for (std::int64_t end = parts.answer_all; end > 0;) {
      if (end == parts.prompt_end) end = parts.prompt_all;  // what is between them reads blocks
      if (end == 0) break;
      const std::int64_t from = end > parts.prompt_end ? parts.prompt_end : 0;
      const std::int64_t first = std::max(from, (end - 1) / block_rows * block_rows);
      blocks.push_back({.args = &args,
                        .page_table = page_table(sequence, args).data(),
                        .batch_row = sequence.first_row + first,
                        .position = sequence.first_place(args.kv.group) + first,
                        .rows = end - first,
                        .begin = begin,
                        .end = sequence.first_place(args.kv.group) + end,
                        .resume = begin > 0,
                        .state = state_.data()});
      end = first;
    }
  }
}

void AttendPlan::add_shared(const ForwardBatch& batch, const AttendArgs& args, const SharedPrefix& set, int threads) {
  const auto first = static_cast<std::size_t>(set.first_sequence), count = static_cast<std::size_t>(set.sequences);
  MILLRACE_CHECK(set.first_sequence >= 0 && set.sequences > 0 && first + count <= batch.sequences.size(),
                 "sequences {} + {} of {} share a prefix", set.first_sequence, set.sequences, batch.sequences.size());
  const std::int64_t tokens = set.tokens / kAttentionChunk * kAttentionChunk;
  const std::span<const SequenceRows> sequences(batch.sequences.data() + first, count);
  const std::int64_t blocks = shared_blocks(sequences, args, threads), rows = count_rows(sequences);
  const bool all_read_it =
      std::ranges::all_of(sequences, [&](const SequenceRows& sequence) { return reads_all(args, sequence); });
  if (tokens == 0 || blocks == 0 || !all_read_it) return;

  const auto pages = (tokens + args.kv.page_tokens - 1) / args.kv.page_tokens;
  const auto table = page_table(sequences.front(), args);
  for (std::size_t i = 0; i < count; ++i) {
    const auto other = page_table(sequences[i], args);
    MILLRACE_CHECK(
        sequences[i].first_place(args.kv.group) >= tokens && static_cast<std::int64_t>(other.size()) >= pages &&
            std::equal(other.begin(), other.begin() + pages, table.begin()) && shared_tokens_[first + i] == 0,
        "sequence {} does not share {} tokens", first + i, tokens);
    shared_tokens_[first + i] = tokens;
  }
  state_.resize(static_cast<std::size_t>(batch.rows() * args.heads * 2));

  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t row = rows * b / blocks;
    first_.push_back({.args = &args,
                      .page_table = table.data(),
                      .batch_row = sequences.front().first_row + row,
                      .position = tokens,
                      .rows = rows * (b + 1) / blocks - row,
                      .begin = 0,
                      .end = tokens,
                      .suspend = true,
                      .state = state_.data()});
  }
}

}  // namespace millrace
