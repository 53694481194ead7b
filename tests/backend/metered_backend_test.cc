// What operations cost, counted beside what they must, and the limits that the counts are compared with.
#include "backend/metered_backend.h"

#include "backend/attend_world.h"
#include "backend/cpu_test_util.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

MatrixSource source_of(const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
  return {{{.format = QuantFormat::f32,
            .data = reinterpret_cast<const std::byte*>(values.data()),
            .rows = rows,
            .cols = cols,
            .row_order = {}}}};
}

double operations(const OpTotals& totals, Arithmetic arithmetic) {
  return totals.operations[static_cast<std::size_t>(arithmetic)];
}

TEST(MeteredBackend, CountsProductsByShapeAndArithmetic) {
  MeteredBackend backend(cpu_backend(best_isa_level()));
  Random random(1);
  const std::vector<float> values = random.normals(64 * 96), x = random.normals(5 * 96);
  const auto plain = std::move(*backend.pack(source_of(values, 64, 96), {.input = DType::bf16}));
  const auto rounded = std::move(*backend.pack(source_of(values, 32, 96), {.codes = CodeFormat{}}));
  std::vector<float> out(5 * 64);
  for (int call = 0; call < 3; ++call) backend.linear({plain.get(), nullptr}, x.data(), 5, out.data(), 64);
  backend.linear({rounded.get(), nullptr}, x.data(), 2, out.data(), 32);

  ASSERT_EQ(backend.totals().size(), 2u);
  const OpTotals& of_plain = backend.totals().at({OpKind::linear, 64, 96});
  EXPECT_EQ(of_plain.calls, 3);
  EXPECT_GT(of_plain.seconds, 0.0);
  EXPECT_EQ(of_plain.bytes, 3.0 * 64 * 96 * 2);
  EXPECT_EQ(operations(of_plain, Arithmetic::bf16), 3.0 * 2 * 5 * 64 * 96);
  const OpTotals& of_rounded = backend.totals().at({OpKind::linear, 32, 96});
  EXPECT_EQ(of_rounded.bytes, 32.0 * 96 + 32 * 4);
  EXPECT_EQ(operations(of_rounded, Arithmetic::int8), 2.0 * 2 * 32 * 96);
  const OpTotals all = backend.sum();
  EXPECT_EQ(all.calls, 4);
  EXPECT_EQ(all.bytes, of_plain.bytes + of_rounded.bytes);
  backend.reset();
  EXPECT_TRUE(backend.totals().empty());
}

TEST(MeteredBackend, CountsAttentionByWhatRowsSee) {
  constexpr std::int64_t kLength = 100;
  for (const std::int64_t window : {std::int64_t{0}, std::int64_t{30}}) {
    AttendWorld world({.length = kLength, .window = window, .format = KvFormat::bf16}, 2, 3);
    MeteredBackend backend(cpu_backend(best_isa_level()));
    world.store(0, 0, kLength);
    world.store(1, 0, kLength);
    // Eight rows of the first sequence at its end, one of the second at position 50.
    (void)world.attend(backend, {{0, 92, 100}, {1, 50, 51}});

    double pairs = 0, positions = 0;
    for (std::int64_t t = 0; t < kLength; ++t) {
      bool seen = false;
      for (std::int64_t row = 92; row < 100; ++row) {
        const bool sees = t <= row && (window == 0 || t > row - window);
        pairs += sees ? 1 : 0;
        seen |= sees;
      }
      const bool by_second = t <= 50 && (window == 0 || t > 50 - window);
      pairs += by_second ? 1 : 0;
      positions += (seen ? 1 : 0) + (by_second ? 1 : 0);
    }
    const OpTotals& totals = backend.totals().at({OpKind::attend});
    EXPECT_EQ(totals.bytes, positions * 2 * 2 * 16 * 2);  // keys and values of two heads
    EXPECT_EQ(operations(totals, backend.attend_arithmetic(KvFormat::bf16)), pairs * 4 * 4 * 16);
  }
}

