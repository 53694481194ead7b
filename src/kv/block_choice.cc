#include "kv/block_choice.h"

#include <algorithm>

#include "core/philox.h"

namespace millrace {

namespace {

float share_of(float number) {
  return number > 0.0f ? number : 0.0f;
}

}  // namespace

BlockCandidates block_candidates(const BlockSelection& selection, std::int64_t position) {
  const auto whole = [](std::int64_t tokens) { return (tokens + kKeyBlock - 1) / kKeyBlock; };
  const std::int64_t blocks = position / kKeyBlock;
  BlockCandidates candidates;
  candidates.first = std::min(blocks, whole(selection.sink_tokens));
  candidates.end = std::max(candidates.first, blocks - std::min(blocks, whole(selection.recent_tokens)));
  const std::int64_t always = candidates.first + blocks - candidates.end, count = candidates.end - candidates.first;
  candidates.most = std::clamp<std::int64_t>(selection.tokens / kKeyBlock - always, 0, count);
  candidates.by_mass = selection.choice == BlockChoice::xattention && selection.mass < 1.0;
  if (selection.choice == BlockChoice::recent) {
    candidates.end -= candidates.most;
    candidates.most = 0;
  }
  return candidates;
}

/// Marks what a head asks for, and the worth of all that it could.
void BlockChooser::ask(const BlockSelection& selection, const BlockCandidates& candidates, std::int64_t blocks,
                       const float* shares) {
  const std::int64_t count = candidates.end - candidates.first;
  double candidates_have = 0.0, all_have = 0.0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const double share = share_of(shares[b]);
    all_have += share;
    if (b >= candidates.first && b < candidates.end) candidates_have += share;
  }
  // What is read anyway: the rest of the past, and the rows' own positions.
  double read = std::max(1.0, all_have) - candidates_have;
  const double wanted = selection.mass * std::max(1.0, all_have);
  order_.clear();
  for (std::int64_t b = 0; b < count; ++b) {
    const float share = share_of(shares[candidates.first + b]);
    float& known = worth_[static_cast<std::size_t>(b)];
    known = std::max(known, share);
    order_.push_back(static_cast<std::int32_t>(b));
  }
  if (!candidates.by_mass) {
    std::ranges::fill(wanted_, 1);
    return;
  }
  if (read >= wanted) return;
  std::ranges::sort(order_, [&](std::int32_t a, std::int32_t b) {
    const float of_a = share_of(shares[candidates.first + a]), of_b = share_of(shares[candidates.first + b]);
    return of_a != of_b ? of_a > of_b : a < b;
  });
  for (const std::int32_t b : order_) {
    wanted_[static_cast<std::size_t>(b)] = 1;
    read += share_of(shares[candidates.first + b]);
    if (read >= wanted) break;
  }
}

const std::vector<std::int32_t>& BlockChooser::choose(const BlockSelection& selection,
                                                      const BlockCandidates& candidates, std::int64_t blocks,
                                                      const float* shares, std::int64_t heads, std::int64_t stride,
                                                      const BlockLot& lot) {
  const auto count = static_cast<std::size_t>(candidates.end - candidates.first);
  worth_.assign(count, 0.0f);
  wanted_.assign(count, 0);
  if (selection.choice == BlockChoice::xattention) {
    for (std::int64_t head = 0; head < heads; ++head) ask(selection, candidates, blocks, shares + head * stride);
  } else {
    std::ranges::fill(wanted_, 1);
    for (std::size_t b = 0; b < count; ++b) {
      const PhiloxBlock block = philox4x32_10(
          {static_cast<std::uint32_t>(candidates.first) + static_cast<std::uint32_t>(b),
           static_cast<std::uint32_t>(lot.position), static_cast<std::uint32_t>(lot.position >> 32), lot.kv_head},
          {lot.layer, 1});
      worth_[b] = static_cast<float>(block[0] >> 8);
    }
  }
  order_.clear();
  for (std::size_t b = 0; b < count; ++b) {
    if (wanted_[b] != 0) order_.push_back(static_cast<std::int32_t>(b));
  }
  if (static_cast<std::int64_t>(order_.size()) > candidates.most) {
    const auto better = [&](std::int32_t a, std::int32_t b) {
      const float of_a = worth_[static_cast<std::size_t>(a)], of_b = worth_[static_cast<std::size_t>(b)];
      return of_a != of_b ? of_a > of_b : a < b;
    };
    std::ranges::nth_element(order_, order_.begin() + static_cast<std::ptrdiff_t>(candidates.most), better);
    order_.resize(static_cast<std::size_t>(candidates.most));
    std::ranges::sort(order_);
  }
  blocks_.clear();
  for (std::int64_t b = 0; b < candidates.first; ++b) blocks_.push_back(static_cast<std::int32_t>(b));
  for (const std::int32_t b : order_) blocks_.push_back(static_cast<std::int32_t>(candidates.first) + b);
  for (std::int64_t b = candidates.end; b < blocks; ++b) blocks_.push_back(static_cast<std::int32_t>(b));
  return blocks_;
}

}  // namespace millrace
