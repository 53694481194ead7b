// What is seen of attention, keys and values, against sums over all that rows see.
#include "convert/attention_watch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "backend/reference/reference_backend.h"
#include "kv/page_layout.h"
#include "quant/kv_codec.h"

namespace millrace {
namespace {

struct Shape {
  std::int32_t heads = 4, kv_heads = 2, head_dim = 24;
  std::int64_t window = 0;
  float softcap = 0.0f;
  bool sinks = false;
  KvFormat format = KvFormat::f32;
};

constexpr std::int64_t kLength = 330;
constexpr std::int32_t kPageTokens = 16;
constexpr float kScale = 0.3f;

/// A sequence of made-up rows that a backend stores and attends to, in steps of 70 rows.
class World {
 public:
  explicit World(const Shape& shape) : shape_(shape), width_((shape.heads + 2 * shape.kv_heads) * shape.head_dim) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    qkv_.resize(static_cast<std::size_t>(kLength * width_));
    for (float& value : qkv_) value = normal(random);
    for (float& sink : sinks_) sink = 2.0f * normal(random);
    table_.resize(static_cast<std::size_t>((kLength + kPageTokens - 1) / kPageTokens));
    std::iota(table_.begin(), table_.end(), 0);
    std::ranges::shuffle(table_, random);
  }

  /// What each position has as its value, where the test wants to see where attention goes.
  void set_values(const std::function<float(std::int64_t position, std::int32_t dimension)>& value) {
    for (std::int64_t t = 0; t < kLength; ++t) {
      for (std::int32_t h = 0; h < shape_.kv_heads; ++h) {
        for (std::int32_t d = 0; d < shape_.head_dim; ++d) number(t, value_at(h) + d) = value(t, d);
      }
    }
  }
  void make_large(std::int32_t kv_head, std::int32_t dimension, float factor) {
    for (std::int64_t t = 0; t < kLength; ++t) number(t, key_at(kv_head) + dimension) *= factor;
  }

