#include "kv/page_layout.h"

#include <gtest/gtest.h>

#include <vector>

namespace millrace {
namespace {

TEST(PageLayout, OneGroupForAllFullLayers) {
  const std::vector<KvShape> shapes(3, KvShape{.kv_heads = 2, .head_dim = 32});
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::bf16);
  ASSERT_EQ(layout.groups.size(), 1u);
  const std::size_t block = 2 * 16 * 32 * 2;
  EXPECT_EQ(layout.groups[0].page_bytes, 6 * block);
  EXPECT_EQ(layout.layers[1].key_offset, 2 * block);
  EXPECT_EQ(layout.layers[1].value_offset, 3 * block);
}

TEST(PageLayout, WindowsHaveTheirOwnGroupAndShapesMayDiffer) {
  const std::vector<KvShape> shapes{{.kv_heads = 4, .head_dim = 8, .window = 64},
                                    {.kv_heads = 1, .head_dim = 128},
                                    {.kv_heads = 4, .head_dim = 8, .window = 64}};
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::f32);
  ASSERT_EQ(layout.groups.size(), 2u);
  EXPECT_EQ(layout.groups[0].window, 64);
  EXPECT_EQ(layout.groups[1].window, 0);
  EXPECT_EQ(layout.layers[2].group, 0);
  EXPECT_EQ(layout.groups[0].page_bytes, 4u * 4 * 16 * 8 * 4);
  EXPECT_EQ(layout.groups[1].page_bytes, 2u * 16 * 128 * 4);
}

TEST(PageLayout, LevelsHaveGroupsOfTheirOwn) {
  const std::vector<KvShape> shapes{{.kv_heads = 2, .head_dim = 8, .level = 0},
                                    {.kv_heads = 2, .head_dim = 8, .window = 64, .level = 0},
                                    {.kv_heads = 2, .head_dim = 8, .level = 1},
                                    {.kv_heads = 2, .head_dim = 8, .window = 64, .level = 1},
                                    {.kv_heads = 2, .head_dim = 8, .level = 1}};
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::f32);
  ASSERT_EQ(layout.groups.size(), 3u);
  std::vector<std::int32_t> groups;
  for (const KvPlace& place : layout.layers) groups.push_back(place.group);
  EXPECT_EQ(groups, (std::vector<std::int32_t>{0, 1, 2, 1, 2})) << "windows have no levels";
  EXPECT_EQ(layout.groups[2].page_bytes, 2 * layout.groups[0].page_bytes);
}

TEST(PageLayout, LevelsWithPagesOfOneSizeHaveACommonPool) {
  const auto pools_of = [](const PageLayout& layout) {
    std::vector<std::int32_t> pools;
    for (const CacheGroup& group : layout.groups) pools.push_back(group.pool);
    return pools;
  };
  // Two layers, one with a window, two, and one alone.
  const std::vector<KvShape> shapes{{.kv_heads = 2, .head_dim = 8, .key_bounds = true, .level = 0},
                                    {.kv_heads = 2, .head_dim = 8, .level = 0},
                                    {.kv_heads = 1, .head_dim = 32, .window = 64},
                                    {.kv_heads = 2, .head_dim = 8, .key_bounds = true, .key_buckets = 3, .level = 1},
                                    {.kv_heads = 2, .head_dim = 8, .key_bounds = true, .key_buckets = 3, .level = 1},
                                    {.kv_heads = 2, .head_dim = 8, .key_bounds = true, .level = 2}};
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::f32);
  EXPECT_EQ(pools_of(layout), (std::vector<std::int32_t>{0, 1, 0, 2})) << "no level beside one of another size";
  ASSERT_EQ(layout.pools.size(), 3u);
  EXPECT_EQ(layout.pools[0].groups, 2);
  EXPECT_EQ(layout.pools[0].page_bytes, layout.groups[0].page_bytes);
  EXPECT_EQ(layout.groups[1].page_bytes, layout.pools[0].page_bytes) << "a window stays apart, whatever its size";
  EXPECT_EQ(layout.pools[2].groups, 1);
  // Bounds of the first layer that has some, of either level, stand together; the first level has no second.
  std::vector<std::int32_t> bounds, buckets;
  for (const KvPlace& place : layout.layers) {
    bounds.push_back(place.key_bounds);
    buckets.push_back(place.key_buckets);
  }
  EXPECT_EQ(bounds, (std::vector<std::int32_t>{0, -1, -1, 0, 1, 2}));
  EXPECT_EQ(buckets, (std::vector<std::int32_t>{-1, -1, -1, 0, 1, -1}));
  EXPECT_EQ(layout.layers[3].hash.layer, 3u);
  EXPECT_EQ(layout.layers[4].hash.layer, 4u);
  EXPECT_EQ(layout.key_bounds[1].pool, 0);
  EXPECT_EQ(layout.key_bounds[2].pool, 2);
  // Every page of a pool has what lies beside it.
  const std::size_t bound = layout.key_bounds[0].page_bytes, bucket = layout.key_buckets[0].page_bytes;
  EXPECT_EQ(layout.bytes_per_page_row(),
            3 * layout.pools[0].page_bytes + layout.pools[2].page_bytes + 2 * 2 * (bound + bucket) + bound);
}

