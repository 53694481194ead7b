// Attention over a shared prefix: planned so that the prefix is read once, and with the bits of the plain path.

#include <algorithm>

#include "backend/attend_world.h"
#include "backend/cpu/attend_plan.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

std::vector<AttendShape> shapes() {
  std::vector<AttendShape> all;
  all.push_back({.length = 300});
  all.push_back({.heads = 12, .kv_heads = 4, .head_dim = 64, .length = 330});
  all.push_back({.heads = 12, .kv_heads = 4, .head_dim = 64, .length = 330, .format = KvFormat::bf16});
  all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 20, .page_tokens = 5, .length = 280, .sinks = true});
  all.push_back({.heads = 2, .kv_heads = 1, .head_dim = 8, .page_tokens = 1, .length = 150, .format = KvFormat::bf16});
  all.push_back({.heads = 3, .kv_heads = 3, .head_dim = 32, .page_tokens = 64, .length = 400, .softcap = 3.0f});
  all.push_back({.heads = 8,
                 .kv_heads = 1,
                 .head_dim = 72,
                 .page_tokens = 32,
                 .length = 300,
                 .softcap = 2.0f,
                 .sinks = true,
                 .format = KvFormat::bf16});
  all.push_back({.heads = 4, .kv_heads = 2, .head_dim = 16, .length = 300, .window = 100});
  all.push_back({.heads = 70, .kv_heads = 1, .head_dim = 16, .length = 200});  // a block is one row
  all.push_back({.heads = 70, .kv_heads = 1, .head_dim = 16, .length = 200, .format = KvFormat::bf16});
  for (const KvFormat format : kKvFormats) {
    if (kv_element_bytes(format) > 1) continue;
    all.push_back({.heads = 12, .kv_heads = 4, .head_dim = 64, .length = 330, .format = format});
    all.push_back(
        {.heads = 6, .kv_heads = 2, .head_dim = 20, .page_tokens = 5, .length = 280, .sinks = true, .format = format});
  }
  return all;
}

/// A batch of sets of 2 to 20 sequences that share, with others between them; rows of decode and of prefill.
struct Mix {
  int sequences = 0;
  std::vector<AttendWorld::Step> steps;
  std::vector<SharedPrefix> shared;
  std::vector<std::int64_t> tokens;  // asked for, of each set
};

Mix random_mix(const AttendShape& shape, Random& random) {
  Mix mix;
  const auto add = [&](std::int64_t first_possible) {
    const std::int64_t begin = first_possible + random.below(shape.length - first_possible);
    const std::int64_t most = std::min<std::int64_t>(shape.length - begin, random.below(4) == 0 ? 90 : 1);
    mix.steps.push_back({mix.sequences++, begin, begin + 1 + random.below(most)});
  };
  const std::int64_t sets = 1 + random.below(2);
  for (std::int64_t i = 0; i < sets; ++i) {
    if (random.below(2) == 0) add(0);
    const int first = mix.sequences, count = static_cast<int>(2 + random.below(19));
    const std::int64_t tokens = 1 + random.below(shape.length - 1);
    for (int s = 0; s < count; ++s) add(tokens);
    mix.shared.push_back({.group = 0, .first_sequence = first, .sequences = count, .tokens = tokens});
    if (random.below(2) == 0) add(0);
  }
  return mix;
}

class CpuCascade : public CpuAttendLevelTest {};

TEST_P(CpuCascade, SameBitsAsThePlainPath) {
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2), many = cpu_backend(GetParam(), 11);
  Random random(41);
  for (const AttendShape& shape : shapes()) {
    for (int trial = 0; trial < 6; ++trial) {
      Mix mix = random_mix(shape, random);
      AttendWorld world(shape, mix.sequences, static_cast<std::uint32_t>(trial));
      for (SharedPrefix& set : mix.shared) set = world.share(set.first_sequence, set.sequences, set.tokens);
      for (const auto& step : mix.steps) {
        world.store(step.sequence, shape.window > 0 ? std::max<std::int64_t>(0, step.begin - shape.window + 1) : 0,
                    step.end);
        world.store(step.sequence, step.begin, step.end);  // what the window has passed has no page any more
      }
      const std::vector<float> plain = world.attend(*one, mix.steps);
      for (Backend* backend : {one.get(), two.get(), many.get()}) {
        EXPECT_TRUE(identical(world.attend(*backend, mix.steps, mix.shared), plain)) << describe(shape);
      }
    }
  }
}

TEST_P(CpuCascade, AgreesWithTheReference) {
  const auto reference = make_reference_backend();
  const auto backend = cpu_backend(GetParam(), 2);
  const AttendShape shape{.heads = 6, .kv_heads = 2, .head_dim = 40, .length = 200, .sinks = true};
  AttendWorld world(shape, 4, 42);
  const SharedPrefix set = world.share(0, 4, 128);
  std::vector<AttendWorld::Step> steps;
  for (int s = 0; s < 4; ++s) {
    world.store(s, 0, shape.length);
    steps.push_back({s, 130 + 10 * s, 150 + 10 * s});
  }
  EXPECT_TRUE(close(world.attend(*backend, steps, {set}), world.attend(*reference, steps, {set}), 3e-6f));
}

