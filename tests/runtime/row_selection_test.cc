// The passes over rows and the selections made of them, against plain sorts, on every instruction set of this machine.
#include "runtime/row_selection.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/test_rows.h"

namespace millrace {
namespace {

constexpr float kLog2E = 1.44269504f;

std::vector<RowItem> sorted_items(const std::vector<float>& row) {
  std::vector<RowItem> items;
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (row[i] > -kInfinity) items.push_back({row[i], static_cast<std::int32_t>(i)});
  }
  std::sort(items.begin(), items.end(), more_likely);
  return items;
}

/// floor(total · uniform) for a uniform that is a multiple of 2^-24.
std::uint64_t share_of(std::uint64_t total, float uniform) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>((Wide{total} * static_cast<std::uint32_t>(uniform * 0x1p24f)) >> 24);
}

TEST(RowKernels, WeightsAreAccurate) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-41.0f, 0.0f);
  const WeightScale weights{.largest = 0.0f, .scale = 1.0f};
  double worst = 0.0;
  for (int i = 0; i < 300000; ++i) {
    const float y = i <= 41 ? -static_cast<float>(i) : i <= 82 ? 41.5f - static_cast<float>(i) : exponent(random);
    const double exact = std::exp2(static_cast<double>(y));
    worst = std::max(worst, std::abs(static_cast<double>(row_kernels()[0]->weight(y, weights)) / exact - 1.0));
  }
  EXPECT_LE(worst, 2e-7);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const RowKernels* kernels : row_kernels()) {
    EXPECT_EQ(kernels->weight(0.0f, weights), 1.0f);
    EXPECT_EQ(kernels->weight(-41.0f, weights), 0x1p-41f);
    for (const float none : {-41.001f, -1e30f, -kInfinity, nan}) EXPECT_EQ(kernels->weight(none, weights), 0.0f);
    EXPECT_EQ(kernels->weight(-2.0f, {.largest = 0.0f, .scale = 1.0f, .floor = -1.5f}), 0.0f);
  }
}

TEST(RowKernels, AllInstructionSetsAgreeToTheBit) {
  for (const TestRow& row : test_rows()) {
    const RowKernels& expected = *row_kernels()[0];
    for (const RowKernels* kernels : row_kernels().subspan(1)) {
      SCOPED_TRACE(row.name + " of " + std::to_string(row.logits.size()) + ", " + kernels->name);
      std::vector<float> maxima, expected_maxima;
      const RowView view = view_row(*kernels, row.logits, maxima);
      const RowView expected_view = view_row(expected, row.logits, expected_maxima);
      ASSERT_EQ(maxima, expected_maxima);
      if (std::isinf(view.largest)) continue;
      std::vector<std::int32_t> all_units;
      for (const float scale : {kLog2E, 0.01f, std::numeric_limits<float>::max()}) {
        const WeightScale weights{.largest = view.largest, .scale = scale, .floor = -30.0f};
        std::vector<double> sums, expected_sums;
        ASSERT_EQ(sum_blocks(view, weights, sums), sum_blocks(expected_view, weights, expected_sums));
        ASSERT_EQ(sums, expected_sums);
        all_units.clear();
        for (std::size_t begin = 0; begin < row.logits.size(); begin += kRowBlock) {
          const std::size_t count = std::min(kRowBlock, row.logits.size() - begin);
          const float* block = &row.logits[begin];
          std::vector<std::int32_t> units(kRowBlock), expected_units(kRowBlock);
          ASSERT_EQ(kernels->fill_units(block, count, weights, units.data()),
                    expected.fill_units(block, count, weights, expected_units.data()));
          ASSERT_EQ(units, expected_units);
          std::vector<std::int32_t> places(kRowBlock), expected_places(kRowBlock);
          ASSERT_EQ(kernels->find_at_least(block, count, view.largest - 1.0f, places.data()),
                    expected.find_at_least(block, count, view.largest - 1.0f, expected_places.data()));
          ASSERT_EQ(places, expected_places);
          const FoundUnits found = kernels->find_units(units.data(), 1000, 1 << 28, places.data());
          const FoundUnits expected_found = expected.find_units(units.data(), 1000, 1 << 28, expected_places.data());
          ASSERT_EQ(found.count, expected_found.count);
          ASSERT_EQ(found.sum_above, expected_found.sum_above);
          ASSERT_EQ(places, expected_places);
          all_units.insert(all_units.end(), units.begin(), units.end());
        }
        const UnitSums a = kernels->sum_units(all_units.data(), all_units.size() / kRowBlock, 5, 1 << 29);
        const UnitSums b = expected.sum_units(all_units.data(), all_units.size() / kRowBlock, 5, 1 << 29);
        for (int i = 0; i < 2; ++i) {
          EXPECT_EQ(a.sums[i], b.sums[i]);
          EXPECT_EQ(a.counts[i], b.counts[i]);
        }
      }
    }
  }
}

