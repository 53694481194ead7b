// Chunks whose weights are too small to be worth their values.

#include <algorithm>

#include "backend/attend_world.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

std::vector<Shape> skipping_shapes() {
  std::vector<Shape> all{
      {},
      {.heads = 8, .kv_heads = 1, .head_dim = 128, .length = 150, .format = KvFormat::bf16},
      {.heads = 6, .kv_heads = 2, .head_dim = 64, .length = 220, .format = KvFormat::int8},
      {.heads = 4, .kv_heads = 1, .head_dim = 64, .length = 300, .format = KvFormat::int4},
      {.heads = 8, .kv_heads = 8, .head_dim = 32, .length = 150, .sinks = true, .format = KvFormat::fp8_e4m3},
      {.heads = 6, .kv_heads = 2, .head_dim = 20, .page_tokens = 5, .length = 131},
      {.heads = 2, .kv_heads = 2, .head_dim = 64, .length = 300, .softcap = 3.0f},
  };
  Shape selects{.heads = 8, .kv_heads = 2, .head_dim = 64, .length = 500, .format = KvFormat::bf16};
  selects.selection =
      PageSelection{.choice = PageChoice::recent, .tokens = 300, .sink_tokens = 16, .recent_tokens = 20};
  all.push_back(selects);
  Shape blocks{.heads = 6, .kv_heads = 2, .head_dim = 32, .length = 530, .answer_begin = 526};
  blocks.prompt_selection = BlockSelection{.choice = BlockChoice::recent, .tokens = 256};
  all.push_back(blocks);
  return all;
}

class CpuChunkSkip : public CpuAttendLevelTest {};

/// The last rows of the first sequence, in one step; from a block's border on, for those who read in blocks.
std::vector<float> rows_of(World& world, Backend& backend, const Shape& shape) {
  const std::int64_t begin = shape.prompt_selection ? 512 : shape.length - 10;
  return world.attend(backend, {{0, begin, shape.length}});
}

TEST_P(CpuChunkSkip, OfNothingIsDense) {
  const auto backend = make_cpu_backend({.threads = 2, .isa = GetParam()});
  ASSERT_TRUE(backend.ok());
  for (const Shape& shape : skipping_shapes()) {
    SCOPED_TRACE(describe(shape));
    World world(shape, 1, 71);
    world.store(0, 0, shape.length);
    const std::vector<float> dense = rows_of(world, **backend, shape);
    world.skip_margin = 1e30f;
    EXPECT_EQ(rows_of(world, **backend, shape), dense);
  }
}

TEST_P(CpuChunkSkip, LeavesOutWhatTheReferenceDoes) {
  const auto backend = make_cpu_backend({.threads = 2, .isa = GetParam()});
  const auto reference = make_reference_backend();
  ASSERT_TRUE(backend.ok());
  for (const Shape& shape : skipping_shapes()) {
    SCOPED_TRACE(describe(shape));
    World world(shape, 1, 72);
    world.round_queries();  // so that all have the same scores, but for the order of sums
    world.store(0, 0, shape.length);
    const std::vector<float> dense = rows_of(world, *reference, shape);
    const AttendCounts before = (*backend)->attend_counts();
    bool some = false;
    for (const float margin : {0.5f, 2.0f}) {
      world.skip_margin = margin;
      const std::vector<float> expected = rows_of(world, *reference, shape), own = rows_of(world, **backend, shape);
      some |= expected != dense;
      const double tolerance = shape.format == KvFormat::f32 ? 2e-5 : 0.03;
      // A score at the border may fall on either side of it.
      std::int64_t apart = 0;
      for (std::size_t i = 0; i < own.size(); ++i) {
        if (std::fabs(own[i] - expected[i]) > tolerance * world.largest_value()) ++apart;
      }
      EXPECT_LE(apart, static_cast<std::int64_t>(own.size()) / (shape.format == KvFormat::f32 ? 1000 : 50)) << margin;
    }
    EXPECT_TRUE(some);
    const AttendCounts after = (*backend)->attend_counts();
    EXPECT_LT(after.read - before.read, after.all - before.all);
  }
}

TEST_P(CpuChunkSkip, DoesNotDependOnHowRowsAreCutNorOnCompany) {
  for (const Shape& shape : skipping_shapes()) {
    if (shape.prompt_selection) continue;  // whole blocks only
    SCOPED_TRACE(describe(shape));
    std::vector<std::vector<float>> all;
    for (const int threads : {1, 3}) {
      const auto backend = make_cpu_backend({.threads = threads, .isa = GetParam()});
      ASSERT_TRUE(backend.ok());
      World world(shape, 3, 73);
      world.skip_margin = 1.0f;
      const std::int64_t shared = shape.length / 2 / shape.page_tokens * shape.page_tokens;
      const SharedPrefix prefix = world.share(0, 3, shared);
      for (int s = 0; s < 3; ++s) world.store(s, 0, shape.length);
      const std::int64_t begin = shape.length - 30;
      for (const std::int64_t cut : {1, 7, 30}) {
        std::vector<float> rows;
        for (std::int64_t t = begin; t < shape.length; t += cut) {
          const std::vector<float> some = world.attend(**backend, {{0, t, std::min(shape.length, t + cut)}});
          rows.insert(rows.end(), some.begin(), some.end());
        }
        all.push_back(std::move(rows));
      }
      std::vector<float> together = world.attend(
          **backend, {{0, begin, shape.length}, {1, begin, shape.length}, {2, begin, shape.length}}, {prefix});
      together.resize(all[0].size());
      all.push_back(std::move(together));
    }
    for (const std::vector<float>& rows : all) EXPECT_EQ(rows, all[0]);
  }
}

/// What is left out is not read: infinities there change nothing.
TEST_P(CpuChunkSkip, ValuesThatAreLeftOutAreNotLookedAt) {
  const auto backend = make_cpu_backend({.threads = 1, .isa = GetParam()});
  ASSERT_TRUE(backend.ok());
  for (const KvFormat format : {KvFormat::f32, KvFormat::bf16}) {
    const Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 64, .length = 200, .format = format};
    World world(shape, 1, 74), other(shape, 1, 74);
    for (World* w : {&world, &other}) {
      w->set_query(0, 199, 1.0f);
      w->set_key(0, 0, 2.0f);  // a sink: 2 * 64 / 8 = 16 above those of
      for (std::int64_t t = 64; t < 128; ++t) w->set_key(0, t, -0.5f);
      w->skip_margin = 6.0f;
    }
    for (std::int64_t t = 64; t < 128; ++t) other.set_value(0, t, std::numeric_limits<float>::infinity());
    world.store(0, 0, 200);
    other.store(0, 0, 200);
    EXPECT_EQ(world.attend(**backend, {{0, 199, 200}}), other.attend(**backend, {{0, 199, 200}}));
  }
}

MILLRACE_ON_EACH_LEVEL(CpuChunkSkip);

}  // namespace
}  // namespace millrace
