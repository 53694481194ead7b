#include "quant/integer_blocks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/check.h"
#include "quant/blocks.h"
#include "quant/codec.h"

namespace millrace {

namespace {

constexpr std::uint16_t kOne = 0x3c00;  // halves
constexpr std::uint16_t kSign = 0x8000;

void put_half(std::byte* block, std::size_t offset, std::uint16_t half) {
  std::memcpy(block + offset, &half, sizeof half);
}

void put_bytes(std::byte* block, std::size_t offset, std::initializer_list<std::uint8_t> bytes) {
  for (const std::uint8_t byte : bytes) block[offset++] = std::byte{byte};
}

/// Overwrites scales with 1 and minimums with 0, so that the codec decodes the codes themselves.
void make_unit(QuantFormat format, std::byte* block) {
  switch (format) {
    case QuantFormat::q4_1:
    case QuantFormat::q5_1:
      put_half(block, 0, kOne);
      put_half(block, 2, 0);
      return;
    case QuantFormat::q3_k:  // 6-bit factors, stored with 32 added
      put_bytes(block, 96, {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0xaa, 0xaa, 0xaa, 0xaa});
      put_half(block, 108, kOne);
      return;
    case QuantFormat::q4_k:
    case QuantFormat::q5_k:
      put_half(block, 0, kOne);
      put_half(block, 2, 0);
      put_bytes(block, 4, {1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1});
      return;
    case QuantFormat::q6_k:
      std::memset(block + 192, 1, 16);
      put_half(block, 208, kOne);
      return;
    case QuantFormat::iq4_xs:  // as Q3_K
      put_half(block, 0, kOne);
      put_bytes(block, 2, {0xaa, 0xaa, 0x11, 0x11, 0x11, 0x11});
      return;
    default:
      put_half(block, 0, kOne);
  }
}

/// Where the half-precision scale lies, and behind it the minimum's.
std::size_t scale_offset(QuantFormat format) {
  if (format == QuantFormat::q3_k) return 108;
  return format == QuantFormat::q6_k ? 208 : 0;
}

/// The factors of a block of 256 elements.
void split_factors(QuantFormat format, const std::byte* block, std::int8_t* factors, std::int8_t* minimum_factors) {
  switch (format) {
    case QuantFormat::q3_k:
      for (int group = 0; group < 16; ++group) {
        factors[group] = static_cast<std::int8_t>(q3_k_factor(block_codes(block + 96), group));
      }
      return;
    case QuantFormat::q4_k:
    case QuantFormat::q5_k: {
      const GroupScales scales = unpack_scales(block_codes(block + 4));
      for (std::size_t group = 0; group < scales.scale.size(); ++group) {
        factors[group] = static_cast<std::int8_t>(scales.scale[group]);
        minimum_factors[group] = static_cast<std::int8_t>(scales.minimum[group]);
      }
      return;
    }
    case QuantFormat::q6_k:
      std::memcpy(factors, block + 192, 16);
      return;
    case QuantFormat::iq4_xs:
      for (int group = 0; group < 8; ++group) {
        factors[group] = static_cast<std::int8_t>(iq4_xs_factor(load_u16(block + 2), block_codes(block + 4), group));
      }
      return;
    default:
      MILLRACE_CHECK(false, "blocks of format {} have no factors", format_info(format).name);
  }
}

/// The steps of E2M1 are scaled with 2^(exponent - 128).
void split_mxfp4_row(const std::byte* row, std::int64_t blocks, const SplitRow& target) {
  constexpr std::int64_t kBytes = 17, kHalf = 16;
  constexpr int kBias = 128, kLargestPower = 15, kSmallestPower = -24;  // of a half
  constexpr int kSmallest = -125;                                       // a power of two that is no subnormal float
  int base = kSmallest;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::uint8_t* bytes = block_codes(row + block * kBytes);
    bool empty = true;
    for (std::int64_t j = 0; j < kHalf; ++j) {
      target.codes[block * 2 * kHalf + j] = static_cast<std::int8_t>(bytes[1 + j] & 15);
      target.codes[block * 2 * kHalf + kHalf + j] = static_cast<std::int8_t>(bytes[1 + j] >> 4);
      empty = empty && (bytes[1 + j] & 0x77) == 0;
    }
    if (!empty) base = std::max(base, bytes[0] - kBias - kLargestPower);
  }
  *target.row_scale = std::ldexp(1.0f, base);
  for (std::int64_t block = 0; block < blocks; ++block) {
    const int power = block_codes(row + block * kBytes)[0] - kBias - base;
    const bool fits = power >= kSmallestPower && power <= kLargestPower;  // what is larger has no codes but zeros
    target.scales[block] = fits ? float_to_f16(std::ldexp(1.0f, power)) : 0;
  }
}

/// Blocks of a half and 32 codes as they are, which models are loaded from most: without the detour over floats.
void split_plain_row(QuantFormat format, const std::byte* row, std::int64_t cols, const SplitRow& target) {
  constexpr std::int64_t kBlock = 32;
  std::int8_t* codes = target.codes;
  for (std::int64_t block = 0; block < cols / kBlock; ++block, codes += kBlock) {
    target.scales[block] = load_u16(row);
    row += sizeof(std::uint16_t);
    if (format == QuantFormat::q8_0) {
      std::memcpy(codes, row, kBlock);
      row += kBlock;
      continue;
    }
    for (std::int64_t i = 0; i < kBlock / 2; ++i) {
      const auto both = std::to_integer<unsigned>(row[i]);
      codes[i] = static_cast<std::int8_t>(both & 15u);
      codes[i + kBlock / 2] = static_cast<std::int8_t>(both >> 4);
    }
    row += kBlock / 2;
  }
}

}  // namespace