TEST(RowKernels, SumsOfUnitsAreExact) {
  const std::vector<std::int32_t> full(64 * kRowBlock, kUnitsOfOne);  // the largest that can be
  std::mt19937 random(2);
  std::vector<std::int32_t> mixed(full.size());
  for (std::int32_t& unit : mixed) unit = static_cast<std::int32_t>(random() % (kUnitsOfOne + 1u));
  for (const RowKernels* kernels : row_kernels()) {
    EXPECT_EQ(kernels->sum_units(full.data(), 64, 1, 1).sums[0], full.size() << 30);
    std::uint64_t sum = 0;
    std::int64_t count = 0;
    for (const std::int32_t unit : mixed) {
      sum += unit >= 12345 ? static_cast<std::uint64_t>(unit) : 0;
      count += unit >= 12345;
    }
    const UnitSums sums = kernels->sum_units(mixed.data(), 64, 1 << 30, 12345);
    EXPECT_EQ(sums.sums[1], sum);
    EXPECT_EQ(sums.counts[1], count);
  }
}

TEST(RowSelection, MostLikelyItemsAreThoseOfASort) {
  for (const TestRow& row : test_rows()) {
    const std::vector<RowItem> sorted = sorted_items(row.logits);
    for (const RowKernels* kernels : row_kernels()) {
      std::vector<float> maxima;
      const RowView view = view_row(*kernels, row.logits, maxima);
      SelectionScratch scratch;
      for (const std::size_t k : {1u, 2u, 5u, 40u, 300u, 2500u, 5000u, 9000u, 100000u}) {
        SCOPED_TRACE(row.name + " of " + std::to_string(row.logits.size()) + ", k " + std::to_string(k));
        const std::span<RowItem> items = most_likely_items(view, k, scratch);
        ASSERT_EQ(items.size(), std::min(k, sorted.size()));
        std::int32_t before = -1;
        for (const RowItem& item : items) {
          ASSERT_LT(before, item.place);
          before = item.place;
        }
        std::sort(items.begin(), items.end(), more_likely);
        for (std::size_t i = 0; i < items.size(); ++i) ASSERT_EQ(items[i].place, sorted[i].place);
      }
      if (view.largest > -kInfinity) {
        EXPECT_EQ(place_of_largest(view), sorted[0].place);
      }
    }
  }
}