MILLRACE_ON_EACH_LEVEL(CpuCascade);

/// `sequences` of one row at position `position` each, behind the same `pages` pages of 16 tokens.
struct SharedBatch {
  SharedBatch(std::int32_t sequences, std::int64_t position, std::int32_t pages) {
    tables.resize(static_cast<std::size_t>(sequences));
    for (std::int32_t s = 0; s < sequences; ++s) {
      auto& table = tables[static_cast<std::size_t>(s)];
      for (std::int32_t p = 0; p <= position / 16; ++p) table.push_back(p < pages ? p : 1000 * (s + 1) + p);
      batch.sequences.push_back({.first_row = s, .rows = 1, .first_position = position, .page_tables = {table}});
      batch.token_ids.push_back(0);
      batch.positions.push_back(position);
    }
    args = {.heads = 12, .kv_heads = 4, .head_dim = 64, .kv = {.page_tokens = 16}};
  }
  std::vector<std::vector<std::int32_t>> tables;
  ForwardBatch batch;
  AttendArgs args;
};

TEST(AttendPlan, ReadsASharedPrefixOnce) {
  SharedBatch b(16, 2100, 126);
  b.batch.shared = {{.group = 0, .first_sequence = 0, .sequences = 15, .tokens = 2016}};
  AttendPlan plan;
  plan.make(b.batch, b.args, 2);
  ASSERT_EQ(plan.first().size(), 2u) << "the prefix, and the sequence outside the set";
  EXPECT_EQ(plan.first()[0].rows, 15);
  EXPECT_EQ(plan.first()[0].end, 1984) << "whole chunks";
  EXPECT_TRUE(plan.first()[0].suspend);
  EXPECT_EQ(plan.first()[1].batch_row, 15);
  EXPECT_EQ(plan.first()[1].begin, 0);
  ASSERT_EQ(plan.resumed().size(), 15u);
  for (const AttendTask& task : plan.resumed()) {
    EXPECT_TRUE(task.resume);
    EXPECT_EQ(task.begin, 1984);
    EXPECT_EQ(task.end, 2101);
  }
}

TEST(AttendPlan, SplitsAndDeclinesByThreads) {
  SharedBatch b(16, 2100, 126);
  b.batch.shared = {{.group = 0, .first_sequence = 0, .sequences = 16, .tokens = 2016}};
  AttendPlan plan;
  const auto blocks = [&](int threads) {
    plan.make(b.batch, b.args, threads);
    if (plan.resumed().empty()) return std::size_t{0};
    std::int64_t row = 0;
    for (const AttendTask& block : plan.first()) {
      EXPECT_EQ(block.batch_row, row);
      row += block.rows;
    }
    EXPECT_EQ(row, 16);
    return plan.first().size();
  };
  EXPECT_EQ(blocks(1), 1u);
  EXPECT_EQ(blocks(4), 1u) << "a task a thread";
  EXPECT_EQ(blocks(16), 4u);
  EXPECT_EQ(blocks(100), 0u) << "there is a thread for each row and kv head";
  b.args.kv_heads = 1;
  b.args.heads = 64;
  EXPECT_EQ(blocks(2), 0u) << "a row fills a block alone";
}

TEST(AttendPlan, SharesInNoOtherGroupAndInNoWindow) {
  SharedBatch b(4, 300, 16);
  AttendPlan plan;
  b.batch.shared = {{.group = 1, .first_sequence = 0, .sequences = 4, .tokens = 256}};
  plan.make(b.batch, b.args, 2);
  EXPECT_TRUE(plan.resumed().empty());
  b.batch.shared[0].group = 0;
  b.args.window = 280;
  plan.make(b.batch, b.args, 2);
  EXPECT_TRUE(plan.resumed().empty());
  b.args.window = 0;
  plan.make(b.batch, b.args, 2);
  EXPECT_EQ(plan.resumed().size(), 4u) << "the plan of such a set is to share";
  b.batch.shared[0].tokens = 63;
  plan.make(b.batch, b.args, 2);
  EXPECT_TRUE(plan.resumed().empty()) << "no whole chunk";
}

TEST(AttendPlanDeathTest, WrongHints) {
  SharedBatch b(4, 300, 10);
  AttendPlan plan;
  const auto make = [&](std::vector<SharedPrefix> shared) {
    b.batch.shared = std::move(shared);
    plan.make(b.batch, b.args, 2);
  };
  EXPECT_DEATH(make({{0, 0, 4, 192}}), "does not share 192 tokens");  // other pages
  EXPECT_DEATH(make({{0, 0, 4, 320}}), "does not share 320 tokens");  // rows within
  EXPECT_DEATH(make({{0, 0, 3, 128}, {0, 2, 2, 128}}), "sequence 2 does not share");
  EXPECT_DEATH(make({{0, 1, 4, 128}}), "sequences 1 \\+ 4 of 4");
}

}  // namespace
}  // namespace millrace