TEST(PageLayout, ALayerWithASourceHasItsPlaceAndNoBytes) {
  const std::vector<KvShape> shapes{{.kv_heads = 1, .head_dim = 16},
                                    {.kv_heads = 1, .head_dim = 16, .source_layer = 0}};
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::f32);
  EXPECT_EQ(layout.groups[0].page_bytes, 2u * 16 * 16 * 4);
  EXPECT_EQ(layout.layers[1].key_offset, layout.layers[0].key_offset);
  EXPECT_EQ(layout.layers[1].value_offset, layout.layers[0].value_offset);
}

TEST(PageLayout, ScalesFollowTheCodes) {
  for (const KvFormat format : {KvFormat::int8, KvFormat::fp8_e4m3}) {
    const std::vector<KvShape> shapes(2, KvShape{.kv_heads = 3, .head_dim = 20});
    const PageLayout layout = make_page_layout(shapes, 16, format);
    const std::size_t codes = 3 * 16 * 20, scales = 3 * 16 * 4;  // both whole lines
    EXPECT_EQ(layout.groups[0].page_bytes, 4 * (codes + scales));
    const KvPlace& place = layout.layers[1];
    EXPECT_EQ(place.key_offset, 2 * (codes + scales));
    EXPECT_EQ(place.key_scale_offset, place.key_offset + codes);
    EXPECT_EQ(place.value_offset, place.key_scale_offset + scales);
    EXPECT_EQ(place.value_scale_offset, place.value_offset + codes);
  }
}

TEST(PageLayout, CodesWithoutScalesAreAlone) {
  for (const KvFormat format : {KvFormat::fp8_e4m3_unscaled, KvFormat::fp8_e5m2}) {
    const PageLayout layout =
        make_page_layout(std::vector<KvShape>(2, KvShape{.kv_heads = 3, .head_dim = 20}), 16, format);
    EXPECT_EQ(layout.groups[0].page_bytes, 4u * 3 * 16 * 20);
  }
}

TEST(PageLayout, FourBitsAreInPairsWithScalesAndMiddles) {
  for (const std::int32_t head_dim : {7, 8}) {
    const std::vector<KvShape> shapes(2, KvShape{.kv_heads = 4, .head_dim = head_dim});
    const PageLayout layout = make_page_layout(shapes, 16, KvFormat::int4);
    const std::size_t codes = 4 * 16 * 4, scales = 2 * 4 * 16 * 4;  // both whole lines
    EXPECT_EQ(layout.groups[0].page_bytes, 4 * (codes + scales));
    EXPECT_EQ(layout.layers[1].value_offset, 3 * (codes + scales));
    EXPECT_EQ(layout.layers[1].value_scale_offset, 3 * (codes + scales) + codes);
  }
}

