// HyperAttention without a backend: hashes, ranks, blocks and samples, and what attention by them is worth, in double.
#include "kv/hyper_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <tuple>

namespace millrace {
namespace {

constexpr std::int64_t kDim = 16;
using Vectors = std::vector<std::vector<float>>;

Vectors normals(std::int64_t count, std::mt19937& random, float size = 1.0f) {
  std::normal_distribution<float> normal(0.0f, size);
  Vectors all(static_cast<std::size_t>(count), std::vector<float>(kDim));
  for (std::vector<float>& vector : all) {
    for (float& number : vector) number = normal(random);
  }
  return all;
}

double product(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

/// A chunk behind `count` positions that its rows approximate, and nothing else.
HyperChunk behind(std::int64_t count) {
  return {.start = count, .begin = 0, .end = count};
}

enum class Parts : std::uint8_t { both, block, samples, twice };  // twice: samples in the block count too

/// What attention of a query is divided into: sums of weights and of weighted values.
struct Sums {
  double weight = 0.0;
  std::vector<double> values = std::vector<double>(kDim, 0.0);

  void add(double by, const std::vector<float>& value) {
    weight += by;
    for (std::size_t d = 0; d < kDim; ++d) values[d] += by * value[d];
  }
  [[nodiscard]] std::vector<double> mean() const {
    std::vector<double> result = values;
    for (double& number : result) number /= weight;
    return result;
  }
};

/// Keys and values of a chunk's past, in the order of their buckets.
class Past {
 public:
  Past(const HyperAttention& hyper, const Vectors& keys, const Vectors& values)
      : hyper_(hyper), keys_(&keys), values_(&values), chunk_(behind(static_cast<std::int64_t>(keys.size()))) {
    planes_ = hash_planes({hyper.seed, 0}, 0, kDim);
    std::vector<std::uint8_t> buckets;
    for (const std::vector<float>& key : keys) buckets.push_back(bucket_of(planes_.data(), key.data(), kDim));
    std::vector<std::int32_t> ranks(keys.size());
    rank_keys(buckets, begins_, ranks.data());
    order_.resize(keys.size());
    for (std::size_t i = 0; i < ranks.size(); ++i) order_[static_cast<std::size_t>(ranks[i])] = i;
    draw_samples(hyper_, chunk_, {0, 0}, samples_);
  }

  [[nodiscard]] Sums exact(const std::vector<float>& query) const {
    Sums sums;
    for (std::size_t i = 0; i < keys_->size(); ++i) sums.add(std::exp(product(query, (*keys_)[i])), (*values_)[i]);
    return sums;
  }

  [[nodiscard]] Sums approximate(const std::vector<float>& query, std::int64_t row, Parts parts = Parts::both) const {
    Sums sums;
    const std::uint8_t bucket = bucket_of(planes_.data(), query.data(), kDim);
    const RankRange block =
        ranks_of_block(hyper_, chunk_, hyper_block(hyper_, chunk_, begins_, bucket, chunk_.start + row));
    const auto add = [&](std::int64_t rank, double log_weight) {
      const std::size_t i = order_[static_cast<std::size_t>(rank)];
      sums.add(std::exp(product(query, (*keys_)[i]) + log_weight), (*values_)[i]);
    };
    for (std::int64_t rank = block.begin; rank < block.end && parts != Parts::samples; ++rank) add(rank, 0.0);
    for (const KeySample& sample : samples_) {
      const bool in_block = sample.rank >= block.begin && sample.rank < block.end;
      if (parts == Parts::block || (in_block && parts == Parts::both)) continue;
      add(sample.rank, sample.log_weight);
    }
    return sums;
  }

 private:
  HyperAttention hyper_;
  const Vectors *keys_, *values_;
  HyperChunk chunk_;
  std::vector<double> planes_;
  BucketBegins begins_ = {};
  std::vector<std::size_t> order_;
  std::vector<KeySample> samples_;
};

/// How far results are from the exact ones, by Frobenius norms: relative to these.
double relative_error(const Past& past, const Vectors& queries, Parts parts) {
  double difference = 0.0, size = 0.0;
  for (std::size_t row = 0; row < queries.size(); ++row) {
    const std::vector<double> exact = past.exact(queries[row]).mean(),
                              got = past.approximate(queries[row], static_cast<std::int64_t>(row), parts).mean();
    for (std::size_t d = 0; d < kDim; ++d) {
      difference += std::pow(exact[d] - got[d], 2);
      size += std::pow(exact[d], 2);
    }
  }
  return std::sqrt(difference / size);
}

TEST(KeyHash, NeighboursInTheOrderOfBucketsDifferInOnePlane) {
  const std::vector<double> planes = hash_planes({3, 1}, 2, kDim);
  std::mt19937 random(1);
  std::vector<int> codes(kHashBuckets, -1);
  for (const std::vector<float>& x : normals(20000, random)) {
    int code = 0;
    for (std::size_t plane = 0; plane < kHashBits; ++plane) {
      double sum = 0.0;
      for (std::size_t d = 0; d < kDim; ++d) sum += x[d] * planes[d * kHashLanes + plane];
      code |= (sum > 0.0 ? 1 : 0) << plane;
    }
    int& known = codes[bucket_of(planes.data(), x.data(), kDim)];
    EXPECT_TRUE(known == -1 || known == code);
    known = code;
  }
  std::set<int> all(codes.begin(), codes.end());
  EXPECT_EQ(all.size(), static_cast<std::size_t>(kHashBuckets)) << "every bucket has a code, and no other's";
  for (std::size_t b = 0; b + 1 < codes.size(); ++b) {
    EXPECT_EQ(std::popcount(static_cast<unsigned>(codes[b] ^ codes[b + 1])), 1) << b;
  }
}

TEST(KeyHash, PlanesPointAnywhereAndAreEachHeadsOwn) {
  constexpr std::int64_t kMany = 4096;
  const std::vector<double> planes = hash_planes({7, 0}, 0, kMany);
  double sum = 0.0, squares = 0.0, fourths = 0.0;
  for (std::int64_t d = 0; d < kMany; ++d) {
    for (std::int64_t plane = 0; plane < kHashBits; ++plane) {
      const double number = planes[static_cast<std::size_t>(d * kHashLanes + plane)];
      EXPECT_LT(std::fabs(number), 1 << 20);
      EXPECT_EQ(number * 2, std::floor(number * 2)) << "products are exact";
      sum += number;
      squares += number * number;
      fourths += std::pow(number, 4);
    }
    EXPECT_EQ(planes[static_cast<std::size_t>(d * kHashLanes + kHashBits)], 0.0);
  }
  const double count = kMany * kHashBits, variance = squares / count;
  EXPECT_NEAR(sum / count, 0.0, 4 * std::sqrt(variance / count));
  EXPECT_NEAR(std::sqrt(variance), 65536 * std::sqrt(16.0 / 12.0), 65536 * 0.02);
  EXPECT_NEAR(fourths / count / variance / variance, 3.0 - 1.2 / 16, 0.15);
  EXPECT_NE(hash_planes({7, 0}, 1, kDim), hash_planes({7, 0}, 0, kDim));
  EXPECT_NE(hash_planes({7, 1}, 0, kDim), hash_planes({7, 0}, 0, kDim));
  EXPECT_NE(hash_planes({8, 0}, 0, kDim), hash_planes({7, 0}, 0, kDim));
  EXPECT_NE(hash_planes({7 + (std::uint64_t{1} << 40), 0}, 0, kDim), hash_planes({7, 0}, 0, kDim));
}

/// Two vectors are on the same side of a plane with one less their angle over pi (Charikar 2002).
TEST(KeyHash, VectorsOfOneDirectionShareABucket) {
  std::mt19937 random(2);
  for (const double angle : {0.1, 0.5, 1.5}) {
    int same = 0;
    constexpr int kPairs = 3000;
    for (int pair = 0; pair < kPairs; ++pair) {
      const std::vector<double> planes = hash_planes({static_cast<std::uint64_t>(pair), 0}, 0, kDim);
      Vectors two = normals(2, random);
      const double along = product(two[0], two[1]) / product(two[0], two[0]);
      for (std::size_t d = 0; d < kDim; ++d) two[1][d] -= static_cast<float>(along) * two[0][d];
      const double size = std::sqrt(product(two[0], two[0]) / product(two[1], two[1]));
      for (std::size_t d = 0; d < kDim; ++d) {
        two[1][d] = static_cast<float>(std::cos(angle) * two[0][d] + std::sin(angle) * size * two[1][d]);
      }
      same += bucket_of(planes.data(), two[0].data(), kDim) == bucket_of(planes.data(), two[1].data(), kDim) ? 1 : 0;
    }
    const double expected = std::pow(1.0 - angle / M_PI, kHashBits);
    EXPECT_NEAR(static_cast<double>(same) / kPairs, expected, 4 * std::sqrt(expected / kPairs)) << angle;
  }
}

TEST(HyperChunk, IsAFunctionOfThePosition) {
  const HyperAttention hyper{.block = 100, .samples = 50, .chunk = 128, .min_tokens = 300};
  EXPECT_EQ(hyper_begin(hyper), 384);  // 64 + 128 + 150 are 342
  HyperAttention early = hyper;
  early.min_tokens = 0;
  EXPECT_EQ(hyper_begin(early), 384);
  early.samples = 0;
  EXPECT_EQ(hyper_begin(early), 384);  // 292, and one to approximate
  early.block = 63;
  EXPECT_EQ(hyper_begin(early), 256);
  early.block = 64;
  EXPECT_EQ(hyper_begin(early), 384) << "a block would take in all of it";
  early.min_tokens = 1000;
  EXPECT_EQ(hyper_begin(early), 1024);
  for (std::int64_t t = 384; t < 1000; ++t) {
    const HyperChunk chunk = hyper_chunk(hyper, t);
    EXPECT_EQ(chunk.start, t / 128 * 128);
    EXPECT_EQ(chunk.begin, 64);
    EXPECT_EQ(chunk.end, chunk.start - 128);
  }
}

TEST(RankKeys, IsAStableSort) {
  std::mt19937 random(3);
  for (const std::size_t count : {1u, 2u, 77u, 1000u}) {
    std::vector<std::uint8_t> buckets(count);
    for (std::uint8_t& bucket : buckets) bucket = static_cast<std::uint8_t>(random() % 40 * 3);
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return buckets[a] < buckets[b]; });
    BucketBegins begins;
    std::vector<std::int32_t> ranks(count);
    rank_keys(buckets, begins, ranks.data());
    for (std::size_t rank = 0; rank < count; ++rank) EXPECT_EQ(ranks[order[rank]], static_cast<std::int32_t>(rank));
    for (std::size_t b = 0; b <= kHashBuckets; ++b) {
      EXPECT_EQ(begins[b], std::ranges::count_if(buckets, [&](std::uint8_t bucket) { return bucket < b; }));
    }
  }
}

TEST(HyperBlock, QueriesOfACrowdedBucketAreSpreadOverItsBlocks) {
  const HyperAttention hyper{.block = 100, .chunk = 1024};
  const HyperChunk chunk{.start = 2048, .begin = 0, .end = 1050};
  BucketBegins begins;
  begins.fill(1050);
  for (std::size_t b = 0; b <= 5; ++b) begins[b] = 0;  // bucket 5 has [0, 950), 6 has nothing, 7 has [950, 1050)
  begins[6] = begins[7] = 950;
  std::vector<int> rows(11, 0);
  for (std::int64_t t = 2048; t < 3072; ++t) {
    const std::int64_t block = hyper_block(hyper, chunk, begins, 5, t);
    EXPECT_EQ(block, (t - 2048) * 950 / 1024 / 100);
    ++rows[static_cast<std::size_t>(block)];
    EXPECT_EQ(hyper_block(hyper, chunk, begins, 6, t), 9) << "where the next key is";
    EXPECT_EQ(hyper_block(hyper, chunk, begins, 127, t), 10) << "behind all keys: the last block";
    EXPECT_EQ(hyper_block(hyper, chunk, begins, 0, t), 0);
  }
  for (std::size_t b = 0; b < 9; ++b) EXPECT_NEAR(rows[b], 108, 1);
  EXPECT_EQ(ranks_of_block(hyper, chunk, 10).begin, 1000);
  EXPECT_EQ(ranks_of_block(hyper, chunk, 10).end, 1050) << "the last block is shorter";
}

TEST(DrawSamples, OneOfEachStratumEachRankAsOften) {
  HyperAttention hyper{.samples = 9};
  const HyperChunk chunk = behind(50);
  std::vector<int> counts(50, 0);
  constexpr int kRounds = 20000;
  std::vector<KeySample> samples;
  double weights = 0.0;
  for (int seed = 0; seed < kRounds; ++seed) {
    hyper.seed = static_cast<std::uint64_t>(seed);
    draw_samples(hyper, chunk, {1, 2}, samples);
    ASSERT_EQ(samples.size(), 9u);
    weights = 0.0;
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const auto begin = static_cast<std::int32_t>(i * 50 / 9), end = static_cast<std::int32_t>((i + 1) * 50 / 9);
      EXPECT_GE(samples[i].rank, begin);
      EXPECT_LT(samples[i].rank, end);
      EXPECT_FLOAT_EQ(std::exp(samples[i].log_weight), static_cast<float>(end - begin));
      weights += std::exp(samples[i].log_weight);
      ++counts[static_cast<std::size_t>(samples[i].rank)];
    }
    EXPECT_NEAR(weights, 50.0, 1e-4);
  }
  for (std::size_t rank = 0; rank < 50; ++rank) {
    const std::size_t stratum = [&] {
      std::size_t i = 0;
      while ((i + 1) * 50 / 9 <= rank) ++i;
      return i;
    }();
    const double chance = 1.0 / static_cast<double>((stratum + 1) * 50 / 9 - stratum * 50 / 9);
    EXPECT_NEAR(counts[rank], kRounds * chance, 4.5 * std::sqrt(kRounds * chance)) << rank;
  }
}

