// Rows of prompts that read some blocks of the past: scores of cells, shares of blocks, and attention over what is
// chosen by them.

#include <algorithm>
#include <map>

#include "backend/attend_world.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

BlockSelection budget(BlockChoice choice, std::int64_t tokens) {
  return {.choice = choice, .tokens = tokens, .sink_tokens = 64, .recent_tokens = 64};
}

BlockSelection mass(double part) {
  return {.mass = part, .sink_tokens = 64, .recent_tokens = 64};
}

std::vector<Shape> block_shapes(const BlockSelection& selection) {
  std::vector<Shape> all;
  all.push_back({.heads = 4, .kv_heads = 2, .head_dim = 64, .length = 640});
  all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 20, .length = 700, .sinks = true});
  all.push_back({.heads = 3, .kv_heads = 1, .head_dim = 40, .length = 520, .softcap = 5.0f});
  all.push_back({.heads = 1, .kv_heads = 1, .head_dim = 32, .length = 530});
  for (const KvFormat format : kKvFormats) {
    all.push_back({.heads = 4, .kv_heads = 1, .head_dim = 64, .length = 405, .format = format});
    all.push_back({.heads = 3, .kv_heads = 1, .head_dim = 11, .length = 420, .format = format});
  }
  for (Shape& shape : all) {
    shape.answer_begin = shape.length;
    shape.prompt_selection = selection;
  }
  return all;
}

class CpuBlocksRead : public CpuAttendLevelTest {};

/// Every antidiagonal, also of cells of rows that are not full.
TEST_P(CpuBlocksRead, ScoresAreAntidiagonals) {
  const auto backend = cpu_backend(GetParam());  // has asked for what the kernels need
  const KernelTable kernels = kernel_table(GetParam());
  for (const Shape& shape : block_shapes(mass(0.9))) {
    for (const bool rounded : {false, true}) {
      const auto run = rounded ? kernels.products.score_cells_rounded : kernels.score_cells;
      if (run == nullptr || (rounded && shape.format == KvFormat::f32)) continue;
      World world(shape, 1, 71);
      world.store(0, 0, shape.length);
      Random random(72);
      const std::int64_t rows = 300, pages = shape.length / kCell, group = shape.heads / shape.kv_heads;
      std::vector<float> q = random.normals(rows * world.q_width());
      if (rounded) {
        for (float& number : q) number = round_to_bf16(number);
      }
      const AttendArgs args{.q = q.data(),
                            .q_stride = world.q_width(),
                            .heads = shape.heads,
                            .kv_heads = shape.kv_heads,
                            .head_dim = shape.head_dim,
                            .kv = world.kv()};
      std::vector<std::int32_t> table;
      for (std::int64_t p = 0; p < pages; ++p) table.push_back(world.page_number(0, p));
      const std::int64_t of_block = cell_columns(group), columns = 3 * of_block, first = 3,
                         kv_head = shape.kv_heads - 1;
      // One more page, which must stay as it is.
      std::vector<float> scores(static_cast<std::size_t>((pages - first + 1) * columns), -7e33f);
      std::vector<float> memory(static_cast<std::size_t>(cell_scratch(group, shape.head_dim)) + 16);
      auto* const scratch = reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
      run({.args = &args,
           .page_table = table.data(),
           .batch_row = 0,
           .rows = rows,
           .kv_head = static_cast<std::int32_t>(kv_head),
           .first = first,
           .end = pages,
           .scores = scores.data(),
           .scratch = scratch});
      for (std::int64_t i = 0; i < columns; ++i)
        EXPECT_EQ(scores[scores.size() - 1 - static_cast<std::size_t>(i)], -7e33f);
      for (std::int64_t page = first; page < pages; ++page) {
        for (std::int64_t column = 0; column < columns; ++column) {
          const std::int64_t of_heads = column % of_block, head = kv_head * group + of_heads / kQueryCells;
          if (of_heads >= group * kQueryCells) continue;
          const std::int64_t cell = column / of_block * kQueryCells + of_heads % kQueryCells;
          double sum = 0.0, size = 0.0;
          for (std::int64_t place = 0; place < kCell; ++place) {
            const std::int64_t row = cell * kCell + kCell - 1 - place;
            for (std::int32_t d = 0; row < rows && d < shape.head_dim; ++d) {
              const double part =
                  double{q[static_cast<std::size_t>(row * world.q_width() + head * shape.head_dim + d)]} *
                  world.key(0, page * kCell + place, static_cast<std::int32_t>(kv_head), d);
              sum += part;
              size += std::fabs(part);
            }
          }
          const double got = scores[static_cast<std::size_t>((page - first) * columns + column)];
          // Keys times their scales may be rounded to bf16 too.
          EXPECT_NEAR(got, sum, (rounded ? 0x1p-8 : 1e-6) * size)
              << describe(shape) << ", page " << page << ", column " << column << ", rounded " << rounded;
        }
      }
    }
  }
}