TEST(RowSelection, DrawsInTopPAreThoseOfASort) {
  std::mt19937 random(3);
  for (const TestRow& row : test_rows()) {
    std::vector<float> maxima;
    const RowView view = view_row(*row_kernels()[0], row.logits, maxima);
    if (std::isinf(view.largest)) continue;
    for (const float scale : {kLog2E, 0.01f, 20.0f, std::numeric_limits<float>::max()}) {
      const WeightScale weights{.largest = view.largest, .scale = scale};
      std::vector<RowItem> items;
      std::uint64_t total = 0;
      for (std::size_t i = 0; i < row.logits.size(); ++i) {
        const float weight = view.kernels->weight(row.logits[i], weights);
        const auto units = static_cast<std::uint64_t>(std::nearbyint(static_cast<double>(weight) * kUnitsOfOne));
        items.push_back({static_cast<float>(units), static_cast<std::int32_t>(i), units});
        total += units;
      }
      std::sort(items.begin(), items.end(), more_likely);
      for (const float top_p : {1e-9f, 0.1f, 0.5f, 0.95f, 0.9999999f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          SCOPED_TRACE(row.name + " of " + std::to_string(row.logits.size()) + ", scale " + std::to_string(scale) +
                       ", top_p " + std::to_string(top_p) + ", min_p " + std::to_string(min_p));
          std::vector<bool> in_set(row.logits.size());
          std::uint64_t kept = 0, reached = 0;
          for (const RowItem& item : items) {
            if (static_cast<double>(reached) >= static_cast<double>(top_p) * static_cast<double>(total)) break;
            reached += item.weight;
            if (static_cast<double>(item.weight) < static_cast<double>(min_p) * kUnitsOfOne) continue;
            in_set[static_cast<std::size_t>(item.place)] = true;
            kept += item.weight;
          }
          std::vector<RowItem> by_place = items;
          std::erase_if(by_place, [&](const RowItem& item) { return !in_set[static_cast<std::size_t>(item.place)]; });
          std::sort(by_place.begin(), by_place.end(), [](const auto& a, const auto& b) { return a.place < b.place; });
          // Ends of the running sum, and places in it; every instruction set draws the same.
          for (int i = 0; i < 5; ++i) {
            const float uniform = i == 0   ? 0.0f
                                  : i == 1 ? 1.0f - 0x1p-24f
                                           : static_cast<float>(random() >> 8) * 0x1p-24f;
            SelectionScratch scratch;
            const std::int32_t place = draw_in_top_p(view, weights, top_p, min_p, uniform, scratch);
            ASSERT_TRUE(in_set[static_cast<std::size_t>(place)]) << place;
            std::uint64_t left = share_of(kept, uniform);
            std::size_t expected = 0;
            for (; left >= by_place[expected].weight; ++expected) left -= by_place[expected].weight;
            ASSERT_EQ(place, by_place[expected].place);
            for (const RowKernels* kernels : row_kernels().subspan(1)) {
              RowView other = view;
              other.kernels = kernels;
              ASSERT_EQ(draw_in_top_p(other, weights, top_p, min_p, uniform, scratch), place) << kernels->name;
            }
          }
        }
      }
    }
  }
}

TEST(RowSelection, TopPMayEndExactlyWhereTheWeightsDrop) {
  // 4096 tokens with half of the probability, and twice as many tokens with the other half.
  std::vector<float> logits(3 * 4096);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = i % 3 == 0 ? 0.0f : -1.0f;
  for (const RowKernels* kernels : row_kernels()) {
    std::vector<float> maxima;
    const RowView view = view_row(*kernels, logits, maxima);
    SelectionScratch scratch;
    const WeightScale weights{.largest = 0.0f, .scale = 1.0f};
    bool light = false;
    for (int i = 0; i < 50; ++i) {
      const float uniform = 0x1p-24f + static_cast<float>(i) / 50.0f;
      EXPECT_EQ(draw_in_top_p(view, weights, 0.5f, 0.0f, uniform, scratch) % 3, 0);
      light = light || draw_in_top_p(view, weights, 0.75f, 0.0f, uniform, scratch) % 3 != 0;
      EXPECT_EQ(draw_in_top_p(view, weights, 0.75f, 0.500001f, uniform, scratch) % 3, 0);
    }
    // The last of the running sum; and one token more than half, token 1 with weights from 1 to 1.5 of 4096.5.
    EXPECT_EQ(draw_in_top_p(view, weights, 0.5f, 0.0f, 1.0f - 0x1p-24f, scratch), 3 * 4095);
    for (const float top_p : {0.5f, std::nextafter(0.5f, 1.0f)}) {
      EXPECT_EQ(draw_in_top_p(view, weights, top_p, 0.0f, 5119.0f * 0x1p-24f, scratch), top_p == 0.5f ? 3 : 1);
    }
    EXPECT_TRUE(light);
  }
}