TEST(DrawSamples, DiffersByLayerHeadChunkAndSeed) {
  const HyperAttention hyper{.samples = 40}, other{.samples = 40, .seed = std::uint64_t{1} << 32};
  const auto ranks = [](const HyperAttention& of, std::int64_t start, HyperLot lot) {
    std::vector<KeySample> samples;
    draw_samples(of, {.start = start, .begin = 0, .end = 1000}, lot, samples);
    std::vector<std::int32_t> all;
    for (const KeySample& sample : samples) all.push_back(sample.rank);
    return all;
  };
  const auto drawn = ranks(hyper, 2048, {1, 2});
  EXPECT_EQ(ranks(hyper, 2048, {1, 2}), drawn);
  EXPECT_NE(ranks(hyper, 3072, {1, 2}), drawn);
  EXPECT_NE(ranks(hyper, 2048, {2, 2}), drawn);
  EXPECT_NE(ranks(hyper, 2048, {1, 3}), drawn);
  EXPECT_NE(ranks(other, 2048, {1, 2}), drawn);
}

/// A block that holds everything, or as many samples as there are keys, leaves nothing to chance.
TEST(HyperAttention, IsExactWhereItTakesInEverything) {
  std::mt19937 random(4);
  for (const std::int64_t count : {1, 63, 200, 257}) {
    const Vectors keys = normals(count, random), values = normals(count, random), queries = normals(20, random);
    for (const HyperAttention& hyper : {HyperAttention{.block = count, .samples = 0},
                                        {.block = count, .samples = 7},
                                        {.block = 300, .samples = 300},
                                        {.block = 16, .samples = count},
                                        {.block = 1, .samples = 1000}}) {
      const Past past(hyper, keys, values);
      EXPECT_LT(relative_error(past, queries, Parts::both), 1e-6) << count << ", block " << hyper.block;
      if (hyper.samples >= count) {
        EXPECT_LT(relative_error(past, queries, Parts::samples), 1e-6) << count;
      }
    }
  }
}

