// What part of attention pages have, and sequences of which some pages were dropped.

#include <algorithm>
#include <numeric>

#include "backend/attend_world.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

std::vector<Shape> measured_shapes() {
  std::vector<Shape> all;
  for (const Shape& shape : attend_shapes()) {
    if (shape.page_tokens == 16 && shape.window == 0) all.push_back(shape);
  }
  Shape selects{.heads = 8, .kv_heads = 2, .head_dim = 64, .length = 260, .format = KvFormat::bf16};
  selects.selection = PageSelection{.choice = PageChoice::quest, .tokens = 112, .sink_tokens = 8, .recent_tokens = 20};
  all.push_back(selects);
  Shape blocks{.heads = 6, .kv_heads = 2, .head_dim = 32, .length = 600, .answer_begin = 590};
  blocks.prompt_selection = BlockSelection{.choice = BlockChoice::xattention, .tokens = 256};
  all.push_back(blocks);
  return all;
}

std::vector<double> parts(const PageMasses& masses, std::size_t sequence) {
  std::vector<double> parts;
  for (const std::uint64_t units : masses.of(0, sequence)) parts.push_back(static_cast<double>(units) / 4294967296.0);
  return parts;
}

class CpuMasses : public CpuAttendLevelTest {};

TEST_P(CpuMasses, AreWhatTheReferenceGivesAndChangeNothing) {
  const auto backend = make_cpu_backend({.threads = 2, .isa = GetParam()});
  const auto reference = make_reference_backend();
  ASSERT_TRUE(backend.ok());
  for (const Shape& shape : measured_shapes()) {
    SCOPED_TRACE(describe(shape));
    World world(shape, 2, 61);
    world.store(0, 0, shape.length);
    world.store(1, 0, shape.length);
    // From a block's border on, for those who read in blocks.
    const std::int64_t begin = shape.length / 128 * 128 > 40 ? (shape.length - 40) / 128 * 128 : 0;
    const std::vector<World::Step> steps{{0, begin, shape.length}, {1, begin, shape.length}};
    const std::vector<float> plain = world.attend(**backend, steps);
    world.measured_from = shape.length - 7;
    EXPECT_EQ(world.attend(**backend, steps), plain);
    const PageMasses measured = world.masses;
    world.attend(*reference, steps);
    // Weights are rounded to bf16 on some levels, and queries, which turns scores of up to about ten by as many
    // 256ths: a few hundredths of a page's part.
    const bool rounds = shape.format != KvFormat::f32;
    const double heads_of_rows = 7.0 * shape.heads;
    for (std::size_t s = 0; s < 2; ++s) {
      const std::vector<double> own = parts(measured, s), expected = parts(world.masses, s);
      for (std::size_t p = 0; p < own.size(); ++p) {
        ASSERT_NEAR(own[p], expected[p], (rounds ? 0.004 : 1e-5) * heads_of_rows) << "page " << p;
      }
      const double all = std::accumulate(own.begin(), own.end(), 0.0);
      if (shape.sinks) {
        EXPECT_LT(all, heads_of_rows);  // the sinks have some
        EXPECT_GT(all, 0.1 * heads_of_rows);
      } else {
        EXPECT_NEAR(all, heads_of_rows, 1e-4 * heads_of_rows);
      }
    }
  }
}

TEST_P(CpuMasses, DoNotDependOnHowRowsAreCutNorOnThreads) {
  for (const Shape& shape : measured_shapes()) {
    if (shape.prompt_selection) continue;  // whole blocks only
    SCOPED_TRACE(describe(shape));
    std::vector<std::vector<std::uint64_t>> all;
    for (const int threads : {1, 3}) {
      const auto backend = make_cpu_backend({.threads = threads, .isa = GetParam()});
      ASSERT_TRUE(backend.ok());
      for (const std::int64_t cut : {1, 5, 40}) {
        World world(shape, 1, 62);
        world.store(0, 0, shape.length);
        world.measured_from = shape.length - 11;
        std::vector<std::uint64_t> sums(static_cast<std::size_t>((shape.length + 15) / 16));
        for (std::int64_t t = shape.length - 20; t < shape.length; t += cut) {
          world.attend(**backend, {{0, t, std::min(shape.length, t + cut)}});
          const auto masses = world.masses.of(0, 0);
          for (std::size_t p = 0; p < sums.size(); ++p) sums[p] += masses[p];
        }
        all.push_back(std::move(sums));
      }
    }
    EXPECT_GT(std::accumulate(all[0].begin(), all[0].end(), std::uint64_t{0}), 0u);
    for (const auto& sums : all) EXPECT_EQ(sums, all[0]);
  }
}

