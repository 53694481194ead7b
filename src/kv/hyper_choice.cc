#include "kv/hyper_choice.h"

#include <algorithm>
#include <cmath>

#include "core/philox.h"

namespace millrace {

std::int64_t hyper_begin(const HyperAttention& hyper) {
  const std::int64_t read = hyper.sink_tokens + hyper.recent_tokens + hyper.block + hyper.samples;
  return (std::max(hyper.min_tokens, read + 1) + hyper.chunk - 1) / hyper.chunk * hyper.chunk;
}

HyperChunk hyper_chunk(const HyperAttention& hyper, std::int64_t position) {
  const std::int64_t start = position / hyper.chunk * hyper.chunk;
  return {.start = start, .begin = hyper.sink_tokens, .end = start - hyper.recent_tokens};
}

void rank_keys(std::span<const std::uint8_t> buckets, BucketBegins& begins, std::int32_t* ranks) {
  begins.fill(0);
  for (const std::uint8_t bucket : buckets) ++begins[bucket + std::size_t{1}];
  for (std::size_t b = 0; b < kHashBuckets; ++b) begins[b + 1] += begins[b];
  BucketBegins next = begins;
  for (std::size_t i = 0; i < buckets.size(); ++i) ranks[i] = next[buckets[i]]++;
}

std::int64_t hyper_block(const HyperAttention& hyper, const HyperChunk& chunk, const BucketBegins& begins,
                         std::uint8_t bucket, std::int64_t position) {
  const std::int64_t first = begins[bucket], size = begins[bucket + std::size_t{1}] - first;
  const std::int64_t rank = first + (position - chunk.start) * size / hyper.chunk;
  return std::min(rank, chunk.count() - 1) / hyper.block;
}

RankRange ranks_of_block(const HyperAttention& hyper, const HyperChunk& chunk, std::int64_t block) {
  return {block * hyper.block, std::min(chunk.count(), (block + 1) * hyper.block)};
}

void draw_samples(const HyperAttention& hyper, const HyperChunk& chunk, const HyperLot& lot,
                  std::vector<KeySample>& samples) {
  const std::int64_t count = chunk.count(), strata = std::min(hyper.samples, count);
  samples.clear();
  PhiloxBlock draws = {};
  for (std::int64_t i = 0; i < strata; ++i) {
    if (i % 4 == 0) {
      draws = philox4x32_10({static_cast<std::uint32_t>(i / 4), static_cast<std::uint32_t>(chunk.start / hyper.chunk),
                             lot.layer, 2 * lot.kv_head + 1},
                            {static_cast<std::uint32_t>(hyper.seed), static_cast<std::uint32_t>(hyper.seed >> 32)});
    }
    const std::int64_t begin = i * count / strata, size = (i + 1) * count / strata - begin;
    const auto drawn =
        static_cast<std::int64_t>((static_cast<std::uint64_t>(size) * draws[static_cast<std::size_t>(i % 4)]) >> 32);
    samples.push_back(
        {static_cast<std::int32_t>(begin + drawn), static_cast<float>(std::log(static_cast<double>(size)))});
  }
}

}  // namespace millrace
