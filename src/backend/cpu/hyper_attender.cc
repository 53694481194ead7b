#include "backend/cpu/hyper_attender.h"

#include <algorithm>
#include <array>
#include <limits>

#include "backend/cpu/parallel.h"
#include "core/check.h"
#include "quant/kv_codec.h"

namespace millrace {

namespace {

constexpr std::int64_t kSlots = 16;  // of a page
// Records that are kept at a time: 32 MiB, and more only where one kv head needs it.
constexpr std::int64_t kMostRecordBytes = 32 << 20;
constexpr std::int64_t kTaskPages = 64, kTaskRows = 64;  // that a task puts in order, whose queries it hashes
constexpr std::int64_t kHashProducts = 8;                // what a number of a vector costs, of elements, about
constexpr std::int64_t kMeanQueries = 16;                // of a block, about
constexpr std::int64_t kFloat = sizeof(float);
constexpr float kNothing = -std::numeric_limits<float>::infinity();

std::int64_t whole_chunks(std::int64_t positions) {
  return round_up(positions, kAttentionChunk);
}

}  // namespace

const double* HyperAttender::planes(const KeyHash& hash, std::int32_t kv_heads, std::int32_t head_dim) {
  if (planes_.size() <= hash.layer) planes_.resize(hash.layer + std::size_t{1});
  Planes& known = planes_[hash.layer];
  if (known.numbers.empty() || known.hash.seed != hash.seed || known.kv_heads != kv_heads ||
      known.head_dim != head_dim) {
    known = {hash, kv_heads, head_dim, {}};
    for (std::int32_t head = 0; head < kv_heads; ++head) {
      const std::vector<double> of_head = hash_planes(hash, static_cast<std::uint32_t>(head), head_dim);
      known.numbers.insert(known.numbers.end(), of_head.begin(), of_head.end());
    }
  }
  return known.numbers.data();
}

void HyperAttender::keep_buckets(const ForwardBatch& batch, const RopeStoreArgs& args) {
  const KvLayer& kv = args.kv;
  const std::int64_t head_dim = args.head_dim;
  const double* const numbers = planes(kv.hash, args.kv_heads, args.head_dim);
  const auto element = static_cast<std::int64_t>(kv_element_bytes(kv.format)),
             row = element * static_cast<std::int64_t>(kv_elements(kv.format, static_cast<std::size_t>(args.head_dim)));
  keys_.resize(static_cast<std::size_t>(pool_->threads() * head_dim));
  for (const SequenceRows& sequence : batch.sequences) {
    const std::int64_t begin = sequence.first_position, end = std::min(begin + sequence.rows, sequence.answer_begin);
    if (begin >= end) continue;
    const auto table = sequence.page_tables[static_cast<std::size_t>(kv.group)];
    const std::int64_t first_page = begin / kv.page_tokens, pages = (end - 1) / kv.page_tokens + 1 - first_page;
    const auto hash_page = [&](std::int64_t index, int thread) {
      const std::int64_t page = first_page + index;
      const auto number = static_cast<std::size_t>(table[static_cast<std::size_t>(page)]);
      std::byte* const start = kv.pages + number * kv.page_bytes;
      std::uint8_t* const buckets = kv.key_buckets + number * kv.key_bucket_bytes;
      float* const key = keys_.data() + thread * head_dim;
      const std::int64_t from = std::max(begin, page * kv.page_tokens), to = std::min(end, (page + 1) * kv.page_tokens);
      for (std::int64_t head = 0; head < args.kv_heads; ++head) {
        for (std::int64_t t = from; t < to; ++t) {
          const std::int64_t slots = head * kv.page_tokens, slot = t % kv.page_tokens;
          KvSlot at;
          at.elements = start + kv.key_offset + slots * row + slot * element;
          at.step = kv.page_tokens * element;
          at.scale = reinterpret_cast<float*>(start + kv.key_scale_offset) + slots + slot;
          at.middle = at.scale + std::int64_t{args.kv_heads} * kv.page_tokens;
          for (std::int64_t d = 0; d < head_dim; ++d) key[d] = decode_kv(kv.format, at, d);
          buckets[slots + slot] = bucket_of(numbers + head * head_dim * kHashLanes, key, head_dim);
        }
      }
    };
    for_each(*pool_, pages, args.kv_heads * kv.page_tokens * head_dim * kHashProducts, kParallelElements, hash_page);
  }
}

double HyperAttender::attend(const ForwardBatch& batch, const AttendArgs& args, AttendKernel kernel,
                             std::int64_t task_rows) {
  args_ = &args;
  kernel_ = kernel;
  task_rows_ = task_rows;
  group_ = args.heads / args.kv_heads;
  find_pieces(batch);
  if (pieces_.empty()) return 0.0;
  MILLRACE_CHECK(args.window == 0 && args.kv.page_tokens == kSlots && args.kv.key_buckets != nullptr,
                 "attention is approximate in a layer with a window of {}, pages of {}, buckets {}", args.window,
                 args.kv.page_tokens, args.kv.key_buckets != nullptr);
  plane_numbers_ = planes(args.kv.hash, args.kv_heads, args.head_dim);
  state_.resize(static_cast<std::size_t>(batch.rows() * args.heads * 2));
  attend_near();
  records_of_.emplace(args.kv.format, args.head_dim);
  far_args_ = args;
  far_args_.kv_heads = 1;
  far_args_.kv = records_of_->layer();
  double read = 0.0;
  for (const Piece& piece : pieces_) {
    attend_far(piece);
    const std::int64_t far = std::min(piece.chunk.count(), args.hyper->block + args.hyper->samples),
                       near = piece.near_position() + (piece.rows + 1) / 2;
    read += static_cast<double>(piece.rows * (near + far) * args.heads);
  }
  return read;
}

void HyperAttender::find_pieces(const ForwardBatch& batch) {
  const AttendArgs& args = *args_;
  pieces_.clear();
  near_tables_.clear();
  for (const SequenceRows& sequence : batch.sequences) {
    const RowParts parts = parts_of(args, sequence);
    for (std::int64_t row = parts.prompt_all; row < parts.prompt_end;) {
      const std::int64_t position = sequence.first_position + row;
      const HyperChunk chunk = hyper_chunk(*args.hyper, position);
      const std::int64_t rows = std::min(chunk.start + args.hyper->chunk - position, parts.prompt_end - row);
      const std::int32_t* const table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)].data();
      pieces_.push_back({.row = sequence.first_row + row,
                         .rows = rows,
                         .position = position,
                         .page_table = table,
                         .chunk = chunk,
                         .near_table = static_cast<std::int64_t>(near_tables_.size())});
      near_tables_.insert(near_tables_.end(), table, table + chunk.begin / kSlots);
      near_tables_.insert(near_tables_.end(), table + chunk.end / kSlots, table + (position + rows - 1) / kSlots + 1);
      row += rows;
    }
  }
}

