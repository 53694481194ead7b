// What the CUDA backend does on the host: how weights are laid out and encoded, and the tables of a step. Needs nvcc's
// headers, no device.

#include <algorithm>
#include <numeric>
#include <set>

#include "backend/cpu_test_util.h"
#include "backend/cuda/batch_tables.h"
#include "backend/cuda/cuda_matrix.h"
#include "core/float16.h"
#include "quant/codes.h"
#include "quant/small_float.h"

namespace millrace::cuda {
namespace {

constexpr Storage kStorages[] = {Storage::rows_f32, Storage::rows_f16, Storage::bf16, Storage::int8,
                                 Storage::int4,     Storage::e2m1,     Storage::e4m3};

TEST(CudaLayout, EveryEightHasItsOwnPlace) {
  for (const Storage storage : kStorages) {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {16, 64}, {17, 65}, {40, 200}}) {
      const std::int64_t bytes = weight_bytes(storage, rows, cols), each = eight_bytes(storage);
      std::set<std::int64_t> places;
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t eight = 0; eight * 8 < cols; ++eight) {
          const std::int64_t at = eight_offset(storage, cols, row, eight);
          EXPECT_EQ(at % each, 0);
          EXPECT_LE(at + each, bytes);
          EXPECT_TRUE(places.insert(at).second) << static_cast<int>(storage) << ": " << row << ", " << eight;
        }
      }
    }
  }
}

TEST(CudaLayout, PartsAreWholeGroupsAndCoverAll) {
  for (const std::int32_t group : {0, 16, 32, 64, 128, 256}) {
    for (const std::int64_t cols : {1, 64, 192, 1100, 4096, 14336}) {
      const std::int64_t spans = part_spans(cols, group);
      EXPECT_GE(spans * kParts * kSpanCols, cols);
      if (group > 0) {
        EXPECT_EQ(spans * kSpanCols % group, 0);
      }
    }
  }
}

/// What the kernels read of an encoded tile, as decode.cuh has it.
float decoded(const SegmentPlan& plan, std::int64_t cols, std::int64_t row, std::int64_t col, const std::byte* tile) {
  const SegmentParts parts = segment_parts(plan, cols);
  const std::byte* at = tile + eight_offset(plan.storage, cols, row, col / 8);
  const auto i = static_cast<std::int32_t>(col % 8);
  const auto load = [](const std::byte* from, auto value) {
    std::memcpy(&value, from, sizeof value);
    return value;
  };
  if (plan.storage == Storage::rows_f32) return load(at + i * 4, 0.0f);
  if (plan.storage == Storage::rows_f16) return f16_to_float(load(at + i * 2, std::uint16_t{}));
  if (plan.storage == Storage::bf16) return bf16_to_float(load(at + i * 2, std::uint16_t{}));
  const std::int64_t groups = plan.groups(cols);
  const auto index = static_cast<std::size_t>(group_index(groups, row, plan.group == 0 ? 0 : col / plan.group));
  const float scale = plan.half_scales ? f16_to_float(load(tile + parts.scales + index * 2, std::uint16_t{}))
                                       : load(tile + parts.scales + index * 4, 0.0f);
  const float row_scale =
      plan.row_scales ? load(tile + parts.row_scales + static_cast<std::size_t>(row) * 4, 0.0f) : 1.0f;
  const auto zero = plan.zeros ? std::to_integer<int>(tile[parts.zeros + index]) - plan.zero_bias : 0;
  if (plan.storage == Storage::e4m3) {
    return e4m3_to_float(std::to_integer<std::uint8_t>(at[i])) * scale * row_scale;
  }
  if (plan.storage == Storage::int8) {
    return static_cast<float>(std::to_integer<std::int8_t>(at[i]) - zero) * scale * row_scale;
  }
  const std::uint32_t code = load(at, std::uint32_t{}) >> code_bit(plan.storage, i) & 15u;
  const int step = plan.storage == Storage::e2m1 ? kE2m1Steps[code] : static_cast<int>(code) - zero;
  return static_cast<float>(step) * scale * row_scale;
}

TEST(CudaMatrixPlan, TilesHoldWhatTheCodecSays) {
  Random random(41);
  for (const char* name : {"", "int8", "int4.g32", "int4.g64.sym", "int4", "nvfp4", "mxfp4", "fp8_e4m3"}) {
    const LinearFormat format{.codes = code_format_from_name(name)};
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {16, 64}, {37, 200}}) {
      const std::vector<float> weights = random.normals(rows * cols);
      const MatrixSource source = source_of(weights, rows, cols);
      const std::vector<SegmentPlan> plans = plan_segments(source, format);
      ASSERT_EQ(plans.size(), 1u);
      const TileEncoder encoder{&source, format, plans.front()};
      const SegmentPlan tile_plan = encoder.tile_plan(0);
      std::vector<std::byte> tile(segment_parts(tile_plan, cols).bytes, std::byte{0x5a});
      for (std::int64_t t = 0; t * kTileRows < rows; ++t) {
        ASSERT_TRUE(encoder.encode(t, tile.data()).ok());
        for (std::int64_t r = 0; r < kTileRows && t * kTileRows + r < rows; ++r) {
          std::vector<float> expected(weights.begin() + (t * kTileRows + r) * cols,
                                      weights.begin() + (t * kTileRows + r + 1) * cols);
          if (format.codes) {
            const auto groups = static_cast<std::size_t>(format.codes->groups(cols));
            std::vector<std::int8_t> codes(static_cast<std::size_t>(cols));
            std::vector<float> scales(groups);
            std::vector<std::uint8_t> zeros(groups);
            float row_scale = 1.0f;
            quantize_row(*format.codes, expected.data(), cols, {codes.data(), scales.data(), zeros.data(), &row_scale});
            for (std::size_t k = 0; k < expected.size(); ++k) {
              const std::size_t g = format.codes->group == 0 ? 0 : k / static_cast<std::size_t>(format.codes->group);
              expected[k] = step_of_code(format.codes->kind, codes[k], zeros[g]) * scales[g] * row_scale;
            }
          }
          for (std::int64_t k = 0; k < cols; ++k) {
            EXPECT_FLOAT_EQ(decoded(tile_plan, cols, r, k, tile.data()), expected[static_cast<std::size_t>(k)])
                << name << ' ' << t << ' ' << r << ' ' << k;
          }
        }
      }
    }
  }
}

