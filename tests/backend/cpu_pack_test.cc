// Packing: pieces, row orders, strides, formats side by side, and what embed reads back of them.

#include <cstring>
#include <numeric>

#include "backend/cpu_test_util.h"
#include "backend/matrix_source.h"
#include "backend/reference/reference_backend.h"
#include "core/float16.h"

namespace millrace {
namespace {

/// What embed finds in the packed matrix, row by row: it must be what read_row says.
std::vector<float> embedded(Backend& backend, const PackedMatrix& table) {
  ForwardBatch batch;
  batch.token_ids.resize(static_cast<std::size_t>(table.rows()));
  std::iota(batch.token_ids.begin(), batch.token_ids.end(), 0);
  std::vector<float> out(static_cast<std::size_t>(table.rows() * table.cols()));
  backend.embed(batch, table, 1.0f, out.data());
  return out;
}

std::vector<float> stored(const MatrixSource& source) {
  std::vector<float> out(static_cast<std::size_t>(source.rows() * source.cols()));
  for (std::int64_t row = 0; row < source.rows(); ++row) read_row(source, row, out.data() + row * source.cols());
  return out;
}

/// Bytes that decode to finite numbers in every plain format: no exponent has all its bits set.
std::vector<std::byte> plain_bytes(Random& random, std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& b : bytes) b = random.byte() & std::byte{0xbb};
  return bytes;
}

/// The same shapes with nothing to read.
MatrixSource without_data(MatrixSource source) {
  for (MatrixPiece& piece : source.pieces) piece.data = nullptr;
  return source;
}

class CpuPack : public CpuLevelTest {};

TEST_P(CpuPack, PiecesOrdersAndStrides) {
  Random random(11);
  const std::vector<std::byte> data = plain_bytes(random, 1 << 16);
  const std::byte* unaligned = data.data() + 1;
  constexpr std::int64_t kCols = 64;
  MatrixSource source;
  source.pieces.push_back({QuantFormat::bf16, data.data(), 19, kCols, 0, 0, {}});
  source.pieces.push_back({QuantFormat::bf16, unaligned, 3, kCols, 2 * kCols + 6, 0, {2, 0, 5}});
  source.pieces.push_back({QuantFormat::f32, unaligned, 33, kCols, 0, 0, {}});
  // A transposed matrix: columns lie a row of it apart.
  source.pieces.push_back({QuantFormat::f32, data.data(), 7, kCols, 4, 4 * 7, {}});
  source.pieces.push_back({QuantFormat::f16, data.data(), 16, kCols, 4 * kCols, 4, {}});
  source.pieces.push_back({QuantFormat::f16, data.data(), 1, kCols, 0, 0, {}});
  for (const int threads : {1, 2}) {
    const auto backend = cpu_backend(GetParam(), threads);
    auto packed = backend->pack(source, {});
    ASSERT_TRUE(packed.ok());
    EXPECT_EQ((*packed)->rows(), source.rows());
    EXPECT_EQ((*packed)->cols(), kCols);
    EXPECT_EQ(backend->packed_bytes(without_data(source), {}), (*packed)->bytes());
    EXPECT_TRUE(identical(embedded(*backend, **packed), stored(source)));
  }
}

TEST_P(CpuPack, ProductsCrossSegments) {
  Random random(12);
  const std::vector<std::byte> data = plain_bytes(random, 1 << 16);
  const std::vector<float> weights = random.normals(50 * 96);
  const auto* bytes = reinterpret_cast<const std::byte*>(weights.data());
  MatrixSource source;  // the same rows, once as three pieces of two formats and once decoded into one
  source.pieces.push_back({QuantFormat::f32, bytes, 21, 96, 0, 0, {}});
  source.pieces.push_back({QuantFormat::q8_0, data.data(), 18, 96, 0, 0, {}});
  source.pieces.push_back({QuantFormat::f32, bytes + std::size_t{21} * 96 * 4, 29, 96, 0, 0, {}});
  // Blocks drawn at random may hold infinite scales; fix those that do.
  std::vector<std::byte> q8 = data;
  for (std::size_t block = 0; block < q8.size(); block += 34) {
    if (block + 1 < q8.size()) q8[block + 1] = std::byte{0x20};  // a scale of about 0.01, whatever the other byte
  }
  source.pieces[1].data = q8.data();
  const std::vector<float> decoded = stored(source);
  MatrixSource plain;
  plain.pieces.push_back({QuantFormat::f32, reinterpret_cast<const std::byte*>(decoded.data()), 68, 96, 0, 0, {}});

  const auto backend = cpu_backend(GetParam(), 2);
  auto mixed = backend->pack(source, {}), uniform = backend->pack(plain, {});
  ASSERT_TRUE(mixed.ok() && uniform.ok());
  const std::vector<float> bias = random.normals(68);
  for (const std::int64_t rows : {1, 7, 40}) {
    const std::vector<float> x = random.normals(rows * 96);
    std::vector<float> a(static_cast<std::size_t>(rows * 68)), b(a.size());
    backend->linear({mixed->get(), bias.data()}, x.data(), rows, a.data(), 68);
    backend->linear({uniform->get(), bias.data()}, x.data(), rows, b.data(), 68);
    EXPECT_TRUE(identical(a, b)) << rows;
  }
}

TEST_P(CpuPack, RoundsPlainWeightsForBf16Inputs) {
  Random random(13);
  const std::vector<std::byte> data = plain_bytes(random, 1 << 14);
  for (const QuantFormat format : {QuantFormat::f32, QuantFormat::f16, QuantFormat::bf16}) {
    MatrixSource source;
    source.pieces.push_back({format, data.data(), 20, 37, 0, 0, {}});
    const auto backend = cpu_backend(GetParam());
    auto packed = backend->pack(source, {DType::bf16});
    ASSERT_TRUE(packed.ok());
    std::vector<float> expected = stored(source);
    for (float& value : expected) value = round_to_bf16(value);
    EXPECT_TRUE(identical(embedded(*backend, **packed), expected)) << format_info(format).name;
    const std::size_t inputs = GetParam() >= IsaLevel::avx512_bf16 ? 64 : 37;  // of pairs in whole blocks
    EXPECT_EQ((*packed)->bytes(), 2u * 32u * inputs) << "two panels of bfloat16";
    EXPECT_EQ(backend->packed_bytes(without_data(source), {DType::bf16}), (*packed)->bytes());
  }
}

// Nothing is decoded for good: a packed weight takes what the file takes, but for the padding of the last panel.
TEST_P(CpuPack, TakesTheStoredSize) {
  const auto backend = cpu_backend(GetParam());
  for (int i = 0; i < static_cast<int>(QuantFormat::u8); ++i) {
    const auto format = static_cast<QuantFormat>(i);
    const std::vector<std::byte> zeros(format_bytes(format, std::size_t{45} * 512));
    MatrixSource source;
    source.pieces.push_back({format, zeros.data(), 45, 512, 0, 0, {}});
    for (const DType input : {DType::f32, DType::bf16}) {
      auto packed = backend->pack(source, {input});
      ASSERT_TRUE(packed.ok());
      const std::size_t rows = is_plain(format) ? 48 : 45;
      const QuantFormat kept = is_plain(format) && input == DType::bf16 ? QuantFormat::bf16 : format;
      const std::size_t expected = (format_bytes(kept, rows * 512) + 63) / 64 * 64;
      EXPECT_EQ((*packed)->bytes(), expected) << format_info(format).name;
      EXPECT_EQ(backend->packed_bytes(without_data(source), {input}), expected) << format_info(format).name;
    }
  }
}

TEST_P(CpuPack, EmbedScales) {
  Random random(14);
  const std::vector<float> weights = random.normals(40 * 30);
  MatrixSource source;
  source.pieces.push_back({QuantFormat::f32, reinterpret_cast<const std::byte*>(weights.data()), 40, 30, 0, 0, {}});
  const auto backend = cpu_backend(GetParam(), 2);
  auto table = backend->pack(source, {});
  ASSERT_TRUE(table.ok());
  ForwardBatch batch;
  batch.token_ids = {39, 0, 17, 17, 16};
  std::vector<float> out(batch.token_ids.size() * 30);
  backend->embed(batch, **table, 5.5f, out.data());
  for (std::size_t row = 0; row < batch.token_ids.size(); ++row) {
    for (std::size_t i = 0; i < 30; ++i) {
      EXPECT_EQ(out[row * 30 + i], 5.5f * weights[static_cast<std::size_t>(batch.token_ids[row]) * 30 + i]);
    }
  }
}

MILLRACE_ON_EACH_LEVEL(CpuPack);

TEST(ReferencePack, TellsItsSize) {
  const auto backend = make_reference_backend();
  const std::vector<std::byte> zeros(format_bytes(QuantFormat::q4_k, std::size_t{5} * 512));
  MatrixSource source;
  source.pieces.push_back({QuantFormat::q4_k, zeros.data(), 5, 512, 0, 0, {}});
  auto packed = backend->pack(source, {});
  ASSERT_TRUE(packed.ok());
  EXPECT_EQ((*packed)->bytes(), 5u * 512u * 4u);
  EXPECT_EQ(backend->packed_bytes(without_data(source), {}), (*packed)->bytes());
}

TEST(CpuMemory, IsZeroedAlignedAndBounded) {
  const auto backend = cpu_backend(IsaLevel::scalar);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{5} << 20}) {
    auto buffer = backend->allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(buffer->bytes, bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % 64, 0u);
    for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(buffer->data()[i], std::byte{0});
  }
  for (const std::size_t bytes : {std::size_t{1} << 50, ~std::size_t{0}, ~std::size_t{0} / 2}) {
    const auto refused = backend->allocate(bytes);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.error().message.find("GiB"), std::string::npos) << refused.error().message;
  }
}

TEST(CpuMemory, ReadsAndWrites) {
  const auto backend = cpu_backend(IsaLevel::scalar);
  auto buffer = backend->allocate(16);
  ASSERT_TRUE(buffer.ok());
  const std::vector<std::byte> in = {std::byte{1}, std::byte{2}, std::byte{3}};
  std::vector<std::byte> out(4);
  backend->write(*buffer, 13, in);
  backend->read(*buffer, 12, out);
  EXPECT_EQ(out, (std::vector<std::byte>{std::byte{0}, std::byte{1}, std::byte{2}, std::byte{3}}));
  EXPECT_DEATH(backend->write(*buffer, 14, in), "broken invariant");
}

}  // namespace
}  // namespace millrace