/// The share of blocks, with everything that a cell sees in its sum, and nothing else.
TEST_P(CpuBlocksRead, SharesAreThoseOfTheSoftmax) {
  const KernelTable kernels = kernel_table(GetParam());
  for (const std::int64_t group : {1, 3, 4, 10}) {
    for (const std::int64_t rows : {128, 96, 100, 16, 5}) {
      const std::int64_t history = 24, pages = history + rows / kCell, columns = cell_columns(group) + 16;
      Random random(73);
      std::vector<float> scores = random.normals(pages * columns, 40.0f);
      const std::vector<float> before = scores;
      const std::int64_t blocks = history / 4, stride = blocks + 2;
      std::vector<float> shares(static_cast<std::size_t>(group * stride), 99.0f);
      kernels.weigh_cells({.scores = scores.data(),
                           .score_stride = columns,
                           .pages = pages,
                           .history = history,
                           .rows = rows,
                           .group = group,
                           .scale = 0.5f,
                           .shares = shares.data(),
                           .stride = stride});
      const std::int64_t cells = (rows + kCell - 1) / kCell;
      for (std::int64_t g = 0; g < group; ++g) {
        std::vector<double> expected(static_cast<std::size_t>(blocks), 0.0);
        for (std::int64_t cell = 0; cell < cells; ++cell) {
          const double count = static_cast<double>(std::min(kCell, rows - cell * kCell));
          const std::int64_t seen = std::min(pages, history + cell + 1);
          const auto score = [&](std::int64_t page) {
            return before[static_cast<std::size_t>(page * columns + g * kQueryCells + cell)] * 0.5 / count;
          };
          double largest = -1e30, sum = 0.0;
          for (std::int64_t page = 0; page < seen; ++page) largest = std::max(largest, score(page));
          for (std::int64_t page = 0; page < seen; ++page) sum += std::exp(score(page) - largest);
          for (std::int64_t page = 0; page < history; ++page) {
            expected[static_cast<std::size_t>(page / 4)] +=
                std::exp(score(page) - largest) / sum / static_cast<double>(cells);
          }
        }
        for (std::int64_t block = 0; block < blocks; ++block) {
          EXPECT_NEAR(shares[static_cast<std::size_t>(g * stride + block)], expected[static_cast<std::size_t>(block)],
                      2e-6)
              << group << " heads, " << rows << " rows, block " << block;
        }
        EXPECT_EQ(shares[static_cast<std::size_t>(g * stride + blocks)], 99.0f);
      }
    }
  }
}

TEST_P(CpuBlocksRead, AgreesWithTheReference) {
  static std::map<std::string, std::vector<float>> known;
  const auto backend = cpu_backend(GetParam(), 2);
  for (const BlockSelection& selection : {mass(0.6), budget(BlockChoice::xattention, 256),
                                          budget(BlockChoice::recent, 256), budget(BlockChoice::random, 256)}) {
    for (const Shape& shape : block_shapes(selection)) {
      const bool rounds = backend->attend_arithmetic(shape.format) != Arithmetic::f32;
      // Scores of codes are rounded where the reference's are not, so that shares that are nearly the same may change
      // places: that is for the test of scores.
      if (rounds && kv_scales(shape.format) > 0 && selection.choice == BlockChoice::xattention) continue;
      World world(shape, 2, 74);
      world.store(0, 0, shape.length);
      world.store(1, 0, shape.length);
      if (rounds) world.round_queries();
      const std::vector<World::Step> steps = {{0, 0, shape.length}, {1, 256, 384}};
      const std::string name =
          fmt::format("{} {} {} {}", describe(shape), static_cast<int>(selection.choice), selection.mass, rounds);
      const auto [place, fresh] = known.try_emplace(name);
      if (fresh) place->second = world.attend(*make_reference_backend(), steps);
      const std::vector<float> out = world.attend(*backend, steps);
      if (rounds) {
        const float rounding = shape.format == KvFormat::int4 ? 0x1.02p-7f : 0x1.02p-8f;
        EXPECT_TRUE(within(out, place->second, rounding * world.largest_value())) << name;
      } else {
        EXPECT_TRUE(close(out, place->second, 3e-6f)) << name;
      }
    }
  }
}