TEST(PageLayout, BoundsOfKeysStandBesideThePages) {
  const std::vector<KvShape> shapes{{.kv_heads = 3, .head_dim = 20},
                                    {.kv_heads = 3, .head_dim = 20, .key_bounds = true},
                                    {.kv_heads = 3, .head_dim = 20, .source_layer = 1},
                                    {.kv_heads = 3, .head_dim = 20, .window = 8},
                                    {.kv_heads = 3, .head_dim = 20, .key_bounds = true}};
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::bf16);
  const std::size_t block = 3 * 16 * 20 * 2, bounds = 3 * 2 * 32 * 2;  // numbers of a bound: 20, in groups of 16
  std::vector<std::int32_t> which;
  for (const KvPlace& place : layout.layers) which.push_back(place.key_bounds);
  EXPECT_EQ(which, (std::vector<std::int32_t>{-1, 0, 0, -1, 1})) << "the third has those of the layer that it reads";
  ASSERT_EQ(layout.key_bounds.size(), 2u);
  for (const KeyNotes& of : layout.key_bounds) {
    EXPECT_EQ(of.pool, 0);
    EXPECT_EQ(of.page_bytes, bounds);
  }
  EXPECT_EQ(layout.groups[0].page_bytes, 6 * block);
  EXPECT_EQ(layout.bytes_per_page_row(), 8 * block + 2 * bounds);
}

TEST(PageLayout, BucketsOfKeysStandBesideThePages) {
  const std::vector<KvShape> shapes{{.kv_heads = 3, .head_dim = 20},
                                    {.kv_heads = 3, .head_dim = 20, .key_buckets = 7},
                                    {.kv_heads = 3, .head_dim = 20, .source_layer = 1},
                                    {.kv_heads = 3, .head_dim = 20, .window = 8},
                                    {.kv_heads = 5, .head_dim = 20, .key_bounds = true, .key_buckets = 7}};
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::bf16);
  std::vector<std::int32_t> which;
  for (const KvPlace& place : layout.layers) which.push_back(place.key_buckets);
  EXPECT_EQ(which, (std::vector<std::int32_t>{-1, 0, 0, -1, 1})) << "the third has those of the layer that it reads";
  ASSERT_EQ(layout.key_buckets.size(), 2u);
  EXPECT_EQ(layout.key_buckets[0].page_bytes, 64u);   // a byte for each of 3 heads and 16 positions, in whole lines
  EXPECT_EQ(layout.key_buckets[1].page_bytes, 128u);  // of 5 heads
  for (const KeyNotes& of : layout.key_buckets) EXPECT_EQ(of.pool, 0);
  for (const std::size_t l : {1u, 2u, 4u}) EXPECT_EQ(layout.layers[l].hash.seed, 7u);
  EXPECT_EQ(layout.layers[1].hash.layer, 1u);
  EXPECT_EQ(layout.layers[2].hash.layer, 1u);
  EXPECT_EQ(layout.layers[4].hash.layer, 4u);
  const std::size_t keys = 2u * 3 * (3 * 16 * 20 * 2) + 2u * (5 * 16 * 20 * 2), bounds = 5 * 2 * 32 * 2;
  EXPECT_EQ(layout.bytes_per_page_row(), keys + bounds + 64 + 128);
}

TEST(PageLayout, BlocksDoNotOverlapAndStartOnCacheLines) {
  const std::vector<KvShape> shapes{{.kv_heads = 1, .head_dim = 3}, {.kv_heads = 5, .head_dim = 7}};
  const PageLayout layout = make_page_layout(shapes, 16, KvFormat::bf16);
  for (const KvPlace& place : layout.layers) {
    EXPECT_EQ(place.key_offset % 64, 0u);
    EXPECT_EQ(place.value_offset % 64, 0u);
  }
  EXPECT_GE(layout.layers[0].value_offset, 3u * 16 * 2);
  EXPECT_GE(layout.layers[1].key_offset, layout.layers[0].value_offset + 3u * 16 * 2);
  EXPECT_GE(layout.groups[0].page_bytes, layout.layers[1].value_offset + 5u * 7 * 16 * 2);
}

}  // namespace
}  // namespace millrace