TEST_P(CpuMasses, WhatWasDroppedIsAsIfItHadNeverBeen) {
  const auto backend = make_cpu_backend({.threads = 2, .isa = GetParam()});
  const auto reference = make_reference_backend();
  ASSERT_TRUE(backend.ok());
  for (Shape shape : measured_shapes()) {
    if (shape.prompt_selection) continue;  // rows of prompts see everything
    SCOPED_TRACE(describe(shape));
    World world(shape, 1, 63);
    world.store(0, 0, shape.length);
    const std::int64_t begin = shape.length - 10;
    std::vector<std::int64_t> positions;
    for (std::int64_t t = 0; t < shape.length; ++t) {
      if (t / 16 != 1 && t / 16 != 2) positions.push_back(t);
    }
    const auto kept = std::ssize(positions);
    Shape less = shape;
    less.length = kept;
    World other(less, 1, 64);
    other.adopt_some(world, positions);
    other.store(0, 0, kept);
    world.drop(0, {1, 2});
    world.measured_from = begin;
    other.measured_from = kept - 10;
    for (Backend* b : {backend->get(), reference.get()}) {
      EXPECT_EQ(world.attend(*b, {{0, begin, shape.length}}), other.attend(*b, {{0, kept - 10, kept}}));
      const auto masses = world.masses.of(0, 0), others = other.masses.of(0, 0);
      EXPECT_TRUE(std::equal(others.begin(), others.end(), masses.begin()));
    }
  }
}

/// A query that is turned back meets a key as the query meets a key that is turned on.
TEST_P(CpuMasses, MovedPagesAreAsIfTheirKeysStoodThere) {
  const auto backend = make_cpu_backend({.threads = 2, .isa = GetParam()});
  const auto reference = make_reference_backend();
  ASSERT_TRUE(backend.ok());
  for (const Shape& shape : measured_shapes()) {
    if (shape.prompt_selection || shape.selection || shape.length < 80) continue;
    SCOPED_TRACE(describe(shape));
    World world(shape, 1, 65), stands(shape, 1, 66);
    stands.adopt(0, world);
    world.moved = {{0, 320}, {1, 96}, {3, 0}};
    world.rotary_dim = stands.rotary_dim = shape.head_dim / 4 * 2;
    for (std::int64_t t = 0; t < 48; ++t) stands.turn_key(0, t, t < 16 ? 320 : 96);
    world.store(0, 0, shape.length);
    stands.store(0, 0, shape.length);
    const std::vector<World::Step> rows{{0, shape.length - 9, shape.length}};
    world.measured_from = stands.measured_from = shape.length - 5;
    const std::vector<float> of_reference = world.attend(*reference, rows);
    const std::vector<double> parts_of_reference = parts(world.masses, 0);
    const double heads_of_rows = 5.0 * shape.heads;
    if (shape.format == KvFormat::f32) {  // nothing is rounded
      const std::vector<float> expected = stands.attend(*reference, rows);
      for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(of_reference[i], expected[i], 2e-5) << i;
      const std::vector<double> expected_parts = parts(stands.masses, 0);
      for (std::size_t p = 0; p < expected_parts.size(); ++p) {
        ASSERT_NEAR(parts_of_reference[p], expected_parts[p], 1e-5 * heads_of_rows) << p;
      }
    }
    const bool rounds = shape.format != KvFormat::f32;
    const std::vector<float> own = world.attend(**backend, rows);
    for (std::size_t i = 0; i < own.size(); ++i) {
      ASSERT_NEAR(own[i], of_reference[i], (rounds ? 0.03 : 2e-5) * world.largest_value()) << i;
    }
    const std::vector<double> own_parts = parts(world.masses, 0);
    for (std::size_t p = 0; p < own_parts.size(); ++p) {
      ASSERT_NEAR(own_parts[p], parts_of_reference[p], (rounds ? 0.004 : 1e-5) * heads_of_rows) << "page " << p;
    }
    // Row by row, and without moving: other numbers.
    std::vector<float> one_by_one;
    for (std::int64_t t = shape.length - 9; t < shape.length; ++t) {
      const std::vector<float> row = world.attend(**backend, {{0, t, t + 1}});
      one_by_one.insert(one_by_one.end(), row.begin(), row.end());
    }
    EXPECT_EQ(one_by_one, own);
    world.moved.clear();
    EXPECT_NE(world.attend(**backend, rows), own);
  }
}

MILLRACE_ON_EACH_LEVEL(CpuMasses);

}  // namespace
}  // namespace millrace