TEST(MeteredBackend, CountsWhatSelectedPagesHaveAndTheBoundsOfOthers) {
  constexpr std::int64_t kLength = 200;
  const PageSelection selection{.choice = PageChoice::quest, .tokens = 96, .sink_tokens = 16, .recent_tokens = 16};
  AttendWorld world({.length = kLength, .format = KvFormat::bf16, .selection = selection}, 2, 3);
  MeteredBackend backend(cpu_backend(best_isa_level()));
  world.store(0, 0, kLength);
  world.store(1, 0, kLength);
  // The last row of one sequence selects six pages, of which the last has 8 positions; those of the other read all.
  (void)world.attend(backend, {{0, 199, 200}, {1, 40, 43}});
  const OpTotals& totals = backend.totals().at({OpKind::attend});
  const double row = 2 * 2 * 16 * 2, bounds = 2 * 2 * 16 * 2;  // of a position, and of a page
  // Pages 1 to 10 can be left out: position 184, the first of the 16 most recent, is in page 11.
  EXPECT_EQ(totals.bytes, (5 * 16 + 8 + 43) * row + 10 * bounds);
  EXPECT_EQ(operations(totals, backend.attend_arithmetic(KvFormat::bf16)), (5 * 16 + 8 + 41 + 42 + 43) * 4.0 * 4 * 16);
}

TEST(MeteredBackend, CountsBlocksAndSamplesOfWhatIsFar) {
  constexpr std::int64_t kLength = 400;
  const HyperAttention hyper{
      .block = 32, .samples = 16, .chunk = 128, .min_tokens = 0, .sink_tokens = 64, .recent_tokens = 0};
  AttendWorld world({.length = kLength, .format = KvFormat::bf16, .answer_begin = kLength, .hyper = hyper}, 2, 3);
  MeteredBackend backend(cpu_backend(best_isa_level()));
  world.store(0, 0, kLength);
  world.store(1, 0, kLength);
  // Rows 254 and 255 approximate 64 positions, row 256 does 192; those of the other sequence read everything.
  (void)world.attend(backend, {{0, 254, 257}, {1, 126, 128}});
  const OpTotals& totals = backend.totals().at({OpKind::attend});
  EXPECT_EQ(totals.bytes, (256 + 257 + 128) * 2.0 * 2 * 16 * 2);  // all of it is put in order, once a chunk
  const double pairs = (255 - 64 + 48) + (256 - 64 + 48) + (257 - 192 + 48) + 127 + 128;
  EXPECT_EQ(operations(totals, backend.attend_arithmetic(KvFormat::bf16)), pairs * 4 * 4 * 16);
}

TEST(MeteredBackend, LimitIsTheLongerOfMovingAndComputing) {
  OpTotals totals{.bytes = 10.0};
  totals.operations[static_cast<std::size_t>(Arithmetic::int8)] = 60.0;
  totals.operations[static_cast<std::size_t>(Arithmetic::f32)] = 10.0;
  DeviceLimits limits{.read_bytes_per_second = 1.0, .operations_per_second = {2.0, 3.0, 4.0, 30.0}};
  EXPECT_EQ(limit_seconds(totals, limits), 10.0);
  limits.read_bytes_per_second = 5.0;
  EXPECT_EQ(limit_seconds(totals, limits), 60.0 / 30.0 + 10.0 / 2.0);
}

class DeviceLimitsTest : public CpuLevelTest {};

TEST_P(DeviceLimitsTest, AreThoseOfSomeMachine) {
  const auto limits = cpu_backend(GetParam(), 2)->measure_limits();
  ASSERT_TRUE(limits.ok()) << limits.error().message;
  EXPECT_GT(limits->read_bytes_per_second, 1e8);
  EXPECT_LT(limits->read_bytes_per_second, 1e13);
  for (const double speed : limits->operations_per_second) {
    EXPECT_GT(speed, 1e8);
    EXPECT_LT(speed, 1e15);
  }
}

MILLRACE_ON_EACH_LEVEL(DeviceLimitsTest);

TEST(DeviceLimits, TheReferenceHasNone) {
  EXPECT_FALSE(make_reference_backend()->measure_limits().ok());
}

}  // namespace
}  // namespace millrace