/// What rows read as it is. Their states stay for attend_far().
void HyperAttender::attend_near() {
  near_tasks_.clear();
  std::int64_t products = 0;
  for (const Piece& piece : pieces_) {
    for (std::int64_t row = 0; row < piece.rows; row += task_rows_) {
      const std::int64_t rows = std::min(task_rows_, piece.rows - row), position = piece.near_position() + row;
      for (std::int32_t kv_head = 0; kv_head < args_->kv_heads; ++kv_head) {
        near_tasks_.push_back({.args = args_,
                               .page_table = near_tables_.data() + piece.near_table,
                               .batch_row = piece.row + row,
                               .position = position,
                               .rows = rows,
                               .begin = 0,
                               .end = position + rows,
                               .suspend = true,
                               .state = state_.data(),
                               .kv_head = kv_head});
      }
      products += 2 * rows * (position + rows) * args_->heads * args_->head_dim;
    }
  }
  const auto count = static_cast<std::int64_t>(near_tasks_.size());
  for_each(*pool_, count, products / count, kParallelProducts, [&](std::int64_t index, int thread) {
    AttendTask task = near_tasks_[static_cast<std::size_t>(index)];
    task.scratch = scratch_->of(thread);
    kernel_(task);
  });
}

void HyperAttender::attend_far(const Piece& piece) {
  reserve(piece);
  for (std::int64_t first = 0; first < args_->kv_heads; first += together_) {
    attend_heads(piece, first, std::min(together_, args_->kv_heads - first));
  }
}