TEST(RowSelection, DrawsByPlaceFollowTheRunningSum) {
  std::mt19937 random(4);
  for (const TestRow& row : test_rows()) {
    std::vector<float> maxima;
    const RowView view = view_row(*row_kernels()[0], row.logits, maxima);
    if (std::isinf(view.largest)) continue;
    for (const float scale : {kLog2E, 0.01f, std::numeric_limits<float>::max()}) {
      const WeightScale weights{.largest = view.largest, .scale = scale};
      std::vector<double> running{0.0};
      for (const float logit : row.logits) {
        running.push_back(running.back() + static_cast<double>(view.kernels->weight(logit, weights)));
      }
      for (int i = 0; i < 12; ++i) {
        const float uniform = i == 0 ? 0.0f : i == 1 ? 1.0f - 0x1p-24f : static_cast<float>(random() >> 8) * 0x1p-24f;
        SelectionScratch scratch;
        const std::int32_t place = draw_by_place(view, weights, uniform, scratch);
        const double target = static_cast<double>(uniform) * running.back();
        const double tolerance = 2e-6 * running.back();  // blocks are summed in float32
        ASSERT_LE(running[static_cast<std::size_t>(place)], target + tolerance) << row.name;
        ASSERT_GE(running[static_cast<std::size_t>(place) + 1], target - tolerance) << row.name;
        ASSERT_GT(view.kernels->weight(row.logits[static_cast<std::size_t>(place)], weights), 0.0f);
        for (const RowKernels* kernels : row_kernels().subspan(1)) {
          RowView other = view;
          other.kernels = kernels;
          ASSERT_EQ(draw_by_place(other, weights, uniform, scratch), place) << kernels->name;
        }
      }
    }
  }
}

TEST(RowSelection, SmallestPrefixIsThatOfASort) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const std::size_t size = 1 + random() % 1000;
    std::vector<RowItem> items;
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < size; ++i) {
      const int shift = static_cast<int>(random() % 40) - 20;
      const float logit = round % 2 == 0 ? std::ldexp(static_cast<float>(random() % 100), shift)
                                         : static_cast<float>(random() % 7) - 3.0f;
      items.push_back({logit, static_cast<std::int32_t>(i), random() % 5});
      total += items.back().weight;
    }
    const std::uint64_t wanted = 1 + random() % (total + 2);  // at times more than there is
    std::vector<RowItem> sorted = items;
    std::sort(sorted.begin(), sorted.end(), more_likely);
    std::size_t last = 0;
    for (std::uint64_t reached = sorted[0].weight; last + 1 < size && reached < wanted;)
      reached += sorted[++last].weight;
    ASSERT_EQ(smallest_prefix(items, wanted).place, sorted[last].place);
  }
}

TEST(RowSelection, PortableLog2) {
  EXPECT_EQ(portable_log2(1.0), 0.0);
  EXPECT_EQ(portable_log2(0.5), -1.0);
  EXPECT_EQ(portable_log2(0x1p40), 40.0);
  std::mt19937 random(6);
  for (int i = 0; i < 10000; ++i) {
    const double x = std::ldexp(1.0 + static_cast<double>(random()) * 0x1p-32, static_cast<int>(random() % 300) - 150);
    ASSERT_NEAR(portable_log2(x), std::log2(x), 1e-15 * std::max(1.0, std::abs(std::log2(x))));
  }
}

}  // namespace
}  // namespace millrace
