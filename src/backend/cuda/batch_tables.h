// What kernels need to know of a step, laid out in one piece of memory. Pure: the piece is made on the host and copied
// at once. Where its parts begin depends on capacities that grow in large steps, so that steps of one shape find them
// at the same addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/cuda/kernels/launch.h"
#include "backend/forward_batch.h"

namespace millrace::cuda {

class BatchTables {
 public:
  /// The most rows of a tile of attention where a sequence has several.
  static constexpr std::int32_t kTileRowsMost = 128;

  void make(const ForwardBatch& batch);

  [[nodiscard]] std::span<const std::int32_t> words() const { return words_; }
  [[nodiscard]] std::size_t capacity_bytes() const { return capacity_words_ * sizeof(std::int32_t); }

  /// Views of the tables where the words lie at `start`.
  [[nodiscard]] BatchView view(const std::int32_t* start) const;
  [[nodiscard]] const AttendTile* tiles(const std::int32_t* start) const;
  [[nodiscard]] const std::int32_t* logit_rows(const std::int32_t* start) const { return start + logit_rows_at_; }
  [[nodiscard]] bool are_logit_rows(std::span<const std::int32_t> indices) const;

  /// Tiles of sequences that have one row come first.
  [[nodiscard]] std::int32_t single_tiles() const { return single_tiles_; }
  [[nodiscard]] std::int32_t tile_count() const { return tile_count_; }
  /// The last position that a row of the step has.
  [[nodiscard]] std::int64_t last_position() const { return last_position_; }
  /// Whether each sequence has one row: steps of that shape come again and again.
  [[nodiscard]] bool decodes() const { return single_tiles_ == tile_count_; }

 private:
  void make_tiles(const ForwardBatch& batch);

  std::vector<std::int32_t> words_;
  std::size_t row_capacity_ = 0, sequence_capacity_ = 0, group_capacity_ = 0, capacity_words_ = 0;
  std::size_t sequence_at_ = 0, position_at_ = 0, logit_rows_at_ = 0, tiles_at_ = 0, offsets_at_ = 0, pages_at_ = 0;
  std::size_t logit_row_count_ = 0;
  std::int32_t rows_ = 0, sequences_ = 0, tile_count_ = 0, single_tiles_ = 0;
  std::int64_t last_position_ = 0;
};

}  // namespace millrace::cuda