void HyperAttender::reserve(const Piece& piece) {
  const HyperAttention& hyper = *args_->hyper;
  count_ = piece.chunk.count();
  blocks_ = (count_ + hyper.block - 1) / hyper.block;
  const auto record_bytes = static_cast<std::int64_t>(records_of_->bytes()),
             page_bytes = static_cast<std::int64_t>(far_args_.kv.page_bytes);
  together_ = std::clamp<std::int64_t>(kMostRecordBytes / (count_ * record_bytes), 1, args_->kv_heads);
  block_pages_ = whole_chunks(std::min(hyper.block, count_)) / kSlots;
  sample_pages_ = whole_chunks(std::min(hyper.samples, count_)) / kSlots;
  records_.reserve((together_ * count_ + 1 + pool_->threads()) * record_bytes / kFloat);
  pages_.reserve((together_ * sample_pages_ + pool_->threads() * block_pages_) * page_bytes / kFloat);
  far_args_.kv.pages = reinterpret_cast<std::byte*>(pages_.of(0));
  const auto room = static_cast<std::size_t>(pool_->threads() * (block_pages_ + sample_pages_));
  tables_.resize(room);
  biases_.resize(room * kSlots);
  if (std::ssize(heads_) < together_) heads_.resize(static_cast<std::size_t>(together_));
  std::fill_n(records_at(together_), record_bytes, std::byte{0});  // what stands where there is none
}

/// For kv heads [first, first + heads).
void HyperAttender::attend_heads(const Piece& piece, std::int64_t first, std::int64_t heads) {
  const auto record_bytes = static_cast<std::int64_t>(records_of_->bytes());
  const auto head_of = [&](std::int64_t h) -> Head& { return heads_[static_cast<std::size_t>(h)]; };
  for_each(*pool_, heads, 4 * count_, kParallelElements,
           [&](std::int64_t h, int) { order_keys(piece, first + h, head_of(h)); });

  const std::int64_t cuts = (piece.rows + kTaskRows - 1) / kTaskRows;
  for_each(*pool_, heads * cuts, kTaskRows * group_ * args_->head_dim * kHashProducts, kParallelElements,
           [&](std::int64_t task, int) {
             const std::int64_t row = task % cuts * kTaskRows;
             find_blocks(piece, first + task / cuts, row, std::min(row + kTaskRows, piece.rows), head_of(task / cuts));
           });

  for_each(*pool_, heads, count_ / kSlots + piece.rows * group_, kParallelElements,
           [&](std::int64_t h, int) { order_queries(piece, first + h, head_of(h)); });

  const std::int64_t pages = count_ / kSlots, stretches = (pages + kTaskPages - 1) / kTaskPages;
  for_each(*pool_, heads * stretches, kTaskPages * kSlots * record_bytes, kParallelElements,
           [&](std::int64_t task, int thread) {
             const std::int64_t h = task / stretches, page = task % stretches * kTaskPages;
             scatter_pages(piece, first + h, h, page, std::min(page + kTaskPages, pages), thread);
           });

  for_each(*pool_, heads, (sample_pages_ + 1) * kSlots * record_bytes, kParallelElements, [&](std::int64_t h, int) {
    const std::vector<KeySample>& samples = head_of(h).samples;
    fill_pages(piece, first + h, h, std::ssize(samples), h * sample_pages_,
               [&](std::int64_t i) { return samples[static_cast<std::size_t>(i)].rank; });
  });

  far_tasks_.clear();
  const auto most = static_cast<std::int32_t>(task_rows_ * group_);
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::vector<std::int32_t>& begins = head_of(h).query_begins;
    for (std::int64_t block = 0; block < blocks_; ++block) {
      const std::int32_t end = begins[static_cast<std::size_t>(block) + 1];
      for (std::int32_t query = begins[static_cast<std::size_t>(block)]; query < end; query += most) {
        far_tasks_.push_back({static_cast<std::int32_t>(first + h), static_cast<std::int32_t>(h),
                              static_cast<std::int32_t>(block), query, std::min(most, end - query)});
      }
    }
  }
  for_each(*pool_, static_cast<std::int64_t>(far_tasks_.size()),
           (block_pages_ + sample_pages_) * kSlots * args_->head_dim * kMeanQueries, kParallelProducts,
           [&](std::int64_t task, int thread) { run(piece, far_tasks_[static_cast<std::size_t>(task)], thread); });
}

std::byte* HyperAttender::records_at(std::int64_t head) const {
  return reinterpret_cast<std::byte*>(records_.of(0)) + static_cast<std::size_t>(head * count_) * records_of_->bytes();
}

