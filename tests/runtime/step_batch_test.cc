#include "runtime/step_batch.h"

#include <gtest/gtest.h>

namespace millrace {
namespace {

TEST(MakeForwardBatch, MixesPrefillAndDecode) {
  UnscheduledSequences sequences({.pages = 100, .page_tokens = 2});
  const SequenceId first = sequences.add({10, 11, 12, 13, 14}, 4);
  const SequenceId second = sequences.add({20, 21, 22, 23, 24}, 4);
  StepPlan plan{
      {{.id = first, .rows = 1, .first_position = 4, .samples = true}, {.id = second, .rows = 2, .first_position = 1}},
      {}};
  const ForwardBatch batch = sequences.batch(plan);
  EXPECT_EQ(batch.token_ids, (std::vector<std::int32_t>{14, 21, 22}));
  EXPECT_EQ(batch.positions, (std::vector<std::int64_t>{4, 1, 2}));
  EXPECT_EQ(batch.logit_rows, (std::vector<std::int32_t>{0}));
  ASSERT_EQ(batch.sequences.size(), 2u);
  EXPECT_EQ(batch.sequences[1].first_row, 1);
  EXPECT_EQ(batch.sequences[1].admission_length, 4);
  EXPECT_EQ(batch.sequences[1].answer_begin, 4);
  EXPECT_EQ(batch.sequences[0].page_tables[0].size(), 3u);
  EXPECT_EQ(batch.sequences[1].page_tables[0].size(), 2u);
  for (StepEntry& entry : plan.entries) entry.all_logits = true;
  EXPECT_EQ(sequences.batch(plan).logit_rows, (std::vector<std::int32_t>{0, 1, 2}));
}

TEST(UnscheduledSequences, AnAnswerMayBeginAnywhere) {
  UnscheduledSequences sequences({.pages = 100, .page_tokens = 2});
  const SequenceId id = sequences.add({10, 11, 12, 13, 14}, 5, 2);
  const ForwardBatch batch = sequences.batch({{{.id = id, .rows = 5, .first_position = 0}}, {}});
  EXPECT_EQ(batch.sequences[0].admission_length, 5);
  EXPECT_EQ(batch.sequences[0].answer_begin, 2);
}

TEST(UnscheduledSequences, GiveBackPagesThatTheWindowHasPassed) {
  const std::int64_t window = 8;
  UnscheduledSequences sequences(
      {.pages = 3, .page_tokens = 4, .windows = {window}});  // a window of two pages and the one being written
  const SequenceId id = sequences.add(std::vector<std::int32_t>(64, 5), 64);
  for (std::int64_t start = 0; start < 64; start += 4) {
    const ForwardBatch batch = sequences.batch({{{.id = id, .rows = 4, .first_position = start}}, {}});
    const auto table = batch.sequences[0].page_tables[0];
    for (std::int64_t seen = std::max<std::int64_t>(0, start - window + 1); seen < start + 4; ++seen) {
      ASSERT_GE(table[static_cast<std::size_t>(seen / 4)], 0) << "position " << seen << " at " << start;
    }
  }
}

}  // namespace
}  // namespace millrace
