// Products of codes in tiles (tiles_amx.h), for more than a few rows. Included inside an anonymous namespace (see
// kernel_table.h), after integers.h, whose sums and roundings these are to the bit.

/// Below this, instructions of one row cost less than tiles that are mostly padding.
constexpr std::int64_t kFewRows = 6;
/// Inputs of a panel that are unpacked at a time, and of which the first-level cache holds all.
constexpr std::int64_t kSpan = 512;

/// Weights with a scale for each output alone.
void multiply_whole(const IntegerTask& a) {
  const std::int64_t cols = a.weight.padded_cols, depth = cols % 64 == 0 ? 64 : 32, span = span_bytes(a.rows, cols);
  configure_tiles(depth);
  alignas(64) TileSums sums[kMatmulRows / kTileSide][2];
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; panel += 2) {
    const std::int64_t panels = a.end_panel - panel < 2 ? 1 : 2;
    const std::byte* const w = a.weight.codes + panel * cols * 16;
    for (std::int64_t first = 0; first < cols; first += span) {
      multiply_tiles<true>({.x = reinterpret_cast<const std::byte*>(a.x.codes) + first,
                            .x_stride = a.x.stride,
                            .rows = a.rows,
                            .w = {w + first * 16, w + (cols + first) * 16},
                            .next = {w + first * 16 + kAhead, w + (cols + first) * 16 + kAhead},
                            .bytes = cols - first < span ? cols - first : span,
                            .depth = depth,
                            .begin = first == 0,
                            .sums = sums},
                           panels);
    }
    for (std::int64_t p = 0; p < panels; ++p) {
      const Lanes scales = load(a.weight.row_scales + (panel + p) * 16);
      store_rows(target_of(a, panel + p), [&](std::int64_t r) {
        const IntLanes sum{_mm512_load_si512(line_of(sums, p, r))};
        return mul(mul(to_lanes(sum), scales), broadcast(a.x.scales[r]));
      });
    }
  }
  _tile_release();
}

/// The zero of each output in all four bytes of its lane.
inline __m512i zero_bytes(__m512i zeros) {
  return _mm512_mullo_epi32(zeros, _mm512_set1_epi32(0x01010101));
}

/// A group's part of a panel, as signed bytes less their zeros: where it is, or in `space`.
template <typename Tile>
inline const std::byte* signed_group(const PackedIntegers& weight, std::int64_t place, const std::byte* codes,
                                     std::int64_t count, std::byte* space) {
  if constexpr (Tile::kKind == CodeKind::int8) return codes;
  __m512i zeros = _mm512_setzero_si512();
  if constexpr (Tile::kOffset == Offset::one) zeros = zero_bytes(zeros_of(weight.zero).all);
  if constexpr (Tile::kOffset == Offset::each) zeros = zero_bytes(zeros_of(weight.zeros + place * 16).all);
  for (std::int64_t quad = 0; quad < count / 4; ++quad) {
    _mm512_store_si512(space + quad * 64, _mm512_sub_epi8(raised_codes<Tile::kKind>(codes + quad * 32).all, zeros));
  }
  return space;
}

/// Groups of a panel that are multiplied together.
struct GroupSpan {
  std::int64_t first = 0, count = 0;  // inputs
  std::int64_t depth = 0;             // of configure_tiles()
  const std::byte* next = nullptr;    // codes that are needed after these
  const std::byte* codes[kSpan / kInputBlock];
  alignas(64) float scales[kSpan / kInputBlock][16];
  alignas(64) float minimums[kSpan / kInputBlock][16];
};