  std::vector<float> run(Backend& backend) {
    const std::vector<KvShape> shapes(
        1, {.kv_heads = shape_.kv_heads, .head_dim = shape_.head_dim, .window = shape_.window});
    const PageLayout layout = make_page_layout(shapes, kPageTokens, shape_.format);
    const KvPlace& place = layout.layers[0];
    std::vector<std::byte> memory(layout.groups[0].page_bytes * table_.size());
    const KvLayer kv{.pages = memory.data(),
                     .page_bytes = layout.groups[0].page_bytes,
                     .key_offset = place.key_offset,
                     .value_offset = place.value_offset,
                     .key_scale_offset = place.key_scale_offset,
                     .value_scale_offset = place.value_scale_offset,
                     .page_tokens = kPageTokens,
                     .format = shape_.format};
    std::vector<float> all;
    std::vector<std::int32_t> table = table_;
    for (std::int64_t start = 0; start < kLength; start += 70) {
      const std::int64_t rows = std::min<std::int64_t>(70, kLength - start);
      if (shape_.window != 0) {  // pages that it has left behind are given back
        for (std::int64_t p = 0; p < (start - shape_.window + 1) / kPageTokens; ++p) {
          table[static_cast<std::size_t>(p)] = -1;
        }
      }
      ForwardBatch batch;
      batch.sequences.push_back(
          {.rows = static_cast<std::int32_t>(rows), .first_position = start, .page_tables = {table}});
      std::vector<float> qkv(qkv_.begin() + start * width_, qkv_.begin() + (start + rows) * width_);
      backend.rope_store(batch, {.qkv = qkv.data(),
                                 .qkv_width = width_,
                                 .heads = shape_.heads,
                                 .kv_heads = shape_.kv_heads,
                                 .head_dim = shape_.head_dim,
                                 .kv = kv});
      std::vector<float> out(static_cast<std::size_t>(rows * shape_.heads * shape_.head_dim));
      backend.attend(batch, {.q = qkv.data(),
                             .q_stride = width_,
                             .out = out.data(),
                             .heads = shape_.heads,
                             .kv_heads = shape_.kv_heads,
                             .head_dim = shape_.head_dim,
                             .window = shape_.window,
                             .scale = kScale,
                             .softcap = shape_.softcap,
                             .sinks = shape_.sinks ? sinks_ : nullptr,
                             .kv = kv,
                             .layer = 5});
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }

  /// What the row gives to each position, in double, of keys as they were before they were stored.
  [[nodiscard]] std::vector<double> masses(std::int64_t row, std::int32_t head) const {
    std::vector<double> all(static_cast<std::size_t>(kLength), 0.0);
    double sum = shape_.sinks ? std::exp(double{sinks_[head]}) : 0.0;
    for (std::int64_t t = shape_.window == 0 ? 0 : std::max<std::int64_t>(0, row - shape_.window + 1); t <= row; ++t) {
      double score = 0.0;
      for (std::int32_t d = 0; d < shape_.head_dim; ++d) {
        score += double{number(row, head * shape_.head_dim + d)} *
                 double{number(t, key_at(head / (shape_.heads / shape_.kv_heads)) + d)};
      }
      score *= double{kScale};
      if (shape_.softcap != 0.0f) score = shape_.softcap * std::tanh(score / shape_.softcap);
      sum += all[static_cast<std::size_t>(t)] = std::exp(score);
    }
    for (double& mass : all) mass /= sum;
    return all;
  }
  [[nodiscard]] std::int64_t key_at(std::int32_t head) const {
    return (std::int64_t{shape_.heads} + head) * shape_.head_dim;
  }
  [[nodiscard]] std::int64_t value_at(std::int32_t head) const { return key_at(head + shape_.kv_heads); }
  [[nodiscard]] float& number(std::int64_t row, std::int64_t column) {
    return qkv_[static_cast<std::size_t>(row * width_ + column)];
  }
  [[nodiscard]] float number(std::int64_t row, std::int64_t column) const {
    return qkv_[static_cast<std::size_t>(row * width_ + column)];
  }

 private:
  Shape shape_;
  std::int64_t width_;
  std::vector<float> qkv_;
  float sinks_[8] = {};
  std::vector<std::int32_t> table_;
};

/// Every seventeenth row from 128 on.
std::vector<std::int64_t> rows_looked_at() {
  std::vector<std::int64_t> rows;
  for (std::int64_t row = 136; row < kLength; row += 17) rows.push_back(row);
  return rows;
}

double pages_for(std::vector<double> of_pages) {
  std::ranges::sort(of_pages, std::greater());
  const double all = std::accumulate(of_pages.begin(), of_pages.end(), 0.0);
  double held = 0.0, pages = 0.0;
  for (const double mass : of_pages) {
    if (held >= 0.9 * all) break;
    held += mass;
    pages += 1.0;
  }
  return pages;
}

void expect_patterns(const Shape& shape, double tolerance) {
  World world(shape);
  AttentionWatch watch(make_reference_backend());
  EXPECT_EQ(world.run(watch), world.run(*make_reference_backend()));
  const std::optional<AttentionProfile> profile = watch.attention();
  ASSERT_TRUE(profile);
  ASSERT_EQ(profile->layers.size(), 1u);
  const AttentionProfile::Layer& layer = profile->layers[0];
  const std::vector<std::int64_t> rows = rows_looked_at();
  EXPECT_EQ(layer.layer, 5);
  EXPECT_EQ(layer.rows, std::ssize(rows));
  ASSERT_EQ(std::ssize(layer.sinks), shape.heads);
  for (std::int32_t head = 0; head < shape.heads; ++head) {
    double sinks = 0.0, recent = 0.0, between = 0.0, pages = 0.0;
    for (const std::int64_t row : rows) {
      const std::vector<double> masses = world.masses(row, head);
      std::vector<double> of_pages(masses.size() / 16 + 1, 0.0);
      for (std::size_t t = 0; t < masses.size(); ++t) {
        of_pages[t / 16] += masses[t];
        (t < 16 ? sinks : static_cast<std::int64_t>(t) > row - 64 ? recent : between) += masses[t];
      }
      pages += pages_for(of_pages);
    }
    const auto h = static_cast<std::size_t>(head);
    const auto count = static_cast<double>(rows.size());
    EXPECT_NEAR(layer.sinks[h], sinks / count, tolerance) << head;
    EXPECT_NEAR(layer.recent[h], recent / count, tolerance) << head;
    EXPECT_NEAR(layer.between[h], between / count, tolerance) << head;
    // Rounded keys may move a row across the border of a page.
    EXPECT_NEAR(layer.pages[h], pages / count, tolerance < 1e-5 ? 1e-9 : 0.5) << head;
  }
}

TEST(AttentionWatch, SharesAndPagesAreThoseOfTheSoftmax) {
  expect_patterns({}, 1e-6);
  expect_patterns({.heads = 6, .kv_heads = 1, .softcap = 1.5f}, 1e-6);
  expect_patterns({.sinks = true}, 1e-6);
  expect_patterns({.window = 100}, 1e-6);
  expect_patterns({.window = 30, .sinks = true}, 1e-6);
  expect_patterns({.heads = 2, .kv_heads = 2, .format = KvFormat::bf16}, 1e-3);
  expect_patterns({.format = KvFormat::int8}, 3e-3);
}

/// With values that say which page they are of, the reference backend itself says where attention goes.
TEST(AttentionWatch, PagesAreThoseOfTheReferenceBackend) {
  const Shape shape{.softcap = 4.0f};  // 24 dimensions, 21 pages
  World world(shape);
  world.set_values([](std::int64_t position, std::int32_t d) { return position / 16 == d ? 1.0f : 0.0f; });
  AttentionWatch watch(make_reference_backend());
  const std::vector<float> out = world.run(watch);
  const AttentionProfile::Layer layer = watch.attention()->layers[0];
  const std::vector<std::int64_t> rows = rows_looked_at();
  for (std::int32_t head = 0; head < shape.heads; ++head) {
    double sinks = 0.0, pages = 0.0;
    for (const std::int64_t row : rows) {
      const auto begin = out.begin() + (row * shape.heads + head) * shape.head_dim;
      const std::vector<double> of_pages(begin, begin + shape.head_dim);
      sinks += of_pages[0];
      pages += pages_for(of_pages);
    }
    const auto h = static_cast<std::size_t>(head);
    EXPECT_NEAR(layer.sinks[h], sinks / static_cast<double>(rows.size()), 1e-5);
    EXPECT_NEAR(layer.pages[h], pages / static_cast<double>(rows.size()), 1e-9);
  }
}

TEST(AttentionWatch, SizesOfKeysAndValuesSayWhichChannelsStandOut) {
  for (const KvFormat format : {KvFormat::f32, KvFormat::int8}) {
    const Shape shape{.format = format};
    World world(shape);
    world.make_large(1, 7, 50.0f);
    AttentionWatch watch(make_reference_backend());
    world.run(watch);
    const std::optional<KvProfile> profile = watch.kv();
    ASSERT_TRUE(profile);
    ASSERT_EQ(profile->layers.size(), 1u);
    EXPECT_EQ(profile->layers[0].layer, 5);
    EXPECT_EQ(profile->layers[0].rows, kLength);
    // int8 has a scale for each row and head: what stands beside an outlier is rounded coarsely.
    const double tolerance = format == KvFormat::f32 ? 1e-6 : 0.3;
    for (std::int32_t head = 0; head < shape.kv_heads; ++head) {
      for (const bool key : {true, false}) {
        std::vector<double> largest, rms;
        double squares = 0.0;
        for (std::int32_t d = 0; d < shape.head_dim; ++d) {
          double size = 0.0, sum = 0.0;
          for (std::int64_t t = 0; t < kLength; ++t) {
            const double value = world.number(t, (key ? world.key_at(head) : world.value_at(head)) + d);
            size = std::max(size, std::fabs(value));
            sum += value * value;
          }
          largest.push_back(size);
          rms.push_back(std::sqrt(sum / kLength));
          squares += sum;
        }
        std::ranges::sort(largest);
        std::ranges::sort(rms);
        const KvProfile::Numbers& seen = key ? profile->layers[0].keys : profile->layers[0].values;
        const auto h = static_cast<std::size_t>(head);
        const std::size_t middle = largest.size() / 2;
        EXPECT_NEAR(seen.largest[h], largest.back(), tolerance * 0.1 * largest.back());
        EXPECT_NEAR(seen.rms[h], std::sqrt(squares / static_cast<double>(kLength * shape.head_dim)),
                    tolerance * seen.rms[h]);
        EXPECT_NEAR(seen.largest_ratio[h], largest.back() / largest[middle], tolerance * seen.largest_ratio[h]);
        EXPECT_NEAR(seen.rms_ratio[h], rms.back() / rms[middle], tolerance * seen.rms_ratio[h]);
        EXPECT_EQ(seen.rms_ratio[h] > 20.0, key && head == 1);
      }
    }
  }
}

TEST(AttentionWatch, ChannelsOfZerosAreNoMedian) {
  World world({});
  for (std::int32_t d = 1; d < 20; ++d) world.make_large(0, d, 0.0f);
  for (std::int32_t d = 0; d < 24; ++d) world.make_large(1, d, 0.0f);
  AttentionWatch watch(make_reference_backend());
  world.run(watch);
  const KvProfile::Numbers keys = watch.kv()->layers[0].keys;
  EXPECT_LT(keys.rms_ratio[0], 1.5);
  EXPECT_EQ(keys.rms_ratio[1], 1.0);
  EXPECT_EQ(keys.largest_ratio[1], 1.0);
}

TEST(AttentionWatch, SaysNothingOfWhatItHasNotSeen) {
  const AttentionWatch watch(make_reference_backend());
  EXPECT_FALSE(watch.attention());
  EXPECT_FALSE(watch.kv());
}

}  // namespace
}  // namespace millrace
