// Rows that read some pages of the past: bounds of keys, and attention over what is chosen by them.

#include <algorithm>
#include <map>

#include "backend/attend_world.h"
#include "backend/reference/reference_backend.h"
#include "kv/page_choice.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

PageSelection selection(PageChoice choice, std::int64_t tokens) {
  return {.choice = choice, .tokens = tokens, .sink_tokens = 8, .recent_tokens = 20};
}

std::vector<Shape> selection_shapes(PageChoice choice) {
  std::vector<Shape> all;
  all.push_back({.heads = 4, .kv_heads = 2, .head_dim = 64, .length = 300, .selection = selection(choice, 96)});
  all.push_back({.heads = 6,
                 .kv_heads = 2,
                 .head_dim = 20,
                 .page_tokens = 5,
                 .length = 131,
                 .sinks = true,
                 .selection = selection(choice, 60)});
  all.push_back({.heads = 3,
                 .kv_heads = 1,
                 .head_dim = 40,
                 .page_tokens = 32,
                 .length = 330,
                 .softcap = 5.0f,
                 .selection = selection(choice, 160)});
  all.push_back(
      {.heads = 2, .kv_heads = 2, .head_dim = 8, .page_tokens = 1, .length = 90, .selection = selection(choice, 50)});
  for (const KvFormat format : kKvFormats) {
    all.push_back({.heads = 8,
                   .kv_heads = 2,
                   .head_dim = 64,
                   .length = 260,
                   .format = format,
                   .selection = selection(choice, 112),
                   .answer_begin = 150});
    all.push_back({.heads = 3,
                   .kv_heads = 1,
                   .head_dim = 11,
                   .length = 200,
                   .format = format,
                   .selection = selection(choice, 80)});
  }
  return all;
}

class CpuSelection : public CpuAttendLevelTest {};

/// To the bit what the stored keys reach.
TEST_P(CpuSelection, BoundsAreWhatKeysReach) {
  const KernelTable kernels = kernel_table(GetParam());
  for (const Shape& shape : selection_shapes(PageChoice::quest)) {
    World world(shape, 1, 51);
    const std::size_t width = kv_bound_numbers(static_cast<std::size_t>(shape.head_dim)),
                      count = static_cast<std::size_t>(shape.kv_heads) * 2 * width;
    world.store(0, 0, shape.length);
    for (std::int64_t page = 0; page < shape.length / shape.page_tokens; ++page) {
      std::uint16_t* bounds = world.bounds(0, page);
      const std::vector<std::uint16_t> expected(bounds, bounds + count);
      std::fill_n(bounds, count, std::uint16_t{0x1234});
      kernels.bound_keys({.kv = &world.kv(),
                          .kv_heads = shape.kv_heads,
                          .head_dim = shape.head_dim,
                          .page = world.page_number(0, page)});
      EXPECT_TRUE(std::equal(bounds, bounds + count, expected.begin())) << describe(shape) << ", page " << page;
    }
  }
}