TEST(CudaMatrixPlan, PiecesStoredAlikeAreOneSegment) {
  const std::vector<float> values(std::size_t{40} * 32);
  const std::vector<std::uint16_t> halves(std::size_t{40} * 32);
  MatrixSource source = source_of(values, 20, 32);
  source.pieces.push_back(source.pieces.front());
  source.pieces.push_back(
      {.format = QuantFormat::f16, .data = reinterpret_cast<const std::byte*>(halves.data()), .rows = 20, .cols = 32});
  const std::vector<SegmentPlan> exact = plan_segments(source, {}), rounded = plan_segments(source, {DType::bf16});
  ASSERT_EQ(exact.size(), 2u);
  EXPECT_EQ(exact[0].rows, 40);
  EXPECT_EQ(exact[1].first_row, 40);
  EXPECT_EQ(exact[1].storage, Storage::rows_f16);
  ASSERT_EQ(rounded.size(), 1u);
  EXPECT_EQ(rounded[0].storage, Storage::bf16);
  EXPECT_EQ(rounded[0].rows, 60);
}

TEST(CudaTables, SayWhatTheBatchSays) {
  const std::vector<std::int32_t> first = {5, 6, 7}, second = {9}, other = {1, 2};
  ForwardBatch batch;
  const auto add = [&](std::int32_t rows, std::int64_t position, std::vector<std::span<const std::int32_t>> tables) {
    batch.sequences.push_back({.first_row = static_cast<std::int32_t>(batch.rows()),
                               .rows = rows,
                               .first_position = position,
                               .page_tables = std::move(tables)});
    for (std::int32_t r = 0; r < rows; ++r) {
      batch.token_ids.push_back(100 + static_cast<std::int32_t>(batch.rows()));
      batch.positions.push_back(position + r);
    }
  };
  add(300, 17, {first, other});
  add(1, 3, {second, second});
  batch.logit_rows = {299, 300};

  BatchTables tables;
  tables.make(batch);
  EXPECT_LE(tables.words().size_bytes(), tables.capacity_bytes());
  EXPECT_FALSE(tables.decodes());
  EXPECT_EQ(tables.last_position(), 316);
  const std::int32_t* start = tables.words().data();
  const BatchView view = tables.view(start);
  EXPECT_EQ(view.rows, 301);
  EXPECT_EQ(view.token_ids[300], 400);
  EXPECT_EQ(view.row_sequence[299], 0);
  EXPECT_EQ(view.row_sequence[300], 1);
  EXPECT_EQ(view.row_position[299], 316);
  EXPECT_EQ(view.row_position[300], 3);
  EXPECT_EQ(view.page_tables[view.table_offsets[0] + 2], 7);
  EXPECT_EQ(view.page_tables[view.table_offsets[1]], 9);
  EXPECT_EQ(view.page_tables[view.table_offsets[view.sequences] + 1], 2);
  EXPECT_TRUE(tables.are_logit_rows(batch.logit_rows));
  EXPECT_FALSE(tables.are_logit_rows(std::vector<std::int32_t>{299}));

  // The sequence with one row first, then the other's rows in order, none left out.
  ASSERT_EQ(tables.single_tiles(), 1);
  const AttendTile* tiles = tables.tiles(start);
  EXPECT_EQ(tiles[0].first_row, 300);
  EXPECT_EQ(tiles[0].first_position, 3);
  std::int32_t row = 0;
  for (std::int32_t t = 1; t < tables.tile_count(); ++t) {
    EXPECT_EQ(tiles[t].sequence, 0);
    EXPECT_EQ(tiles[t].first_row, row);
    EXPECT_EQ(tiles[t].first_position, 17 + row);
    EXPECT_LE(tiles[t].rows, BatchTables::kTileRowsMost);
    row += tiles[t].rows;
  }
  EXPECT_EQ(row, 300);
}

TEST(CudaTables, StepsOfOneShapeHaveTheirTablesInThePlacesOfTheLast) {
  BatchTables tables;
  std::vector<std::int32_t> pages(3);
  ForwardBatch batch;
  batch.token_ids = {1};
  batch.positions = {40};
  batch.sequences.push_back({.first_row = 0, .rows = 1, .first_position = 40, .page_tables = {pages}});
  tables.make(batch);
  EXPECT_TRUE(tables.decodes());
  const auto* none = static_cast<const std::int32_t*>(nullptr);
  const BatchView before = tables.view(none);
  const AttendTile* tiles_before = tables.tiles(none);
  pages.resize(200);
  batch.sequences[0].first_position = 3000;
  batch.sequences[0].page_tables = {pages};
  tables.make(batch);
  const BatchView after = tables.view(none);
  EXPECT_EQ(after.row_position, before.row_position);
  EXPECT_EQ(after.page_tables, before.page_tables);
  EXPECT_EQ(tables.tiles(none), tiles_before);
}

}  // namespace
}  // namespace millrace::cuda