/// Numerator and denominator, not their ratio. What is in the block must not count twice, else they are not.
TEST(HyperAttention, SumsAreRightOnAverage) {
  constexpr int kSeeds = 2000;
  constexpr std::int64_t kCount = 211;
  std::mt19937 random(5);
  // Keys of few directions, so that a block holds much of what a query looks for.
  const Vectors centres = normals(8, random, 0.7f), noise = normals(kCount, random, 0.2f),
                values = normals(kCount, random);
  Vectors keys = noise;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::size_t d = 0; d < kDim; ++d) keys[i][d] += centres[i % 8][d];
  }
  const Vectors queries(centres.begin(), centres.begin() + 4);
  const auto worst = [&](Parts parts) {  // deviation of a mean from the exact sum, in its standard errors
    double most = 0.0;
    for (std::size_t row = 0; row < queries.size(); ++row) {
      std::vector<double> sums(kDim + 1, 0.0), squares(kDim + 1, 0.0);
      std::vector<double> exact;
      for (int seed = 0; seed < kSeeds; ++seed) {
        const Past past({.block = 24, .samples = 20, .seed = static_cast<std::uint64_t>(seed)}, keys, values);
        if (exact.empty()) {
          const Sums all = past.exact(queries[row]);
          exact = all.values;
          exact.push_back(all.weight);
        }
        Sums got = past.approximate(queries[row], static_cast<std::int64_t>(row * 200), parts);
        got.values.push_back(got.weight);
        for (std::size_t i = 0; i <= kDim; ++i) {
          const double off = got.values[i] - exact[i];
          sums[i] += off;
          squares[i] += off * off;
        }
      }
      for (std::size_t i = 0; i <= kDim; ++i) {
        const double mean = sums[i] / kSeeds, deviation = std::sqrt(squares[i] / kSeeds - mean * mean);
        most = std::max(most, std::fabs(mean) / (deviation / std::sqrt(kSeeds)));
      }
    }
    return most;
  };
  EXPECT_LT(worst(Parts::both), 4.0);
  EXPECT_LT(worst(Parts::samples), 4.0);
  EXPECT_GT(worst(Parts::twice), 8.0) << "what would be wrong shows";
  EXPECT_GT(worst(Parts::block), 8.0);
}

