#include "backend/cuda/batch_tables.h"

#include <algorithm>
#include <bit>

#include "core/check.h"

namespace millrace::cuda {

namespace {

constexpr std::size_t kTileWords = sizeof(AttendTile) / sizeof(std::int32_t);

void grow(std::size_t& capacity, std::size_t needed) {
  if (needed > capacity) capacity = std::bit_ceil(std::max<std::size_t>(needed, 64));
}

}  // namespace

void BatchTables::make(const ForwardBatch& batch) {
  rows_ = static_cast<std::int32_t>(batch.rows());
  sequences_ = static_cast<std::int32_t>(batch.sequences.size());
  std::size_t groups = 0, pages = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    groups = std::max(groups, sequence.page_tables.size());
    for (const auto table : sequence.page_tables) pages += table.size();
  }
  grow(row_capacity_, static_cast<std::size_t>(rows_));
  grow(sequence_capacity_, static_cast<std::size_t>(sequences_));
  group_capacity_ = std::max(group_capacity_, groups);
  // A tile has at least a row, so there are no more of them than rows.
  sequence_at_ = row_capacity_;
  position_at_ = 2 * row_capacity_;
  logit_rows_at_ = 3 * row_capacity_;
  tiles_at_ = 4 * row_capacity_;
  offsets_at_ = tiles_at_ + kTileWords * row_capacity_;
  pages_at_ = offsets_at_ + group_capacity_ * sequence_capacity_;
  words_.assign(pages_at_ + pages, 0);
  if (words_.size() > capacity_words_) capacity_words_ = std::bit_ceil(words_.size());

  MILLRACE_CHECK(batch.logit_rows.size() <= row_capacity_, "{} logit rows of {}", batch.logit_rows.size(), rows_);
  std::ranges::copy(batch.token_ids, words_.begin());
  logit_row_count_ = batch.logit_rows.size();
  std::ranges::copy(batch.logit_rows, words_.begin() + static_cast<std::ptrdiff_t>(logit_rows_at_));
  last_position_ = 0;
  std::size_t page_at = 0;
  for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    const auto first = static_cast<std::int32_t>(sequence.first_position);
    for (std::int32_t i = 0; i < sequence.rows; ++i) {
      const auto row = static_cast<std::size_t>(sequence.first_row) + static_cast<std::size_t>(i);
      words_[sequence_at_ + row] = static_cast<std::int32_t>(s);
      words_[position_at_ + row] = first + i;
    }
    last_position_ = std::max(last_position_, sequence.first_position + sequence.rows - 1);
    for (std::size_t g = 0; g < sequence.page_tables.size(); ++g) {
      const auto table = sequence.page_tables[g];
      words_[offsets_at_ + g * static_cast<std::size_t>(sequences_) + s] = static_cast<std::int32_t>(page_at);
      std::ranges::copy(table, words_.begin() + static_cast<std::ptrdiff_t>(pages_at_ + page_at));
      page_at += table.size();
    }
  }
  make_tiles(batch);
}

void BatchTables::make_tiles(const ForwardBatch& batch) {
  tile_count_ = 0;
  const auto add = [this](const SequenceRows& sequence, std::size_t index, std::int32_t first, std::int32_t rows) {
    const std::int32_t tile[] = {sequence.first_row + first, rows, static_cast<std::int32_t>(index),
                                 static_cast<std::int32_t>(sequence.first_position) + first};
    static_assert(sizeof tile == sizeof(AttendTile));
    const std::size_t at = tiles_at_ + kTileWords * static_cast<std::size_t>(tile_count_);
    std::ranges::copy(tile, words_.begin() + static_cast<std::ptrdiff_t>(at));
    ++tile_count_;
  };
  for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
    if (batch.sequences[s].rows == 1) add(batch.sequences[s], s, 0, 1);
  }
  single_tiles_ = tile_count_;
  for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    if (sequence.rows == 1) continue;
    for (std::int32_t first = 0; first < sequence.rows; first += kTileRowsMost) {
      add(sequence, s, first, std::min(kTileRowsMost, sequence.rows - first));
    }
  }
}

BatchView BatchTables::view(const std::int32_t* start) const {
  BatchView view = {};
  view.token_ids = start;
  view.row_sequence = start + sequence_at_;
  view.row_position = start + position_at_;
  view.table_offsets = start + offsets_at_;
  view.page_tables = start + pages_at_;
  view.rows = rows_;
  view.sequences = sequences_;
  return view;
}

bool BatchTables::are_logit_rows(std::span<const std::int32_t> indices) const {
  return indices.size() == logit_row_count_ &&
         std::equal(indices.begin(), indices.end(), words_.begin() + static_cast<std::ptrdiff_t>(logit_rows_at_));
}

const AttendTile* BatchTables::tiles(const std::int32_t* start) const {
  return reinterpret_cast<const AttendTile*>(start + tiles_at_);
}

}  // namespace millrace::cuda