std::optional<IntegerBlocks> integer_blocks(QuantFormat format) {
  switch (format) {
    case QuantFormat::q8_0:
    case QuantFormat::q5_0:
    case QuantFormat::iq4_nl:
      return IntegerBlocks{.group = 32, .super = 32};
    case QuantFormat::q4_0:
      return IntegerBlocks{.kind = CodeKind::int4, .zero = 8, .group = 32, .super = 32};
    case QuantFormat::q4_1:
      return IntegerBlocks{.kind = CodeKind::int4, .group = 32, .super = 32, .minimums = true};
    case QuantFormat::q5_1:
      return IntegerBlocks{.group = 32, .super = 32, .minimums = true};
    case QuantFormat::q4_k:
      return IntegerBlocks{.kind = CodeKind::int4, .group = 32, .super = 256, .minimums = true};
    case QuantFormat::q5_k:
      return IntegerBlocks{.group = 32, .super = 256, .minimums = true};
    case QuantFormat::q3_k:
    case QuantFormat::q6_k:
      return IntegerBlocks{.group = 16, .super = 256};
    case QuantFormat::iq4_xs:
      return IntegerBlocks{.group = 32, .super = 256};
    case QuantFormat::mxfp4:
      return IntegerBlocks{.kind = CodeKind::e2m1, .group = 32, .super = 32};
    default:
      return std::nullopt;
  }
}

void split_row(QuantFormat format, const std::byte* row, std::int64_t cols, const SplitRow& target) {
  const std::optional<IntegerBlocks> parts = integer_blocks(format);
  const QuantFormatInfo& info = format_info(format);
  const auto elements = static_cast<std::int64_t>(info.block_elements);
  MILLRACE_CHECK(parts && cols % elements == 0, "{} elements of format {} as integers", cols, info.name);
  if (parts->kind == CodeKind::e2m1) return split_mxfp4_row(row, cols / elements, target);
  if (format == QuantFormat::q8_0 || format == QuantFormat::q4_0) return split_plain_row(format, row, cols, target);
  std::vector<std::byte> unit(info.block_bytes);
  std::array<float, 256> values{};
  for (std::int64_t block = 0; block < cols / elements; ++block, row += info.block_bytes) {
    std::memcpy(unit.data(), row, info.block_bytes);
    make_unit(format, unit.data());
    dequantize(format, unit.data(), values.data(), info.block_elements);
    for (std::int64_t i = 0; i < elements; ++i) {
      const float code = values[static_cast<std::size_t>(i)] + static_cast<float>(parts->zero);
      target.codes[block * elements + i] = static_cast<std::int8_t>(code);
    }
    const std::size_t offset = scale_offset(format);
    target.scales[block] = load_u16(row + offset);
    if (parts->minimums) {
      // Blocks of 32 store what is added, those of 256 what is subtracted.
      target.minimums[block] = load_u16(row + offset + 2) ^ (parts->factors() ? kSign : 0);
    }
    if (parts->factors()) {
      const std::int64_t groups = elements / parts->group;
      split_factors(format, row, target.factors + block * groups,
                    parts->minimums ? target.minimum_factors + block * groups : nullptr);
    }
  }
}

}  // namespace millrace
