#include "backend/reference/hyper_columns.h"

#include <algorithm>

#include "backend/reference/seen_positions.h"

namespace millrace {

namespace {

std::uint8_t& bucket_at(const KvLayer& kv, std::span<const std::int32_t> table, std::int64_t position,
                        std::int32_t kv_head) {
  const auto page = static_cast<std::size_t>(table[static_cast<std::size_t>(position / kv.page_tokens)]);
  return kv.key_buckets[page * kv.key_bucket_bytes +
                        static_cast<std::size_t>(std::int64_t{kv_head} * kv.page_tokens + position % kv.page_tokens)];
}

}  // namespace

void keep_key_buckets(const SequenceRows& sequence, const RopeStoreArgs& args) {
  const auto table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)];
  const std::int64_t end = std::min(sequence.first_position + sequence.rows, sequence.answer_begin);
  std::vector<float> key(static_cast<std::size_t>(args.head_dim));
  for (std::int32_t head = 0; head < args.kv_heads; ++head) {
    const std::vector<double> planes = hash_planes(args.kv.hash, static_cast<std::uint32_t>(head), args.head_dim);
    for (std::int64_t t = sequence.first_position; t < end; ++t) {
      for (std::int32_t i = 0; i < args.head_dim; ++i) {
        key[static_cast<std::size_t>(i)] = decode_kv(args.kv.format, kv_slot(args, table, t, head, true), i);
      }
      bucket_at(args.kv, table, t, head) = bucket_of(planes.data(), key.data(), args.head_dim);
    }
  }
}

HyperColumns::HyperColumns(const AttendArgs& args, const SequenceRows& sequence) : args_(&args), sequence_(&sequence) {
  if (args.hyper == nullptr) return;
  MILLRACE_CHECK(args.window == 0 && args.prompt_selection == nullptr, "attention with a window of {} is approximate",
                 args.window);
  const RowParts parts = parts_of(args, sequence);
  begin_ = parts.prompt_all;
  end_ = parts.prompt_end;
}

void HyperColumns::look_at(const HyperChunk& chunk, std::int32_t kv_head) {
  const auto table = sequence_->page_tables[static_cast<std::size_t>(args_->kv.group)];
  start_ = chunk.start;
  kv_head_ = kv_head;
  planes_ = hash_planes(args_->kv.hash, static_cast<std::uint32_t>(kv_head), args_->head_dim);
  order_.clear();
  begins_ = {};
  for (std::int64_t bucket = 0; bucket < kHashBuckets; ++bucket) {
    begins_[static_cast<std::size_t>(bucket)] = static_cast<std::int32_t>(order_.size());
    for (std::int64_t t = chunk.begin; t < chunk.end; ++t) {
      if (bucket_at(args_->kv, table, t, kv_head) == bucket) order_.push_back(t);
    }
  }
  begins_.back() = static_cast<std::int32_t>(order_.size());
  draw_samples(*args_->hyper, chunk, {args_->layer, static_cast<std::uint32_t>(kv_head)}, samples_);
}

HyperColumns::Columns HyperColumns::of(std::int32_t row, std::int32_t head) {
  const std::int64_t position = sequence_->first_position + row;
  const std::int32_t kv_head = head / (args_->heads / args_->kv_heads);
  const HyperChunk chunk = hyper_chunk(*args_->hyper, position);
  if (chunk.start != start_ || kv_head != kv_head_) look_at(chunk, kv_head);

  const float* query = args_->q + (sequence_->first_row + row) * args_->q_stride + std::int64_t{head} * args_->head_dim;
  const std::uint8_t bucket = bucket_of(planes_.data(), query, args_->head_dim);
  const RankRange block =
      ranks_of_block(*args_->hyper, chunk, hyper_block(*args_->hyper, chunk, begins_, bucket, position));
  Columns columns;
  for (std::int64_t t = 0; t < chunk.begin; ++t) columns.add(t, 0.0f);
  for (std::int64_t t = chunk.end; t <= position; ++t) columns.add(t, 0.0f);
  for (std::int64_t rank = block.begin; rank < block.end; ++rank) {
    columns.add(order_[static_cast<std::size_t>(rank)], 0.0f);
  }
  for (const KeySample& sample : samples_) {
    if (sample.rank >= block.begin && sample.rank < block.end) continue;
    columns.add(order_[static_cast<std::size_t>(sample.rank)], sample.log_weight);
  }
  return columns;
}

}  // namespace millrace
