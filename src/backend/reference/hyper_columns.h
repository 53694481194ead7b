// What rows of prompts read where attention is approximate, in plain loops: the oracle for HyperAttention.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/selected_pages.h"

namespace millrace {

/// Keeps the buckets of the keys that rows of a prompt have stored.
void keep_key_buckets(const SequenceRows& sequence, const RopeStoreArgs& args);

/// Of one sequence in one step. Both must stay.
class HyperColumns {
 public:
  HyperColumns(const AttendArgs& args, const SequenceRows& sequence);

  /// Whether a row, from the sequence's first on, approximates.
  [[nodiscard]] bool has(std::int32_t row) const { return row >= begin_ && row < end_; }

  /// Positions that such a row reads for a query head, some of them more than once, and the logarithms of what they
  /// weigh.
  struct Columns {
    std::vector<std::int64_t> positions;
    std::vector<float> log_weights;

    void add(std::int64_t position, float log_weight) {
      positions.push_back(position);
      log_weights.push_back(log_weight);
    }
  };
  Columns of(std::int32_t row, std::int32_t head);

 private:
  void look_at(const HyperChunk& chunk, std::int32_t kv_head);

  const AttendArgs* args_;
  const SequenceRows* sequence_;
  std::int64_t begin_ = 0, end_ = 0;
  // Of a chunk and a kv head: the last that was asked for.
  std::int64_t start_ = -1;
  std::int32_t kv_head_ = -1;
  std::vector<double> planes_;
  std::vector<std::int64_t> order_;  // positions by rank
  BucketBegins begins_ = {};
  std::vector<KeySample> samples_;
};

}  // namespace millrace