TEST_P(CpuBlocksRead, ABudgetThatHoldsAllGivesTheBitsOfDense) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (Shape shape : block_shapes(mass(1.0))) {
    const auto result = [&](std::optional<BlockSelection> chosen) {
      shape.prompt_selection = chosen;
      World world(shape, 2, 75);
      world.store(0, 0, shape.length);
      world.store(1, 0, shape.length);
      return world.attend(*backend, {{0, 256, shape.length}, {1, 0, 128}});
    };
    const std::vector<float> dense = result({});
    EXPECT_TRUE(identical(result(mass(1.0)), dense)) << describe(shape);
    for (const BlockChoice choice : {BlockChoice::xattention, BlockChoice::recent, BlockChoice::random}) {
      EXPECT_TRUE(identical(result(budget(choice, shape.length)), dense)) << describe(shape);
      EXPECT_FALSE(identical(result(budget(choice, 192)), dense)) << describe(shape);
    }
    // So near to all that every block is chosen: what was chosen is read as everything is.
    EXPECT_TRUE(identical(result(mass(1.0 - 1e-7)), dense)) << describe(shape);
  }
}

/// In steps of whole blocks, beside rows of other prompts and of answers.
TEST_P(CpuBlocksRead, IdenticalHoweverAPromptIsCutAndInAnyCompany) {
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2), many = cpu_backend(GetParam(), 11);
  for (const BlockSelection& selection : {mass(0.6), budget(BlockChoice::random, 256)}) {
    for (Shape shape : block_shapes(selection)) {
      shape.answer_begin = shape.length - 30;  // the rest reads everything, or pages
      shape.selection = PageSelection{.tokens = 128, .sink_tokens = 8, .recent_tokens = 20};
      World all(shape, 1, 76);
      all.store(0, 0, shape.length);
      const std::vector<float> whole = all.attend(*one, {{0, 0, shape.length}});
      for (const std::int64_t chunk : {128, 384}) {
        World world(shape, 3, 78), twin(shape, 1, 76);  // what lies ahead of a step is not a number
        world.adopt(0, twin);
        world.store(1, 0, shape.length);
        world.store(2, 0, shape.length);
        std::vector<float> pieces;
        for (std::int64_t begin = 0; begin < shape.length;) {
          std::int64_t end = std::min(begin + chunk, shape.length);
          if (begin >= shape.answer_begin) end = std::min(begin + 7, shape.length);
          world.store(0, begin, end);
          const std::vector<float> out =
              world.attend(begin % 256 == 0 ? *two : *many,
                           {{1, shape.length - 2, shape.length}, {0, begin, end}, {2, 256, shape.answer_begin}});
          const auto start = out.begin() + 2 * world.q_width();
          pieces.insert(pieces.end(), start, start + (end - begin) * world.q_width());
          begin = end;
        }
        EXPECT_TRUE(identical(pieces, whole)) << describe(shape) << ", steps of " << chunk;
      }
    }
  }
}

/// A stretch that many rows look for is found wherever it lies; recent blocks alone do not have it.
TEST_P(CpuBlocksRead, FindsWhatTheRowsLookFor) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const BlockChoice choice : {BlockChoice::xattention, BlockChoice::recent}) {
    int found = 0;
    for (const std::int64_t wanted : {64, 200, 333, 360}) {
      Shape shape{.heads = 1, .kv_heads = 1, .head_dim = 16, .length = 640, .answer_begin = 640};
      shape.prompt_selection = budget(choice, 192);
      World world(shape, 1, 77);
      for (std::int64_t t = 512; t < 640; ++t) world.set_query(0, t, 3.0f);
      for (std::int64_t t = wanted; t < wanted + 20; ++t) {
        world.set_key(0, t, 3.0f);
        world.set_value(0, t, 100.0f);
      }
      world.store(0, 0, shape.length);
      found += world.attend(*backend, {{0, 512, 640}}).back() > 50.0f ? 1 : 0;
    }
    EXPECT_EQ(found, choice == BlockChoice::xattention ? 4 : 0);
  }
}

/// NaN in a key stays with those that read it, and the choice comes to an end.
TEST_P(CpuBlocksRead, KeysThatAreNotFiniteDoNoHarmToRowsBeforeThem) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const float number : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 64, .length = 640, .answer_begin = 640};
    shape.prompt_selection = mass(0.7);
    const auto result = [&](bool poisoned) {
      World world(shape, 1, 79);
      if (poisoned) world.set_key(0, 515, number);
      world.store(0, 0, shape.length);
      return world.attend(*backend, {{0, 0, shape.length}});
    };
    const std::vector<float> clean = result(false), poisoned = result(true);
    EXPECT_TRUE(std::equal(clean.begin(), clean.begin() + 512 * 4 * 64, poisoned.begin()));
  }
}

MILLRACE_ON_EACH_LEVEL(CpuBlocksRead);

}  // namespace
}  // namespace millrace