/// They meet a tile of rows, the first of which asks for the next codes on the way, a group's share with each group.
/// What is computed of rows that do not exist is of no meaning.
template <typename Tile>
inline void multiply_span(const IntegerTask& a, const GroupSpan& span, std::int64_t row, float (*totals)[16]) {
  const PackedIntegers& weight = a.weight;
  alignas(64) TileSums sums[2];
  const std::int64_t stride = a.x.stride, depth = span.depth, group_size = weight.group;
  const std::int32_t input_shift = weight.input_shift;
  const std::int8_t* const x = a.x.codes + row * stride + span.first;
  const float* const x_scales = a.x.tile_scales + row * a.x.groups;  // [groups][16]
  const float* const x_shifts = a.x.tile_shifts + row * a.x.groups;
  Lanes total[kTileSide];
  MILLRACE_UNROLL for (int r = 0; r < kTileSide; ++r) total[r] = load(totals[r]);
  for (std::int64_t done = 0, group = 0; done < span.count; done += group_size, ++group) {
    const std::int64_t left = span.count - done, size = left < group_size ? left : group_size;
    const std::byte* const codes = span.codes[group];
    if (row == 0) {
      for (std::int64_t i = 0; i < size; i += 64 / Tile::kInputBytes) {
        __builtin_prefetch(span.next + (done + i) * Tile::kInputBytes);
      }
    }
    // By turns, so that the products of a group need not wait until the last one's sums are taken.
    TileSums& now = sums[group % 2];
    if (group % 2 == 0) {
      _tile_zero(0);
      for (std::int64_t k = 0; k < size; k += depth) {
        _tile_loadd(4, x + done + k, stride);
        _tile_loadd(6, codes + k * 16, 64);
        _tile_dpbssd(0, 4, 6);
      }
      _tile_stored(0, now, 64);
    } else {
      _tile_zero(1);
      for (std::int64_t k = 0; k < size; k += depth) {
        _tile_loadd(5, x + done + k, stride);
        _tile_loadd(7, codes + k * 16, 64);
        _tile_dpbssd(1, 5, 7);
      }
      _tile_stored(1, now, 64);
    }
    const Lanes scales = load(span.scales[group]);
    const std::int64_t place = ((span.first + done) >> input_shift) * 16;
    MILLRACE_UNROLL for (int r = 0; r < kTileSide; ++r) {
      const IntLanes sum{_mm512_load_si512(now + r * 64)};
      total[r] = fma(to_lanes(sum), mul(scales, broadcast(x_scales[place + r])), total[r]);
      keep_in_register(total[r]);
    }
    if constexpr (Tile::kOffset == Offset::minimum) {
      const Lanes minimums = load(span.minimums[group]);
      MILLRACE_UNROLL for (int r = 0; r < kTileSide; ++r) {
        total[r] = fma(minimums, broadcast(x_shifts[place + r]), total[r]);
        keep_in_register(total[r]);
      }
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kTileSide; ++r) store(totals[r], total[r]);
}

/// Weights with scales for groups of inputs, of which at most kSpan share one.
template <typename Tile>
void multiply_grouped(const IntegerTask& a) {
  const PackedIntegers weight = a.weight;
  const std::int64_t cols = weight.padded_cols, step = kSpan / weight.group * weight.group;
  GroupSpan span;
  span.depth = weight.group % 64 == 0 && cols % 64 == 0 ? 64 : weight.group % 32 == 0 ? 32 : 16;
  configure_tiles(span.depth);
  alignas(64) std::byte space[kSpan * 16];
  alignas(64) float totals[kMatmulRows][16];
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    for (auto& total : totals) store(total, broadcast(0.0f));
    for (span.first = 0; span.first < cols; span.first += step) {
      span.count = cols - span.first < step ? cols - span.first : step;
      const std::byte* const codes = weight.codes + (panel * cols + span.first) * Tile::kInputBytes;
      span.next = codes + span.count * Tile::kInputBytes;
      for (std::int64_t done = 0, i = 0; done < span.count; done += weight.group, ++i) {
        const std::int64_t left = span.count - done, group = (span.first + done) / weight.group;
        const std::int64_t size = left < weight.group ? left : weight.group, place = panel * weight.groups + group;
        const std::int64_t super = panel * weight.supers + (group >> weight.super_shift);
        span.codes[i] = signed_group<Tile>(weight, place, codes + done * Tile::kInputBytes, size, space + done * 16);
        store(span.scales[i], scaled_halves(weight.scales, weight.factors, super, place));
        if constexpr (Tile::kOffset == Offset::minimum) {
          store(span.minimums[i], scaled_halves(weight.minimums, weight.minimum_factors, super, place));
        }
      }
      finish_stores(space);
      for (std::int64_t row = 0; row < a.rows; row += kTileSide) multiply_span<Tile>(a, span, row, totals + row);
    }
    if (weight.row_scales != nullptr) {
      const Lanes scales = load(weight.row_scales + panel * 16);
      store_rows(target_of(a, panel), [&](std::int64_t r) { return mul(load(totals[r]), scales); });
    } else {
      store_rows(target_of(a, panel), [&](std::int64_t r) { return load(totals[r]); });
    }
  }
  _tile_release();
}

void multiply_integers_by_tiles(const IntegerTask& a) {
  if (a.rows < kFewRows || (a.weight.scales != nullptr && a.weight.group > kSpan)) return multiply_integers(a);
  with_tile_kind(a.weight, [&](auto tile) {
    using Tile = decltype(tile);
    if constexpr (Tile::kGrouped) {
      multiply_grouped<Tile>(a);
    } else {
      multiply_whole(a);
    }
  });
}