/// Where the order of keys says nothing of their products, four times the samples halve the error.
TEST(HyperAttention, ErrorFallsWithTheRootOfTheSamples) {
  constexpr std::int64_t kCount = 8192;
  std::mt19937 random(6);
  const Vectors keys = normals(kCount, random), values = normals(kCount, random), queries = normals(6, random, 0.25f);
  std::vector<double> x, y;
  for (const std::int64_t samples : {16, 32, 64, 128, 256, 512}) {
    double difference = 0.0;
    int runs = 0;
    for (std::uint64_t seed = 0; seed < 24; ++seed) {
      const Past past({.block = 1, .samples = samples, .seed = seed}, keys, values);
      for (std::size_t row = 0; row < queries.size(); ++row, ++runs) {
        const std::vector<double> exact = past.exact(queries[row]).mean(),
                                  got = past.approximate(queries[row], static_cast<std::int64_t>(row)).mean();
        for (std::size_t d = 0; d < kDim; ++d) difference += std::pow(exact[d] - got[d], 2);
      }
    }
    x.push_back(std::log(static_cast<double>(samples)));
    y.push_back(0.5 * std::log(difference / runs));
  }
  const double n = static_cast<double>(x.size()), mean_x = std::accumulate(x.begin(), x.end(), 0.0) / n,
               mean_y = std::accumulate(y.begin(), y.end(), 0.0) / n;
  double up = 0.0, across = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    up += (x[i] - mean_x) * (y[i] - mean_y);
    across += (x[i] - mean_x) * (x[i] - mean_x);
  }
  EXPECT_NEAR(up / across, -0.5, 0.1);
}