/// No score of a query with a key is above its page's. Where a page has one position, the page's is the score.
TEST_P(CpuSelection, NoKeyExceedsItsPagesScore) {
  const KernelTable kernels = kernel_table(GetParam());
  for (const Shape& shape : selection_shapes(PageChoice::quest)) {
    World world(shape, 1, 52);
    world.store(0, 0, shape.length);
    const std::int64_t pages = shape.length / shape.page_tokens;
    Random random(53);
    const std::vector<float> q = random.normals(world.q_width());
    AttendArgs args{.q = q.data(),
                    .q_stride = world.q_width(),
                    .heads = shape.heads,
                    .kv_heads = shape.kv_heads,
                    .head_dim = shape.head_dim,
                    .kv = world.kv()};
    std::vector<std::int32_t> table;
    for (std::int64_t p = 0; p < pages; ++p) {
      table.push_back(world.page_number(0, p));
    }
    std::vector<float> scores(static_cast<std::size_t>(shape.heads * pages));
    std::vector<float> scratch(static_cast<std::size_t>(page_score_scratch(shape.heads, shape.head_dim)));
    kernels.score_pages({.args = &args,
                         .page_table = table.data(),
                         .row = 0,
                         .first = 0,
                         .end = pages,
                         .scores = scores.data(),
                         .stride = pages,
                         .scratch = scratch.data()});
    for (std::int32_t head = 0; head < shape.heads; ++head) {
      const std::int32_t kv_head = head / (shape.heads / shape.kv_heads);
      for (std::int64_t t = 0; t < pages * shape.page_tokens; ++t) {
        double product = 0.0, size = 0.0;
        for (std::int32_t d = 0; d < shape.head_dim; ++d) {
          const double number = q[static_cast<std::size_t>(head * shape.head_dim + d)];
          const double part = number * world.key(0, t, kv_head, d);
          product += part;
          size += std::fabs(part);
        }
        const double bound = scores[static_cast<std::size_t>(head * pages + t / shape.page_tokens)];
        EXPECT_LE(product, bound + 1e-5 * size) << describe(shape) << ", position " << t;
        if (shape.page_tokens == 1) {
          EXPECT_NEAR(product, bound, 0x1p-7 * size) << describe(shape) << ", position " << t;
        }
      }
    }
  }
}

TEST_P(CpuSelection, AgreesWithTheReference) {
  static std::map<std::string, std::vector<float>> known;
  const auto backend = cpu_backend(GetParam(), 2);
  for (const PageChoice choice : {PageChoice::quest, PageChoice::recent, PageChoice::random}) {
    for (const Shape& shape : selection_shapes(choice)) {
      World world(shape, 2, 54);
      world.store(0, 0, shape.length);
      world.store(1, 0, shape.length);
      if (backend->attend_arithmetic(shape.format) != Arithmetic::f32) world.round_queries();
      const std::vector<World::Step> steps = {{0, 0, shape.length}, {1, 100, shape.length}};
      const std::string name = fmt::format("{} {} {}", describe(shape), static_cast<int>(choice),
                                           backend->attend_arithmetic(shape.format) != Arithmetic::f32);
      const auto [place, fresh] = known.try_emplace(name);
      if (fresh) place->second = world.attend(*make_reference_backend(), steps);
      const std::vector<float> out = world.attend(*backend, steps);
      if (backend->attend_arithmetic(shape.format) == Arithmetic::f32) {
        EXPECT_TRUE(close(out, place->second, 3e-6f)) << name;
      } else {
        const float rounding = shape.format == KvFormat::int4 ? 0x1.02p-7f : 0x1.02p-8f;
        EXPECT_TRUE(within(out, place->second, rounding * world.largest_value())) << name;
      }
    }
  }
}

/// As with everything, and some company.
TEST_P(CpuSelection, ABudgetThatHoldsAllGivesTheBitsOfDense) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const PageChoice choice : {PageChoice::quest, PageChoice::recent, PageChoice::random}) {
    for (Shape shape : selection_shapes(choice)) {
      const auto result = [&](std::optional<PageSelection> chosen) {
        shape.selection = chosen;
        World world(shape, 2, 55);
        world.store(0, 0, shape.length);
        world.store(1, 0, shape.length);
        return world.attend(*backend, {{0, shape.length / 2, shape.length}, {1, shape.length - 1, shape.length}});
      };
      const std::vector<float> dense = result({});
      EXPECT_TRUE(identical(result(selection(choice, shape.length + shape.page_tokens)), dense)) << describe(shape);
      EXPECT_FALSE(identical(result(selection(choice, shape.length / 2)), dense)) << describe(shape);
    }
  }
}

