#include "runtime/sequence.h"

#include <gtest/gtest.h>

#include <map>

namespace millrace {
namespace {

TEST(MakeForwardBatch, MixesPrefillAndDecode) {
  PagePool pool(100);
  std::map<SequenceId, Sequence> sequences;
  for (SequenceId id : {1u, 2u}) {
    Sequence sequence{id, {10, 11, 12, 13, 14}, 4, {}};
    sequence.tables.emplace_back(pool, 2);
    sequences.emplace(id, std::move(sequence));
  }
  const auto find = [&](SequenceId id) -> Sequence& { return sequences.at(id); };
  const StepPlan plan{{{1, 4, 1, true}, {2, 1, 2, false}}};
  const ForwardBatch batch = make_forward_batch(plan, {0}, false, find);
  EXPECT_EQ(batch.token_ids, (std::vector<std::int32_t>{14, 11, 12}));
  EXPECT_EQ(batch.positions, (std::vector<std::int64_t>{4, 1, 2}));
  EXPECT_EQ(batch.logit_rows, (std::vector<std::int32_t>{0}));
  ASSERT_EQ(batch.sequences.size(), 2u);
  EXPECT_EQ(batch.sequences[1].first_row, 1);
  EXPECT_EQ(batch.sequences[1].admission_length, 4);
  EXPECT_EQ(batch.sequences[0].page_tables[0].size(), 3u);
  EXPECT_EQ(batch.sequences[1].page_tables[0].size(), 2u);
  EXPECT_EQ(make_forward_batch(plan, {0}, true, find).logit_rows, (std::vector<std::int32_t>{0, 1, 2}));
}

TEST(MakeForwardBatch, GivesBackPagesThatTheWindowHasPassed) {
  PagePool pool(10);
  Sequence sequence{1, std::vector<std::int32_t>(64, 5), 64, {}};
  sequence.tables.emplace_back(pool, 4);
  const auto find = [&](SequenceId) -> Sequence& { return sequence; };
  const std::int64_t window = 8;
  for (std::int64_t start = 0; start < 64; start += 4) {
    const ForwardBatch batch = make_forward_batch({{{1, start, 4, false}}}, {window}, false, find);
    const auto table = batch.sequences[0].page_tables[0];
    for (std::int64_t seen = std::max<std::int64_t>(0, start - window + 1); seen < start + 4; ++seen) {
      ASSERT_GE(table[static_cast<std::size_t>(seen / 4)], 0) << "position " << seen << " at " << start;
    }
    ASSERT_LE(pool.count() - pool.free_count(), 3) << "window of two pages and the one being written";
  }
}

}  // namespace
}  // namespace millrace
