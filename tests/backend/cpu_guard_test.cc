// Kernels of products and attention read and write no further than what kernel_table.h grants them: whatever they are
// given ends at a page that cannot be touched.

#include <sys/mman.h>

#include <cstring>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/packed_integers.h"
#include "backend/cpu_test_util.h"
#include "core/float16.h"
#include "quant/kv_codec.h"

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
      kernels_.products.multiply_integers({.weight = layout,
                                           .first_panel = 0,
                                           .end_panel = (kOutputs + kPanelRows - 1) / kPanelRows,
                                           .x = {codes.data(), sums.data(), totals.data(), scales.data(), shifts.data(),
                                                 tile_scales.data(), tile_shifts.data(), kStride, groups},
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
        kernels_.round_to_bf16(
            {.x = x.data() + row * kCols, .cols = kCols, .padded_cols = kCols, .values = pairs.data() + row * kCols});
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

/// A page that holds 16 positions, the parts of which follow each other in an order that ends with one of them.
class GuardedPage {
 public:
  enum Part { keys, values, key_scales, value_scales };

  GuardedPage(KvFormat format, std::int32_t kv_heads, std::int32_t head_dim, Part last) {
    const auto numbers = static_cast<std::size_t>(head_dim);
    row_bytes_ = kv_element_bytes(format) * kv_elements(format, numbers);
    const std::size_t slab = row_bytes_ * kTokens * static_cast<std::size_t>(kv_heads);
    const std::size_t scales = std::size_t{2} * static_cast<std::size_t>(kv_heads) * kTokens * sizeof(float);
    const std::size_t bytes[] = {slab, slab, scales, scales};
    std::size_t offsets[4] = {}, next = 0;
    for (const Part part : {key_scales, value_scales, keys, values, last}) {
      if (part == last && next != 2 * (slab + scales) - bytes[last]) continue;
      offsets[part] = next;
      next += bytes[part];
    }
    memory_ = std::make_unique<Guarded<std::byte>>(static_cast<std::int64_t>(next));
    layer = {.pages = memory_->data(),
             .page_bytes = next,
             .key_offset = offsets[keys],
             .value_offset = offsets[values],
             .key_scale_offset = offsets[key_scales],
             .value_scale_offset = offsets[value_scales],
             .page_tokens = kTokens,
             .format = format};
  }

  void store(std::int32_t kv_heads, std::int32_t head_dim, Random& random) const {
    const std::size_t element = kv_element_bytes(layer.format);
    for (std::size_t slot = 0; slot < std::size_t{2} * static_cast<std::size_t>(kv_heads) * kTokens; ++slot) {
      const bool key = slot % 2 == 0;
      const std::size_t place = slot / 2, head = place / kTokens, t = place % kTokens;
      KvSlot target;
      target.elements = layer.pages + (key ? layer.key_offset : layer.value_offset) + head * kTokens * row_bytes_ +
                        t * (key ? element : row_bytes_);
      target.step = static_cast<std::int64_t>(key ? kTokens * element : element);
      target.scale =
          reinterpret_cast<float*>(layer.pages + (key ? layer.key_scale_offset : layer.value_scale_offset)) + place;
      target.middle = target.scale + std::int64_t{kv_heads} * kTokens;
      encode_kv(layer.format, random.normals(head_dim).data(), head_dim, target);
    }
  }

  static constexpr std::int32_t kTokens = 16;
  KvLayer layer;

 private:
  std::size_t row_bytes_ = 0;
  std::unique_ptr<Guarded<std::byte>> memory_;
};

TEST_P(CpuGuard, Attention) {
  struct Shape {
    std::int32_t heads, kv_heads, head_dim;
  };
  constexpr std::int32_t kRows = GuardedPage::kTokens;
  for (const auto& [heads, kv_heads, head_dim] :
       {Shape{4, 1, 8}, Shape{6, 2, 11}, Shape{8, 8, 20}, Shape{40, 2, 64}, Shape{3, 1, 80}, Shape{2, 1, 256}}) {
    for (const KvFormat format : kKvFormats) {
      std::vector<float> first;
      for (const auto last :
           {GuardedPage::keys, GuardedPage::values, GuardedPage::key_scales, GuardedPage::value_scales}) {
        Random random(63);
        const GuardedPage page(format, kv_heads, head_dim, last);
        page.store(kv_heads, head_dim, random);
        const std::int64_t width = std::int64_t{heads} * head_dim, group = heads / kv_heads;
        Guarded<float> q(kRows * width), out(kRows * width);
        std::ranges::copy(random.normals(kRows * width), q.data());
        Guarded<std::int32_t> table(1);
        const AttendArgs args{.q = q.data(),
                              .q_stride = width,
                              .out = out.data(),
                              .heads = heads,
                              .kv_heads = kv_heads,
                              .head_dim = head_dim,
                              .kv = page.layer};
        const bool rounds = format != KvFormat::f32 && kernels_.products.attend_rounded != nullptr;
        const auto attend = rounds ? kernels_.products.attend_rounded : kernels_.attend;
        std::vector<float> result;
        for (const std::int64_t rows : {std::int64_t{kRows}, std::int64_t{1}}) {
          const std::int32_t together = rows == 1 ? kv_heads : 1;
          for (std::int32_t head = 0; head < kv_heads; head += together) {
            Guarded<float> scratch(attend_scratch(rows * group, head_dim, together));
            attend({.args = &args,
                    .page_table = table.data(),
                    .batch_row = kRows - rows,
                    .position = kRows - rows,
                    .rows = rows,
                    .end = kRows,
                    .kv_head = head,
                    .kv_heads = together,
                    .scratch = scratch.data()});
          }
          result.insert(result.end(), out.data(), out.data() + kRows * width);
        }
        const std::vector<float> once(result.begin(), result.begin() + kRows * width);
        EXPECT_TRUE(identical({result.begin() + kRows * width, result.end()}, once));
        if (first.empty()) first = result;
        EXPECT_TRUE(identical(result, first)) << kv_format_name(format) << ", " << head_dim;
      }
    }
  }
}

}  // namespace
}  // namespace millrace
