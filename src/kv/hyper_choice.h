// Which keys a row of a prompt reads where attention is approximate (HyperAttention, Han et al. 2023, arXiv
// 2310.05869), and what they weigh. Pure: positions and buckets in, places and weights out.
//
// The positions that the rows of a chunk approximate are put in the order of their buckets: their places in it are
// ranks. Ranks are cut into blocks, and into strata of nearly the same size, of which each gives one sample.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kv/key_hash.h"
#include "recipe/hyper_attention.h"

namespace millrace {

/// A chunk of rows. They approximate the positions [begin, end), and read those before, and from `end` on, as they are.
struct HyperChunk {
  std::int64_t start = 0;  // its first position
  std::int64_t begin = 0, end = 0;

  [[nodiscard]] std::int64_t count() const { return end - begin; }
};

/// The first position whose row approximates something. All later ones do: nothing is approximated where a block and
/// the samples would take in all of it.
std::int64_t hyper_begin(const HyperAttention& hyper);

/// Of the row at `position`, from hyper_begin() on.
HyperChunk hyper_chunk(const HyperAttention& hyper, std::int64_t position);

/// The rank of each bucket's first key, and the number of keys.
using BucketBegins = std::array<std::int32_t, kHashBuckets + 1>;

/// Ranks of keys [buckets.size()]: by their buckets, of equal ones by their positions.
void rank_keys(std::span<const std::uint8_t> buckets, BucketBegins& begins, std::int32_t* ranks);

/// The block that a query reads, by its bucket. Those of a crowded bucket are spread over its blocks in the order of
/// their positions, as if they were sorted like the keys; where nothing has the bucket it is the block with the keys of
/// the next one.
std::int64_t hyper_block(const HyperAttention& hyper, const HyperChunk& chunk, const BucketBegins& begins,
                         std::uint8_t bucket, std::int64_t position);

/// Ranks of a block: the last one may have fewer.
struct RankRange {
  std::int64_t begin = 0, end = 0;
};
RankRange ranks_of_block(const HyperAttention& hyper, const HyperChunk& chunk, std::int64_t block);

struct KeySample {
  std::int32_t rank = 0;
  float log_weight = 0.0f;  // of the number of keys that it stands for
};

/// What tells draws of samples apart, beside the chunk.
struct HyperLot {
  std::uint32_t layer = 0, kv_head = 0;
};

/// One rank of each stratum, ascending. Each key is drawn with one over the size of its stratum and counts as that many
/// times itself, so that a sum over samples outside of a block is right on average for all keys outside of it. With as
/// many samples as keys each is drawn once.
void draw_samples(const HyperAttention& hyper, const HyperChunk& chunk, const HyperLot& lot,
                  std::vector<KeySample>& samples);

}  // namespace millrace
