#include "backend/reference/seen_positions.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/float16.h"

namespace millrace {

namespace {

std::uint16_t* key_bounds(const KvLayer& kv, std::span<const std::int32_t> table, std::int64_t page,
                          std::int32_t kv_head, std::int32_t head_dim) {
  return kv.key_bounds + static_cast<std::size_t>(table[static_cast<std::size_t>(page)]) * kv.key_bound_numbers +
         static_cast<std::size_t>(kv_head) * 2 * kv_bound_numbers(static_cast<std::size_t>(head_dim));
}

/// Adds [begin, end).
void add_positions(std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& positions) {
  for (std::int64_t t = begin; t < end; ++t) positions.push_back(t);
}

}  // namespace

void keep_key_bounds(const SequenceRows& sequence, const RopeStoreArgs& args) {
  const KvLayer& kv = args.kv;
  const std::int64_t full = (sequence.first_place(kv.group) + sequence.rows) / kv.page_tokens;
  const auto table = sequence.page_tables[static_cast<std::size_t>(kv.group)];
  for (std::int64_t page = sequence.first_place(kv.group) / kv.page_tokens; page < full; ++page) {
    for (std::int32_t head = 0; head < args.kv_heads; ++head) {
      std::uint16_t* largest = key_bounds(kv, table, page, head, args.head_dim);
      std::uint16_t* smallest = largest + kv_bound_numbers(static_cast<std::size_t>(args.head_dim));
      for (std::int32_t i = 0; i < args.head_dim; ++i) {
        float high = -std::numeric_limits<float>::infinity(), low = -high;
        for (std::int64_t t = page * kv.page_tokens; t < (page + 1) * kv.page_tokens; ++t) {
          const float number = decode_kv(kv.format, kv_slot(args, table, t, head, true), i);
          high = std::fmax(high, number);
          low = std::fmin(low, number);
        }
        largest[i] = kv_bound(high, true);
        smallest[i] = kv_bound(low, false);
      }
      const auto padded = static_cast<std::int32_t>(kv_bound_numbers(static_cast<std::size_t>(args.head_dim)));
      for (std::int32_t i = args.head_dim; i < padded; ++i) largest[i] = smallest[i] = 0;
    }
  }
}

SeenPositions::SeenPositions(const AttendArgs& args, const SequenceRows& sequence)
    : args_(&args),
      sequence_(&sequence),
      table_(sequence.page_tables[static_cast<std::size_t>(args.kv.group)]),
      parts_(parts_of(args, sequence)) {
  MILLRACE_CHECK(args.window == 0 || parts_.prompt_all == sequence.rows,
                 "blocks or pages are selected in a layer with a window of {}", args.window);
}

const float* SeenPositions::query(std::int64_t row, std::int32_t head) const {
  return args_->q + (sequence_->first_row + row) * args_->q_stride + std::int64_t{head} * args_->head_dim;
}

std::vector<std::int64_t> SeenPositions::of(std::int32_t row, std::int32_t kv_head) {
  const std::int64_t position = sequence_->first_place(args_->kv.group) + row, page_tokens = args_->kv.page_tokens;
  std::vector<std::int64_t> seen;
  if (row >= parts_.prompt_all && row < parts_.prompt_end) {
    const std::int64_t first = parts_.prompt_all + (row - parts_.prompt_all) / kQueryBlock * kQueryBlock;
    if (first != block_ || kv_head != kv_head_) choose_blocks(prompt_block(*args_, *sequence_, first), kv_head);
    seen = past_;
    add_positions(sequence_->first_place(args_->kv.group) + first, position + 1, seen);
    return seen;
  }
  if (row < parts_.answer_all) {
    add_positions(args_->window != 0 ? std::max<std::int64_t>(0, position - args_->window + 1) : 0, position + 1, seen);
    return seen;
  }
  const PageCandidates candidates = candidates_of(*args_, *sequence_, position);
  const std::int64_t count = candidates.end - candidates.first, group = args_->heads / args_->kv_heads;
  const std::vector<float> scores = page_scores(row, kv_head, candidates);
  PageChooser chooser;
  for (const std::int32_t page :
       chooser.choose(*args_->selection, candidates, position / page_tokens, scores.data(), group, count,
                      {position, args_->layer, static_cast<std::uint32_t>(kv_head)}, args_->scale)) {
    add_positions(page * page_tokens, std::min(position + 1, (page + 1) * page_tokens), seen);
  }
  return seen;
}

/// [group][candidates]: no product of a query with a key of the page exceeds it.
std::vector<float> SeenPositions::page_scores(std::int32_t row, std::int32_t kv_head,
                                              const PageCandidates& candidates) const {
  const std::int64_t count = candidates.end - candidates.first;
  const std::int32_t group = args_->heads / args_->kv_heads;
  std::vector<float> scores(static_cast<std::size_t>(group * count));
  for (std::int64_t page = 0; args_->selection->choice == PageChoice::quest && page < count; ++page) {
    const std::uint16_t* largest = key_bounds(args_->kv, table_, candidates.first + page, kv_head, args_->head_dim);
    const std::uint16_t* smallest = largest + kv_bound_numbers(static_cast<std::size_t>(args_->head_dim));
    for (std::int32_t g = 0; g < group; ++g) {
      const float* q = query(row, kv_head * group + g);
      float& score = scores[static_cast<std::size_t>(g * count + page)];
      for (std::int32_t i = 0; i < args_->head_dim; ++i) {
        score += q[i] * bf16_to_float(q[i] > 0.0f ? largest[i] : smallest[i]);
      }
    }
  }
  return scores;
}

void SeenPositions::choose_blocks(const PromptBlock& block, std::int32_t kv_head) {
  const std::int64_t position = sequence_->first_place(args_->kv.group) + block.first, blocks = position / kKeyBlock;
  const std::int64_t group = args_->heads / args_->kv_heads;
  std::vector<float> shares;
  if (args_->prompt_selection->choice == BlockChoice::xattention) shares = block_shares(block, kv_head);
  BlockChooser chooser;
  past_.clear();
  for (const std::int32_t of_keys :
       chooser.choose(*args_->prompt_selection, block.candidates, blocks, shares.data(), group, blocks,
                      {position, args_->layer, static_cast<std::uint32_t>(kv_head)})) {
    add_positions(of_keys * kKeyBlock, (of_keys + 1) * kKeyBlock, past_);
  }
  block_ = block.first;
  kv_head_ = kv_head;
}

/// [group][blocks of keys before the rows]: the antidiagonals of cells of 16 rows and 16 positions are their scores
/// (Xu et al. 2025), softmax over these is what a cell of rows gives to each, and the mean of the cells of rows counts.
std::vector<float> SeenPositions::block_shares(const PromptBlock& block, std::int32_t kv_head) const {
  constexpr std::int64_t kCell = 16;
  const std::int64_t position = sequence_->first_place(args_->kv.group) + block.first, blocks = position / kKeyBlock;
  const std::int64_t cells = (block.rows() + kCell - 1) / kCell, full = (position + block.rows()) / kCell;
  const std::int32_t group = args_->heads / args_->kv_heads;
  std::vector<float> shares(static_cast<std::size_t>(group * blocks));
  for (std::int32_t g = 0; g < group; ++g) {
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      const std::int64_t rows = std::min(kCell, block.rows() - cell * kCell);
      const std::int64_t visible = std::min(full, position / kCell + cell + 1);  // pages
      std::vector<float> scores(static_cast<std::size_t>(visible));
      for (std::int64_t page = 0; page < visible; ++page) {
        float sum = 0.0f;
        for (std::int64_t place = 0; place < kCell; ++place) {
          const std::int64_t row = kCell - 1 - place;
          if (row >= rows) continue;
          const float* q = query(block.first + cell * kCell + row, kv_head * group + g);
          const KvSlot key = kv_slot(*args_, table_, page * kCell + place, kv_head, true);
          for (std::int32_t i = 0; i < args_->head_dim; ++i) sum += q[i] * decode_kv(args_->kv.format, key, i);
        }
        scores[static_cast<std::size_t>(page)] = sum * args_->scale / static_cast<float>(rows);
      }
      const float largest = *std::ranges::max_element(scores);
      float sum = 0.0f;
      for (float& score : scores) sum += score = std::exp(score - largest);
      for (std::int64_t page = 0; page < position / kCell; ++page) {
        shares[static_cast<std::size_t>(g * blocks + page * kCell / kKeyBlock)] +=
            scores[static_cast<std::size_t>(page)] / sum / static_cast<float>(cells);
      }
    }
  }
  return shares;
}

}  // namespace millrace
