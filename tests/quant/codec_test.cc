#include "quant/codec.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "quant/small_float.h"

namespace millrace {
namespace {

constexpr QuantFormat kFormats[] = {QuantFormat::f32,  QuantFormat::f16,    QuantFormat::bf16,   QuantFormat::q8_0,
                                    QuantFormat::q4_0, QuantFormat::q4_1,   QuantFormat::q5_0,   QuantFormat::q5_1,
                                    QuantFormat::q2_k, QuantFormat::q3_k,   QuantFormat::q4_k,   QuantFormat::q5_k,
                                    QuantFormat::q6_k, QuantFormat::iq4_nl, QuantFormat::iq4_xs, QuantFormat::mxfp4};

const std::string kFixtures = MILLRACE_SOURCE_DIR "/tests/fixtures/quant/";

/// Where the half-precision scales of a block lie.
std::vector<std::size_t> scale_offsets(QuantFormat format) {
  switch (format) {
    case QuantFormat::q4_1:
    case QuantFormat::q5_1:
    case QuantFormat::q4_k:
    case QuantFormat::q5_k:
      return {0, 2};
    case QuantFormat::q2_k:
      return {80, 82};
    case QuantFormat::q3_k:
      return {108};
    case QuantFormat::q6_k:
      return {208};
    case QuantFormat::f32:
    case QuantFormat::bf16:
    case QuantFormat::mxfp4:
      return {};
    default:
      return {0};
  }
}

/// The generator of tools/conformance/quant_fixtures.py.
std::vector<std::byte> random_bytes(std::uint64_t seed, std::size_t count) {
  std::vector<std::byte> out(count);
  for (std::size_t i = 0; i < count; i += 8) {
    std::uint64_t z = seed += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z = z ^ (z >> 31);
    std::memcpy(out.data() + i, &z, std::min<std::size_t>(8, count - i));
  }
  return out;
}

std::vector<std::byte> random_blocks(QuantFormat format, std::uint64_t seed, std::size_t count) {
  const std::size_t size = format_info(format).block_bytes;
  std::vector<std::byte> blocks = random_bytes(seed, size * count);
  for (std::size_t block = 0; block < count; ++block) {
    std::byte* start = blocks.data() + block * size;
    for (const std::size_t offset : scale_offsets(format)) {
      std::byte& high = start[offset + 1];
      if ((high & std::byte{0x7c}) == std::byte{0x7c}) high &= std::byte{0xbf};
    }
    if (format == QuantFormat::mxfp4 && start[0] == std::byte{255}) start[0] = std::byte{254};
  }
  return blocks;
}

std::vector<float> decode(QuantFormat format, const std::vector<std::byte>& blocks) {
  const QuantFormatInfo& info = format_info(format);
  std::vector<float> out(blocks.size() / info.block_bytes * info.block_elements);
  dequantize(format, blocks.data(), out.data(), out.size());
  return out;
}

std::uint64_t fnv1a(const std::vector<float>& values) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (std::size_t i = 0; i < values.size() * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 0x100000001B3u;
  return hash;
}

TEST(Codec, EveryE4m3) {
  std::vector<std::byte> codes;
  for (int code = 0; code < 256; ++code) codes.push_back(static_cast<std::byte>(code));
  const std::vector<float> values = decode(QuantFormat::f8_e4m3, codes);
  for (std::size_t code = 0; code < 256; ++code) {
    const float value = e4m3_to_float(static_cast<std::uint8_t>(code));
    EXPECT_EQ(std::memcmp(&values[code], &value, sizeof value), 0) << code;
  }
}

TEST(Codec, EqualsGgufOnFixtures) {
  for (const QuantFormat format : kFormats) {
    const QuantFormatInfo& info = format_info(format);
    SCOPED_TRACE(info.name);
    std::ifstream file(kFixtures + std::string(info.name) + ".bin", std::ios::binary);
    const std::vector<char> data{std::istreambuf_iterator<char>(file), {}};
    const std::size_t pair = info.block_bytes + info.block_elements * sizeof(float);
    ASSERT_GT(data.size(), 0u);
    ASSERT_EQ(data.size() % pair, 0u);
    const std::size_t bytes = data.size() / pair * info.block_bytes;
    std::vector<std::byte> blocks(bytes);
    std::memcpy(blocks.data(), data.data(), bytes);
    const std::vector<float> actual = decode(format, blocks);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      float expected = 0.0f;
      std::memcpy(&expected, data.data() + bytes + i * sizeof(float), sizeof(float));
      ASSERT_EQ(std::memcmp(&expected, &actual[i], sizeof(float)), 0)
          << "value " << i << ": " << actual[i] << ", gguf has " << expected;
    }
  }
}

TEST(Codec, EqualsGgufOnManyBlocks) {
  std::ifstream file(kFixtures + "hashes.txt");
  std::string name, hash;
  std::size_t count = 0;
  std::uint64_t seed = 0;
  while (file >> name >> count >> hash) {
    SCOPED_TRACE(name);
    const auto format = format_from_name(name);
    ASSERT_TRUE(format);
    EXPECT_EQ(fnv1a(decode(*format, random_blocks(*format, seed, count))), std::stoull(hash, nullptr, 16));
    ++seed;
  }
  EXPECT_EQ(seed, std::size(kFormats));
}

/// A block with scales of one and all other bytes zero, but for the groups' scales, which are set so that each group
/// has a scale of its own that is not zero.
std::vector<std::byte> unit_block(QuantFormat format) {
  std::vector<std::byte> block(format_info(format).block_bytes);
  for (const std::size_t offset : scale_offsets(format)) block[offset + 1] = std::byte{0x3c};
  const auto fill = [&block](std::size_t begin, std::size_t end, int value) {
    for (std::size_t i = begin; i < end; ++i) block[i] = static_cast<std::byte>(value);
  };
  if (format == QuantFormat::q2_k) fill(0, 16, 0x01);
  if (format == QuantFormat::q3_k) fill(96, 108, 0x11);
  if (format == QuantFormat::q4_k || format == QuantFormat::q5_k) fill(4, 16, 0x11);
  if (format == QuantFormat::q6_k) fill(192, 208, 0x01);
  if (format == QuantFormat::mxfp4) fill(0, 1, 127);  // the exponent of one
  return block;
}

struct CodeBits {
  QuantFormat format;
  std::size_t begin, end;  // the bytes that hold codes, others than scales
  int bits;                // of a code
};

// Each bit of the codes belongs to one element, each element to `bits` of them, whatever the layout.
TEST(Codec, EveryCodeBitMovesOneElement) {
  constexpr CodeBits kCodes[] = {
      {QuantFormat::q8_0, 2, 34, 8},  {QuantFormat::q4_0, 2, 18, 4},   {QuantFormat::q4_1, 4, 20, 4},
      {QuantFormat::q5_0, 2, 22, 5},  {QuantFormat::q5_1, 4, 24, 5},   {QuantFormat::q2_k, 16, 80, 2},
      {QuantFormat::q3_k, 0, 96, 3},  {QuantFormat::q4_k, 16, 144, 4}, {QuantFormat::q5_k, 16, 176, 5},
      {QuantFormat::q6_k, 0, 192, 6}, {QuantFormat::iq4_nl, 2, 18, 4}, {QuantFormat::iq4_xs, 8, 136, 4},
  };
  for (const CodeBits& codes : kCodes) {
    SCOPED_TRACE(format_info(codes.format).name);
    std::vector<std::byte> block = unit_block(codes.format);
    const std::vector<float> before = decode(codes.format, block);
    std::vector<int> hits(before.size());
    for (std::size_t bit = codes.begin * 8; bit < codes.end * 8; ++bit) {
      block[bit / 8] ^= std::byte{1} << (bit % 8);
      const std::vector<float> after = decode(codes.format, block);
      block[bit / 8] ^= std::byte{1} << (bit % 8);
      int changed = 0;
      for (std::size_t i = 0; i < after.size(); ++i) {
        if (after[i] == before[i]) continue;
        ++changed;
        ++hits[i];
      }
      ASSERT_EQ(changed, 1) << "bit " << bit;
    }
    for (std::size_t i = 0; i < hits.size(); ++i) ASSERT_EQ(hits[i], codes.bits) << "element " << i;
  }
}

/// Values of the 32 elements when every code byte is `byte`, scales one.
std::vector<float> of_code_byte(QuantFormat format, std::size_t first_code, int byte) {
  std::vector<std::byte> block = unit_block(format);
  std::fill(block.begin() + static_cast<std::ptrdiff_t>(first_code), block.end(), static_cast<std::byte>(byte));
  return decode(format, block);
}

TEST(Codec, EveryCodeByteOfBlocksOf32) {
  constexpr float kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  constexpr float kFp4[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6};
  for (int byte = 0; byte < 256; ++byte) {
    const int low = byte & 15, high = byte >> 4;
    const std::vector<float> q8_0 = of_code_byte(QuantFormat::q8_0, 2, byte);
    const std::vector<float> q4_0 = of_code_byte(QuantFormat::q4_0, 2, byte);
    const std::vector<float> q4_1 = of_code_byte(QuantFormat::q4_1, 4, byte);
    const std::vector<float> q5_0 = of_code_byte(QuantFormat::q5_0, 6, byte);
    const std::vector<float> q5_1 = of_code_byte(QuantFormat::q5_1, 8, byte);
    const std::vector<float> iq4_nl = of_code_byte(QuantFormat::iq4_nl, 2, byte);
    const std::vector<float> mxfp4 = of_code_byte(QuantFormat::mxfp4, 1, byte);
    for (std::size_t j = 0; j < 32; ++j) {
      const int code = j < 16 ? low : high;
      ASSERT_EQ(q8_0[j], static_cast<float>(byte < 128 ? byte : byte - 256));
      ASSERT_EQ(q4_0[j], static_cast<float>(code - 8));
      ASSERT_EQ(q4_1[j], static_cast<float>(code + 1));
      ASSERT_EQ(q5_0[j], static_cast<float>(code - 16));
      ASSERT_EQ(q5_1[j], static_cast<float>(code + 1));
      ASSERT_EQ(iq4_nl[j], kLevels[code]);
      ASSERT_EQ(mxfp4[j], kFp4[code]);
    }
  }
}

TEST(Codec, EveryExponentOfMxfp4) {
  for (int exponent = 0; exponent < 256; ++exponent) {
    std::vector<std::byte> block(17, std::byte{0x22});  // code 2 is one
    block[0] = static_cast<std::byte>(exponent);
    const float expected = static_cast<float>(std::ldexp(1.0, exponent - 127));
    for (const float value : decode(QuantFormat::mxfp4, block)) {
      // 2 * half of 2^128 is an infinity, as it is for the gguf package.
      ASSERT_EQ(value, exponent == 255 ? std::numeric_limits<float>::infinity() : expected) << exponent;
    }
  }
}

TEST(Codec, NotANumberStaysOne) {
  for (const QuantFormat format : kFormats) {
    if (scale_offsets(format).empty()) continue;
    std::vector<std::byte> block = unit_block(format);
    for (const std::size_t offset : scale_offsets(format)) block[offset + 1] = std::byte{0x7e};
    for (const float value : decode(format, block)) ASSERT_TRUE(std::isnan(value)) << format_info(format).name;
  }
}

/// Memory whose last byte lies directly before a page that must not be touched.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    usable_ = (bytes + page - 1) / page * page;
    total_ = usable_ + page;
    memory_ = mmap(nullptr, total_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(static_cast<std::byte*>(memory_) + usable_, page, PROT_NONE);
  }
  ~GuardedMemory() { munmap(memory_, total_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  [[nodiscard]] std::byte* last(std::size_t bytes) const { return static_cast<std::byte*>(memory_) + usable_ - bytes; }

 private:
  void* memory_ = nullptr;
  std::size_t usable_ = 0, total_ = 0;
};

TEST(Codec, TouchesNothingBeyondItsBlocks) {
  for (const QuantFormat format : kFormats) {
    const QuantFormatInfo& info = format_info(format);
    SCOPED_TRACE(info.name);
    for (const std::size_t count : {1u, 3u}) {
      const std::vector<std::byte> blocks = random_blocks(format, 5, count);
      const std::size_t value_bytes = count * info.block_elements * sizeof(float);
      const GuardedMemory source(blocks.size()), target(value_bytes);
      std::memcpy(source.last(blocks.size()), blocks.data(), blocks.size());
      auto* values = reinterpret_cast<float*>(target.last(value_bytes));
      dequantize(format, source.last(blocks.size()), values, count * info.block_elements);
      EXPECT_EQ(std::memcmp(values, decode(format, blocks).data(), value_bytes), 0);
    }
    dequantize(format, nullptr, nullptr, 0);
  }
}

TEST(Codec, RefusesWhatHasNoValues) {
  float value[32] = {};
  const std::byte bytes[34] = {};
  EXPECT_DEATH(dequantize(QuantFormat::u8, bytes, value, 1), "format u8 have no value");
  EXPECT_DEATH(dequantize(QuantFormat::q8_0, bytes, value, 31), "31 elements of q8_0 in blocks of 32");
}

}  // namespace
}  // namespace millrace
