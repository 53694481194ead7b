// Products of bfloat16 by tiles (AMX). Included inside an anonymous namespace (see kernel_table.h), after tiles_amx.h.
//
// For 32 inputs, the instruction sums the products of those with even and those with odd indexes apart, one fused
// multiplication and addition after the other, adds the two, and adds that to the accumulator; subnormal numbers are
// zero (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS). A row's sums do not depend
// on its neighbours in a tile, and so not on the batch.

void multiply_pairs_by_tiles(const PairTask& a) {
  const PackedSegment& weight = a.weight;
  const bool e4m3 = weight.format == QuantFormat::f8_e4m3;
  const std::int64_t cols = padded_cols(weight), bytes = e4m3 ? 16 : 32;  // of an input of a panel
  const std::int64_t span = e4m3 ? kPairSpan : span_bytes(a.rows, cols * 2) / 2;
  configure_tiles(64);
  alignas(64) std::byte space[2][kPairSpan * 32];
  alignas(64) TileSums sums[kMatmulRows / kTileSide][2];
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; panel += 2) {
    const std::int64_t panels = a.end_panel - panel < 2 ? 1 : 2;
    if (a.resume) {
      for (std::int64_t p = 0; p < panels; ++p) {
        load_rows(target_of(a, panel + p), [&](std::int64_t r, Lanes sum) {
          store(reinterpret_cast<float*>(sums[r / kTileSide][p] + r % kTileSide * 64), sum);
        });
      }
      finish_stores(sums);
    }
    for (std::int64_t first = 0; first < cols; first += span) {
      const std::int64_t count = cols - first < span ? cols - first : span;
      TileProduct product{.x = reinterpret_cast<const std::byte*>(a.x + first),
                          .x_stride = a.x_stride * 2,
                          .rows = a.rows,
                          .next_bytes = e4m3 ? 32 : 64,
                          .bytes = count * 2,
                          .depth = 64,
                          .begin = first == 0 && !a.resume,
                          .sums = sums};
      for (std::int64_t p = 0; p < panels; ++p) {
        const std::byte* const stored = weight.data + ((panel + p) * cols + first) * bytes;
        product.next[p] = stored + (e4m3 ? count * bytes : kAhead);
        product.w[p] = e4m3 ? space[p] : stored;
        if (!e4m3) continue;
        for (std::int64_t k = 0; k < count; k += 4) pair_up_e4m3(stored + k * bytes, space[p] + k * 32);
      }
      finish_stores(space);
      multiply_tiles<false>(product, panels);
    }
    for (std::int64_t p = 0; p < panels; ++p) {
      const auto sum = [&](std::int64_t r) { return load(reinterpret_cast<const float*>(line_of(sums, p, r))); };
      if (weight.row_scales == nullptr) {
        store_rows(target_of(a, panel + p), sum);
        continue;
      }
      const Lanes scales = load(weight.row_scales + (panel + p) * 16);
      store_rows(target_of(a, panel + p),
                 [&](std::int64_t r) { return mul(sum(r), mul(scales, broadcast(a.x_scales[r]))); });
    }
  }
  _tile_release();
}

/// For the measure of what is possible (limits.h): rounds of four products, together `operations`.
template <typename Multiply>
inline std::int64_t multiply_add_by_tiles(std::int64_t rounds, std::int64_t operations, float* sink,
                                          Multiply&& multiply) {
  configure_tiles(64);
  alignas(64) std::int32_t values[16][16] = {};
  finish_stores(values);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values, 64);
  _tile_loadd(6, values, 64);
  _tile_loadd(7, values, 64);
  for (std::int64_t round = 0; round < rounds; ++round) multiply();
  _tile_stored(0, values, 64);
  _tile_release();
  *sink = static_cast<float>(values[0][0]);
  return rounds * operations;
}

std::int64_t multiply_add_bytes_by_tiles(std::int64_t rounds, float* sink) {
  return multiply_add_by_tiles(rounds, 4 * 16 * 16 * 64 * 2, sink, [] {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  });
}

std::int64_t multiply_add_pairs(std::int64_t rounds, float* sink) {
  return multiply_add_by_tiles(rounds, 4 * 16 * 16 * 32 * 2, sink, [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  });
}
