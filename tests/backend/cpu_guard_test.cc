// Kernels of products read and write no further than what kernel_table.h grants them: whatever they are given ends at a
// page that cannot be touched.

#include <sys/mman.h>

#include <cstring>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/packed_integers.h"
#include "backend/cpu_test_util.h"
#include "core/float16.h"

namespace millrace {
namespace {

/// `count` elements that end where the process may not go on.
template <typename Element>
class Guarded {
 public:
  explicit Guarded(std::int64_t count) : bytes_(static_cast<std::size_t>(round_up(count * kSize, kPage) + kPage)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MILLRACE_CHECK(memory != MAP_FAILED, "no memory");
    memory_ = static_cast<std::byte*>(memory);
    std::byte* const end = memory_ + bytes_ - kPage;
    MILLRACE_CHECK(mprotect(end, kPage, PROT_NONE) == 0, "no guard");
    elements_ = reinterpret_cast<Element*>(end - count * kSize);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, bytes_); }

  [[nodiscard]] Element* data() { return elements_; }

 private:
  static constexpr std::int64_t kPage = 4096, kSize = sizeof(Element);
  std::size_t bytes_;
  std::byte* memory_ = nullptr;
  Element* elements_ = nullptr;
};

class CpuGuard : public CpuLevelTest {
 protected:
  void SetUp() override {
    CpuLevelTest::SetUp();
    if (IsSkipped()) return;
    (void)cpu_backend(GetParam());  // asks for the tiles
    kernels_ = kernel_table(GetParam());
  }
  KernelTable kernels_;
};
MILLRACE_ON_EACH_LEVEL(CpuGuard);

TEST_P(CpuGuard, ProductsOfCodes) {
  constexpr std::int64_t kRows = 37, kOutputs = 40, kCols = 416, kStride = kCols + 64, kBlocks = kStride / kInputBlock;
  Random random(61);
  const std::vector<float> weights = random.normals(kOutputs * kCols, 0.1f);
  for (const CodeFormat& format : {CodeFormat{}, CodeFormat{CodeKind::int4, 32, false},
                                   CodeFormat{CodeKind::int4, 32, true}, CodeFormat{CodeKind::int4, 128, true}}) {
    PackedIntegers layout = integer_layout(format, kOutputs, kCols);
    const auto bytes = static_cast<std::int64_t>(packed_integer_bytes(layout));
    Guarded<std::byte> memory(bytes);
    place_integers(layout, memory.data());
    for (std::int64_t panel = 0; panel * kPanelRows < kOutputs; ++panel) {
      ASSERT_TRUE(pack_integer_panel(format, source_of(weights, kOutputs, kCols), 0, layout, panel).ok());
    }
    const std::int64_t group = input_group(layout), groups = group == 0 ? 1 : (kCols + group - 1) / group;
    const std::vector<float> x = random.normals(kRows * kCols);
    std::vector<float> all;
    for (std::int64_t rows = kRows; rows > 0; rows -= 6) {
      Guarded<std::int8_t> codes((rows + kInputRowPadding) * kStride);
      Guarded<std::int32_t> sums(rows * kBlocks), totals(rows * (kBlocks + 1));
      Guarded<float> scales(rows * groups), shifts(rows * groups);
      Guarded<float> tile_scales((rows + kInputRowPadding) * groups), tile_shifts((rows + kInputRowPadding) * groups);
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t in_tiles = row / 16 * groups * 16 + row % 16;
        kernels_.quantize({.x = x.data() + row * kCols,
                           .cols = kCols,
                           .padded_cols = kCols,
                           .group = group,
                           .codes = codes.data() + row * kStride,
                           .sums = sums.data() + row * kBlocks,
                           .totals = totals.data() + row * (kBlocks + 1),
                           .scales = scales.data() + row * groups,
                           .shifts = shifts.data() + row * groups,
                           .tile_scales = tile_scales.data() + in_tiles,
                           .tile_shifts = tile_shifts.data() + in_tiles});
      }
      Guarded<float> out(rows * kOutputs);
      kernels_.products.multiply_integers(
          {.weight = layout,
           .first_panel = 0,
           .end_panel = (kOutputs + kPanelRows - 1) / kPanelRows,
           .x = {codes.data(), sums.data(), totals.data(), scales.data(), shifts.data(), tile_scales.data(),
                 tile_shifts.data(), kStride, groups},
           .rows = rows,
           .out = out.data(),
           .out_stride = kOutputs});
      const std::vector<float> result(out.data(), out.data() + rows * kOutputs);
      if (all.empty()) all = result;
      EXPECT_TRUE(identical(result, {all.begin(), all.begin() + rows * kOutputs}))
          << code_format_name(format) << ", " << rows << " rows";
    }
  }
}

TEST_P(CpuGuard, ProductsOfPairs) {
  if (kernels_.products.multiply_pairs == nullptr) GTEST_SKIP() << "this level has no products of pairs";
  constexpr std::int64_t kRows = 37, kOutputs = 40, kCols = 288, kPanels = 3;
  Random random(62);
  for (const bool e4m3 : {false, true}) {
    constexpr std::int64_t kWeights = kPanels * kPanelRows * kCols;
    Guarded<std::byte> weights(kWeights * (e4m3 ? 1 : 2));
    for (std::int64_t i = 0; i < kWeights; ++i) {
      const std::uint16_t bits = float_to_bf16(random.normal());
      if (e4m3) {
        weights.data()[i] = static_cast<std::byte>(random.below(0x70));
      } else {
        std::memcpy(weights.data() + 2 * i, &bits, sizeof bits);
      }
    }
    Guarded<float> row_scales(kPanels * kPanelRows);
    std::fill_n(row_scales.data(), kPanels * kPanelRows, 0.5f);
    const std::vector<float> x = random.normals(kRows * kCols);
    std::vector<float> all;
    for (std::int64_t rows = kRows; rows > 0; rows -= 6) {
      Guarded<std::uint16_t> pairs((rows + kInputRowPadding) * kCols);
      for (std::int64_t row = 0; row < rows; ++row) {
        kernels_.round_to_bf16({.x = x.data() + row * kCols,
                                .cols = kCols,
                                .padded_cols = kCols,
                                .values = pairs.data() + row * kCols});
      }
      Guarded<float> x_scales(rows), out(rows * kOutputs);
      std::fill_n(x_scales.data(), rows, 2.0f);
      kernels_.products.multiply_pairs({.weight = {.format = e4m3 ? QuantFormat::f8_e4m3 : QuantFormat::bf16,
                                                   .data = weights.data(),
                                                   .rows = kOutputs,
                                                   .cols = kCols,
                                                   .paired = true,
                                                   .row_scales = e4m3 ? row_scales.data() : nullptr},
                                        .first_panel = 0,
                                        .end_panel = kPanels,
                                        .x = pairs.data(),
                                        .x_stride = kCols,
                                        .x_scales = e4m3 ? x_scales.data() : nullptr,
                                        .rows = rows,
                                        .out = out.data(),
                                        .out_stride = kOutputs});
      const std::vector<float> result(out.data(), out.data() + rows * kOutputs);
      if (all.empty()) all = result;
      EXPECT_TRUE(identical(result, {all.begin(), all.begin() + rows * kOutputs})) << e4m3 << ", " << rows << " rows";
    }
  }
}

}  // namespace
}  // namespace millrace