void HyperAttender::order_keys(const Piece& piece, std::int64_t kv_head, Head& head) const {
  const KvLayer& kv = args_->kv;
  const auto count = static_cast<std::size_t>(count_);
  head.buckets.resize(count);
  head.ranks.resize(count);
  head.order.resize(count);
  const std::int32_t* const table = piece.page_table + piece.chunk.begin / kSlots;
  for (std::int64_t page = 0; page < count_ / kSlots; ++page) {
    const std::uint8_t* const from =
        kv.key_buckets + static_cast<std::size_t>(table[page]) * kv.key_bucket_bytes + kv_head * kSlots;
    for (std::int64_t slot = 0; slot < kSlots; ++slot) {
      // What a page of made-up keys holds may be no bucket.
      head.buckets[static_cast<std::size_t>(page * kSlots + slot)] = from[slot] % kHashBuckets;
    }
  }
  rank_keys(head.buckets, head.begins, head.ranks.data());
  for (std::size_t i = 0; i < count; ++i) {
    head.order[static_cast<std::size_t>(head.ranks[i])] = static_cast<std::int32_t>(i);
  }
  draw_samples(*args_->hyper, piece.chunk, {args_->layer, static_cast<std::uint32_t>(kv_head)}, head.samples);
  head.blocks.resize(static_cast<std::size_t>(piece.rows * group_));
}

/// Of the queries of rows [first_row, end_row) of the piece.
void HyperAttender::find_blocks(const Piece& piece, std::int64_t kv_head, std::int64_t first_row, std::int64_t end_row,
                                Head& head) const {
  const std::int64_t head_dim = args_->head_dim;
  const double* const planes = plane_numbers_ + kv_head * head_dim * kHashLanes;
  for (std::int64_t row = first_row; row < end_row; ++row) {
    const float* query = args_->q + (piece.row + row) * args_->q_stride + kv_head * group_ * head_dim;
    for (std::int64_t g = 0; g < group_; ++g, query += head_dim) {
      head.blocks[static_cast<std::size_t>(row * group_ + g)] = static_cast<std::int32_t>(hyper_block(
          *args_->hyper, piece.chunk, head.begins, bucket_of(planes, query, head_dim), piece.position + row));
    }
  }
}

/// By their blocks, those of a block by their rows. Marks which keys they read.
void HyperAttender::order_queries(const Piece& piece, std::int64_t kv_head, Head& head) const {
  head.query_begins.assign(static_cast<std::size_t>(blocks_) + 1, 0);
  for (const std::int32_t block : head.blocks) ++head.query_begins[static_cast<std::size_t>(block) + 1];
  for (std::size_t b = 0; b < static_cast<std::size_t>(blocks_); ++b) head.query_begins[b + 1] += head.query_begins[b];
  head.queries.resize(head.blocks.size());
  std::vector<std::int32_t>& next = head.next;
  next = head.query_begins;
  for (std::size_t i = 0; i < head.blocks.size(); ++i) {
    const std::int64_t query = static_cast<std::int64_t>(i);
    head.queries[static_cast<std::size_t>(next[static_cast<std::size_t>(head.blocks[i])]++)] =
        static_cast<std::int32_t>((piece.row + query / group_) * args_->heads + kv_head * group_ + query % group_);
  }
  head.wanted.assign(static_cast<std::size_t>(count_), 0);
  for (std::int64_t block = 0; block < blocks_; ++block) {
    const auto b = static_cast<std::size_t>(block);
    if (head.query_begins[b] == head.query_begins[b + 1]) continue;
    const RankRange ranks = ranks_of_block(*args_->hyper, piece.chunk, block);
    std::fill(head.wanted.begin() + ranks.begin, head.wanted.begin() + ranks.end, std::uint8_t{1});
  }
  for (const KeySample& sample : head.samples) head.wanted[static_cast<std::size_t>(sample.rank)] = 1;
}

/// Of pages [first, end) of the approximated ones, the keys that somebody reads, to their places.
void HyperAttender::scatter_pages(const Piece& piece, std::int64_t kv_head, std::int64_t head, std::int64_t first,
                                  std::int64_t end, int thread) const {
  const std::int32_t* const table = piece.page_table + piece.chunk.begin / kSlots;
  const Head& known = heads_[static_cast<std::size_t>(head)];
  std::byte* const records = records_at(head);
  std::byte* const nowhere = records_at(together_) + static_cast<std::size_t>(thread + 1) * records_of_->bytes();
  // Where the next page's go is asked for while this one's are put there.
  std::byte* targets[2][kSlots];
  const auto aim = [&](std::int64_t page) {
    bool any = false;
    for (std::int64_t slot = 0; page < end && slot < kSlots; ++slot) {
      const auto rank = static_cast<std::size_t>(known.ranks[static_cast<std::size_t>(page * kSlots + slot)]);
      const bool wanted = known.wanted[rank] != 0;
      std::byte* const target = wanted ? records + rank * records_of_->bytes() : nowhere;
      for (std::size_t at = 0; wanted && at < records_of_->bytes(); at += 64) __builtin_prefetch(target + at, 1);
      targets[page % 2][slot] = target;
      any = any || wanted;
    }
    return any;
  };
  bool any = aim(first);
  for (std::int64_t page = first; page < end; ++page) {
    const bool more = aim(page + 1);
    if (any) {
      records_of_->scatter(args_->kv, table[page], kv_head, args_->kv_heads, targets[page % 2],
                           table[std::min(page + 1, end - 1)]);
    }
    any = more;
  }
}

