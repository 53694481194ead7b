// Sets of sequences that begin with the same pages: valid ones, and those that save the most.

#include "runtime/shared_prefix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>

namespace millrace {
namespace {

constexpr std::int32_t kPageTokens = 16;

/// A batch and the page tables that it points to.
class Batch {
 public:
  Batch() = default;
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  /// A sequence whose pages are `pages`, then some of its own up to its last row.
  void add(std::vector<std::int32_t> pages, std::int64_t position, std::int32_t rows = 1) {
    const auto needed = static_cast<std::size_t>((position + rows + kPageTokens - 1) / kPageTokens);
    while (pages.size() < needed) pages.push_back(next_own_++);
    tables_.push_back(std::make_unique<std::vector<std::int32_t>>(std::move(pages)));
    batch_.sequences.push_back({.first_row = static_cast<std::int32_t>(batch_.rows()),
                                .rows = rows,
                                .first_position = position,
                                .page_tables = {*tables_.back()}});
    for (std::int32_t r = 0; r < rows; ++r) {
      batch_.token_ids.push_back(0);
      batch_.positions.push_back(position + r);
    }
  }
  /// The page tables of another cache group are those of this one.
  void add_group() {
    for (std::size_t s = 0; s < tables_.size(); ++s) batch_.sequences[s].page_tables.emplace_back(*tables_[s]);
  }

  [[nodiscard]] std::vector<SharedPrefix> find(std::vector<std::int64_t> windows = {0}) const {
    return find_shared_prefixes(batch_, kPageTokens, windows);
  }
  [[nodiscard]] const ForwardBatch& get() const { return batch_; }