struct Errors {
  double both = 0.0, block = 0.0, samples = 0.0;
};

/// Of queries of one chunk, on average over seeds.
Errors errors_of(const Vectors& keys, const Vectors& values, const Vectors& queries) {
  constexpr int kSeeds = 5;
  Errors errors;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const Past past({.block = 256, .samples = 256, .chunk = 256, .seed = seed}, keys, values);
    errors.both += relative_error(past, queries, Parts::both) / kSeeds;
    errors.block += relative_error(past, queries, Parts::block) / kSeeds;
    errors.samples += relative_error(past, queries, Parts::samples) / kSeeds;
  }
  return errors;
}

/// Keys and values in clusters, queries that look for one of them: each part alone is worse than both.
TEST(HyperAttention, BothPartsAreBetterThanEither) {
  for (const auto& [clusters, count, most] : {std::tuple<unsigned, std::int64_t, double>{16, 2048, 0.095},
                                              {64, 2048, 0.16},
                                              {16, 2011, 0.095},
                                              {64, 1777, 0.16}}) {
    std::mt19937 random(7);
    const Vectors centres = normals(clusters, random), means = normals(clusters, random);
    Vectors keys = normals(count, random, 0.3f), values = normals(count, random, 0.3f),
            queries = normals(256, random, 0.3f);
    const auto add = [](std::vector<float>& to, const std::vector<float>& what) {
      for (std::size_t d = 0; d < kDim; ++d) to[d] += what[d];
    };
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto cluster = static_cast<std::size_t>(random() % clusters);
      add(keys[i], centres[cluster]);
      add(values[i], means[cluster]);
    }
    for (std::vector<float>& query : queries) add(query, centres[random() % clusters]);
    const Errors errors = errors_of(keys, values, queries);
    EXPECT_LT(errors.both, most) << clusters << " clusters of " << count << " keys";
    EXPECT_LT(errors.both, 0.9 * errors.block) << clusters << " clusters of " << count << " keys";
    EXPECT_LT(errors.both, 0.9 * errors.samples) << clusters << " clusters of " << count << " keys";
  }
}

/// One key for each query that has nearly all of its attention: it is in the query's block or it is missed.
TEST(HyperAttention, SingleKeysAreFoundByTheirHashAlone) {
  constexpr std::int64_t kCount = 2048;
  std::mt19937 random(8);
  Vectors keys = normals(kCount, random);
  const Vectors values = normals(kCount, random);
  for (std::vector<float>& key : keys) {
    const auto size = static_cast<float>(std::sqrt(product(key, key)));
    for (float& number : key) number *= 4.0f / size;
  }
  Vectors queries = normals(256, random, 0.3f);
  for (std::vector<float>& query : queries) {
    const std::vector<float>& wanted = keys[random() % kCount];
    for (std::size_t d = 0; d < kDim; ++d) query[d] += wanted[d];
    const auto size = static_cast<float>(std::sqrt(product(query, query)));
    for (float& number : query) number *= 6.5f / size;
  }
  const Errors errors = errors_of(keys, values, queries);
  EXPECT_LT(errors.both, 0.62);
  EXPECT_LT(errors.both, errors.block);
  EXPECT_GT(errors.samples, 0.95) << "samples alone find nothing";
}

}  // namespace
}  // namespace millrace