TEST_P(CpuSelection, IdenticalHoweverAnAnswerIsCutAndInAnyCompany) {
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2), many = cpu_backend(GetParam(), 11);
  for (const Shape& shape : selection_shapes(PageChoice::quest)) {
    World all(shape, 1, 56);
    all.store(0, 0, shape.length);
    const std::vector<float> whole = all.attend(*one, {{0, 0, shape.length}});
    for (const std::int64_t chunk : {1, 7, 64}) {
      World world(shape, 3, 58), twin(shape, 1, 56);  // what lies ahead of a step is not a number
      world.adopt(0, twin);
      world.store(1, 0, shape.length);
      world.store(2, 0, shape.length);
      std::vector<float> pieces;
      for (std::int64_t begin = 0; begin < shape.length; begin += chunk) {
        const std::int64_t end = std::min(begin + chunk, shape.length);
        world.store(0, begin, end);
        const std::vector<float> out = world.attend(begin % 2 == 0 ? *two : *many,
                                                    {{1, shape.length - 2, shape.length}, {0, begin, end}, {2, 0, 40}});
        const auto start = out.begin() + 2 * world.q_width();
        pieces.insert(pieces.end(), start, start + (end - begin) * world.q_width());
      }
      EXPECT_TRUE(identical(pieces, whole)) << describe(shape) << ", steps of " << chunk;
    }
  }
}

/// A set of sequences with a common prefix, of which some rows select: each reads what it would alone.
TEST_P(CpuSelection, RowsThatSelectDoNotReadASharedPrefixTogether) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const PageChoice choice : {PageChoice::quest, PageChoice::random}) {
    Shape shape{.heads = 12, .kv_heads = 4, .head_dim = 64, .length = 330, .selection = selection(choice, 128)};
    shape.answer_begin = 290;
    World world(shape, 16, 59);
    const SharedPrefix set = world.share(0, 16, 256);
    std::vector<World::Step> prompts, mixed;
    for (int s = 0; s < 16; ++s) {
      world.store(s, 0, shape.length);
      prompts.push_back({s, 270, 271});
      mixed.push_back(s % 2 == 0 ? World::Step{s, 300, 301} : World::Step{s, 270, 271});
    }
    EXPECT_TRUE(identical(world.attend(*backend, prompts, {set}), world.attend(*backend, prompts)));
    EXPECT_TRUE(identical(world.attend(*backend, mixed, {set}), world.attend(*backend, mixed)));
  }
}

/// Keys that are no finite numbers have bounds that are, and rows that choose pages without them are as they were.
TEST_P(CpuSelection, KeysThatAreNotFiniteStayInTheirPages) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const float number : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    const Shape shape{
        .heads = 4, .kv_heads = 2, .head_dim = 64, .length = 300, .selection = selection(PageChoice::quest, 96)};
    World world(shape, 1, 60);
    world.set_key(0, 130, number);
    world.store(0, 0, shape.length);
    const std::uint16_t* bounds = world.bounds(0, 130 / 16);
    for (std::size_t i = 0; i < 2 * 2 * 64; ++i) EXPECT_LE(bounds[i] & 0x7fff, 0x7f7f);
    const std::vector<float> out = world.attend(*backend, {{0, 0, shape.length}}),
                             expected = world.attend(*make_reference_backend(), {{0, 0, shape.length}});
    std::int64_t finite = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(std::isfinite(out[i]), std::isfinite(expected[i])) << number << " at " << i;
      finite += std::isfinite(out[i]) ? 1 : 0;
    }
    EXPECT_GE(finite, 130 * world.q_width()) << "those before it";
  }
}

/// A page whose keys a query looks for is found wherever it lies; recent pages alone do not have it.
TEST_P(CpuSelection, FindsTheKeyThatTheQueryLooksFor) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const PageChoice choice : {PageChoice::quest, PageChoice::recent}) {
    int found = 0;
    for (const std::int64_t needle : {40, 77, 130, 191}) {
      Shape shape{.heads = 1, .kv_heads = 1, .head_dim = 16, .length = 300, .selection = selection(choice, 64)};
      World world(shape, 1, 57);
      world.set_query(0, shape.length - 1, 12.0f);
      world.set_key(0, needle, 12.0f);
      world.set_value(0, needle, 100.0f);
      world.store(0, 0, shape.length);
      const std::vector<float> out = world.attend(*backend, {{0, shape.length - 1, shape.length}});
      found += out.front() > 50.0f ? 1 : 0;
    }
    EXPECT_EQ(found, choice == PageChoice::quest ? 4 : 0);
  }
}

MILLRACE_ON_EACH_LEVEL(CpuSelection);

}  // namespace
}  // namespace millrace