/// The keys and values of `count` ranks, which rank_of(i) says, to pages from `page` on; zeros behind them, up to whole
/// chunks. Returns the number of pages.
template <typename RankOf>
std::int64_t HyperAttender::fill_pages(const Piece& piece, std::int64_t kv_head, std::int64_t head, std::int64_t count,
                                       std::int64_t page, RankOf&& rank_of) {
  const std::int32_t* const table = piece.page_table + piece.chunk.begin / kSlots;
  const std::vector<std::int32_t>& order = heads_[static_cast<std::size_t>(head)].order;
  const std::byte* const of_head = records_at(head);
  const std::int64_t pages = whole_chunks(count) / kSlots;
  // Values lie anywhere: those of the next page are asked for while this one is filled.
  const std::byte *records[2][kSlots], *values[2][kSlots];
  const auto look_up = [&](std::int64_t p) {
    for (std::int64_t slot = 0; p < pages && slot < kSlots; ++slot) {
      const std::int64_t i = p * kSlots + slot;
      records[p % 2][slot] = records_at(together_);
      values[p % 2][slot] = nullptr;
      if (i >= count) continue;
      const auto rank = static_cast<std::size_t>(rank_of(i));
      const std::int64_t position = order[rank];
      const std::byte* const value =
          records_of_->value(args_->kv, table[position / kSlots], kv_head, position % kSlots);
      for (std::size_t at = 0; at < records_of_->value_bytes(); at += 64) __builtin_prefetch(value + at);
      records[p % 2][slot] = of_head + rank * records_of_->bytes();
      values[p % 2][slot] = value;
    }
  };
  look_up(0);
  for (std::int64_t p = 0; p < pages; ++p) {
    look_up(p + 1);
    records_of_->fill(records[p % 2], values[p % 2],
                      far_args_.kv.pages + static_cast<std::size_t>(page + p) * far_args_.kv.page_bytes);
  }
  return pages;
}

/// The queries go on with their block and the samples that are not in it.
void HyperAttender::run(const Piece& piece, const FarTask& task, int thread) {
  const Head& head = heads_[static_cast<std::size_t>(task.head)];
  const RankRange block = ranks_of_block(*args_->hyper, piece.chunk, task.block);
  const std::int64_t own_pages = together_ * sample_pages_ + thread * block_pages_;
  const std::int64_t pages = fill_pages(piece, task.kv_head, task.head, block.end - block.begin, own_pages,
                                        [&](std::int64_t i) { return block.begin + i; });

  const std::int64_t room = block_pages_ + sample_pages_;
  std::int32_t* const table = tables_.data() + thread * room;
  for (std::int64_t p = 0; p < pages; ++p) table[p] = static_cast<std::int32_t>(own_pages + p);
  for (std::int64_t p = 0; p < sample_pages_; ++p) {
    table[pages + p] = static_cast<std::int32_t>(task.head * sample_pages_ + p);
  }
  float* const biases = biases_.data() + thread * room * kSlots;
  std::fill_n(biases, (pages + sample_pages_) * kSlots, kNothing);
  std::fill_n(biases, block.end - block.begin, 0.0f);
  float* of_sample = biases + pages * kSlots;
  for (const KeySample& sample : head.samples) {
    *of_sample++ = sample.rank >= block.begin && sample.rank < block.end ? kNothing : sample.log_weight;
  }
  const std::int64_t end = (pages + sample_pages_) * kSlots;
  kernel_({.args = &far_args_,
           .page_table = table,
           .position = end,
           .rows = task.count,
           .begin = 0,
           .end = end,
           .resume = true,
           .state = state_.data(),
           .queries = head.queries.data() + task.first,
           .biases = biases,
           .scratch = scratch_->of(thread)});
}

}  // namespace millrace