 private:
  ForwardBatch batch_;
  std::vector<std::unique_ptr<std::vector<std::int32_t>>> tables_;
  std::int32_t next_own_ = 1 << 20;
};

/// Pages first, first + 1, ...
std::vector<std::int32_t> pages(std::int32_t first, std::int32_t count) {
  std::vector<std::int32_t> all;
  for (std::int32_t p = 0; p < count; ++p) all.push_back(first + p);
  return all;
}

void expect_set(const SharedPrefix& set, std::int32_t first, std::int32_t sequences, std::int64_t tokens) {
  EXPECT_EQ(set.first_sequence, first);
  EXPECT_EQ(set.sequences, sequences);
  EXPECT_EQ(set.tokens, tokens);
}

TEST(FindSharedPrefixes, ARunBetweenOthers) {
  Batch batch;
  batch.add(pages(5000, 125), 2100);
  for (int s = 0; s < 17; ++s) batch.add(pages(0, 126), 2020 + 30 * s);
  batch.add(pages(7000, 125), 2100);
  batch.add(pages(0, 125), 2100);  // apart from its fellows
  const auto sets = batch.find();
  ASSERT_EQ(sets.size(), 1u);
  expect_set(sets[0], 1, 17, 1984);
}

TEST(FindSharedPrefixes, NothingToShare) {
  EXPECT_TRUE(Batch().find().empty());
  Batch batch;
  batch.add(pages(0, 100), 1600);
  EXPECT_TRUE(batch.find().empty());
  batch.add(pages(200, 100), 1600);
  EXPECT_TRUE(batch.find().empty());
  // Fewer pages in common than make a chunk.
  for (const std::size_t at : {2u, 3u}) {
    auto other = pages(200, 100);
    other[at] = 9999;
    Batch near;
    near.add(pages(200, 100), 1600);
    near.add(other, 1600);
    EXPECT_TRUE(near.find().empty()) << at;
  }
}

TEST(FindSharedPrefixes, ComparesEveryPage) {
  for (const std::size_t at : {0u, 8u, 63u, 64u, 65u, 127u, 128u, 140u, 149u}) {
    auto other = pages(0, 150);
    other[at] = 9999;
    Batch batch;
    batch.add(pages(0, 150), 2400);
    batch.add(other, 2400);
    const std::int64_t tokens = static_cast<std::int64_t>(at) * 16 / 64 * 64;
    const auto sets = batch.find();
    if (tokens < 128) {
      EXPECT_TRUE(sets.empty()) << at;
      continue;
    }
    ASSERT_EQ(sets.size(), 1u) << at;
    expect_set(sets[0], 0, 2, tokens);
  }
}

TEST(FindSharedPrefixes, EndsBeforeTheFirstRow) {
  Batch batch;
  batch.add(pages(0, 126), 2016);
  batch.add(pages(0, 126), 1000, 2);  // its rows lie among pages that the first has too
  const auto sets = batch.find();
  ASSERT_EQ(sets.size(), 1u);
  expect_set(sets[0], 0, 2, 960);
}

TEST(FindSharedPrefixes, WhatIsTooLittle) {
  for (const std::int32_t count : {1, 2, 3}) {
    Batch batch;
    for (std::int32_t s = 0; s < count; ++s) batch.add(pages(0, 4), 100);
    EXPECT_EQ(batch.find().size(), count == 3 ? 1u : 0u);
  }
  Batch long_rows;  // each fills its tasks alone
  for (int s = 0; s < 3; ++s) long_rows.add(pages(0, 100), 1600, 64);
  EXPECT_TRUE(long_rows.find().empty());
}

TEST(FindSharedPrefixes, GroupsWithAWindowShareNothing) {
  Batch batch;
  for (int s = 0; s < 3; ++s) batch.add(pages(0, 40), 640);
  batch.add_group();
  batch.add_group();
  const auto sets = batch.find({0, 512, 0});
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[0].group, 0);
  EXPECT_EQ(sets[1].group, 2);
  expect_set(sets[1], 0, 3, 640);
}

TEST(FindSharedPrefixes, CutsWhereItSavesMost) {
  // All share 1,024 tokens, the last four 2,048: 7 * 1,024 against 3 * 2,048 + 3 * 1,024.
  Batch batch;
  for (int s = 0; s < 8; ++s) batch.add(pages(0, s < 4 ? 64 : 128), 2048);
  const auto sets = batch.find();
  ASSERT_EQ(sets.size(), 2u);
  expect_set(sets[0], 0, 4, 1024);
  expect_set(sets[1], 4, 4, 2048);
  // The last four 1,280: no longer worth a read of the first 1,024 more.
  Batch nearer;
  for (int s = 0; s < 8; ++s) nearer.add(pages(0, s < 4 ? 64 : 80), 2048);
  ASSERT_EQ(nearer.find().size(), 1u);
  expect_set(nearer.find()[0], 0, 8, 1024);
}

/// The most that any division of the first `end` sequences into sets saves, tried out.
std::int64_t most_saved(const ForwardBatch& batch, const std::vector<std::int64_t>& common, std::size_t end) {
  if (end == 0) return 0;
  std::int64_t best = most_saved(batch, common, end - 1);
  std::int64_t tokens = 1 << 30, rows = batch.sequences[end - 1].rows, reads = (rows + 15) / 16;
  for (std::size_t first = end - 1; first-- > 0;) {
    tokens = std::min(tokens, common[first + 1]);
    rows += batch.sequences[first].rows;
    reads += (batch.sequences[first].rows + 15) / 16;
    const std::int64_t saved = tokens * (reads - (rows + 15) / 16);
    if (saved >= 128) best = std::max(best, most_saved(batch, common, first) + saved);
  }
  return best;
}

TEST(FindSharedPrefixes, AgreesWithTrying) {
  std::mt19937 random(5);
  const auto below = [&](int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random); };
  for (int trial = 0; trial < 3000; ++trial) {
    Batch batch;
    const int count = 2 + below(7), position = 512;
    std::vector<std::int64_t> common = {0};
    std::vector<std::int32_t> table;
    for (int s = 0; s < count; ++s) {
      const auto keep = static_cast<std::size_t>(below(4) == 0 ? below(33) : 4 * below(9));
      table.resize(std::min(table.size(), keep));
      if (s > 0) common.push_back(static_cast<std::int64_t>(table.size()) * 16 / 64 * 64);
      while (table.size() < 32) table.push_back(1000 * (s + 1) + static_cast<std::int32_t>(table.size()));
      batch.add(table, position, below(3) == 0 ? 1 + below(40) : 1);
    }
    std::int64_t saved = 0;
    std::int32_t next = 0;
    for (const SharedPrefix& set : batch.find()) {
      ASSERT_GE(set.first_sequence, next);
      ASSERT_GE(set.sequences, 2);
      next = set.first_sequence + set.sequences;
      ASSERT_LE(next, count);
      std::int64_t rows = 0, reads = 0;
      for (std::int32_t s = set.first_sequence; s < next; ++s) {
        const SequenceRows& sequence = batch.get().sequences[static_cast<std::size_t>(s)];
        const SequenceRows& first = batch.get().sequences[static_cast<std::size_t>(set.first_sequence)];
        ASSERT_GE(sequence.first_position, set.tokens);
        ASSERT_TRUE(std::equal(sequence.page_tables[0].begin(), sequence.page_tables[0].begin() + set.tokens / 16,
                               first.page_tables[0].begin()));
        rows += sequence.rows;
        reads += (sequence.rows + 15) / 16;
      }
      saved += set.tokens * (reads - (rows + 15) / 16);
    }
    ASSERT_EQ(saved, most_saved(batch.get(), common, static_cast<std::size_t>(count))) << "trial " << trial;
  }
}

TEST(FindSharedPrefixes, ManySequences) {
  Batch batch;
  for (int s = 0; s < 300; ++s) batch.add(pages(0, 200), 3200);
  std::int32_t covered = 0;
  for (const SharedPrefix& set : batch.find()) {
    EXPECT_EQ(set.tokens, 3200);
    covered += set.sequences;
  }
  EXPECT_EQ(covered, 300);
}

}  // namespace
}  // namespace millrace
