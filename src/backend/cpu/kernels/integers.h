// Matrix products of integer weights and 8-bit inputs. Included inside an anonymous namespace (see kernel_table.h).
//
// Sums within a group are exact, so how they are cut does not matter; groups follow each other in one float accumulator
// for each output, whatever the tile or the task. IntegerTask says in which order what is rounded.

/// Sixteen halves, times small integers where there are some.
inline Lanes scaled_halves(const std::uint16_t* halves, const std::int8_t* factors, std::int64_t super,
                           std::int64_t group) {
  const Lanes scales = load(reinterpret_cast<const Half*>(halves) + super * 16);
  return factors != nullptr ? mul(scales, load(factors + group * 16)) : scales;
}

/// What is taken off codes, or added: nothing, one zero, a zero of each output and group, or a minimum of each.
enum class Offset { none, one, each, minimum };

/// What a tile is made of, known to the compiler.
template <CodeKind kKindOf, Offset kOffsetOf, bool kGroupedOf = true>
struct TileKind {
  static constexpr CodeKind kKind = kKindOf;
  static constexpr Offset kOffset = kOffsetOf;
  static constexpr bool kGrouped = kGroupedOf;
  static constexpr std::int64_t kInputBytes = kKind == CodeKind::int8 ? 16 : 8;  // of a panel
};

/// Sums of a group's products, less the zeros.
template <typename Tile, int kRows>
MILLRACE_INLINE void multiply_group_of(const PackedIntegers& weight, std::int64_t place, const std::byte* codes,
                                       const InputBlocks<kRows>& inputs, IntLanes (&sums)[kRows]) {
  if constexpr (Tile::kOffset == Offset::each) {
    multiply_group<kRows, Tile::kKind>(codes, inputs, zeros_of(weight.zeros + place * 16), sums);
  } else if constexpr (Tile::kOffset == Offset::one) {
    multiply_group<kRows, Tile::kKind>(codes, inputs, zeros_of(weight.zero), sums);
  } else {
    multiply_group<kRows, Tile::kKind>(codes, inputs, sums);
  }
}

/// Sums of a row and a panel, scaled, to where they belong.
MILLRACE_INLINE void store_sums(const IntegerTask& a, std::int64_t row, std::int64_t panel, Lanes sums) {
  const std::int64_t left = a.weight.rows - panel * 16, lanes = left < 16 ? left : 16;
  if (a.bias != nullptr) sums = add(sums, load_part(a.bias + panel * 16, lanes));
  store_part(a.out + row * a.out_stride + panel * 16, sums, lanes);
}
/// Where weights have scales for groups: the groups' sum.
MILLRACE_INLINE void store_grouped(const IntegerTask& a, std::int64_t row, std::int64_t panel, Lanes total) {
  if (a.weight.row_scales != nullptr) total = mul(total, load(a.weight.row_scales + panel * 16));
  store_sums(a, row, panel, total);
}
/// Where they have scales for outputs alone: the sum with those.
MILLRACE_INLINE void store_whole(const IntegerTask& a, std::int64_t row, std::int64_t panel, Lanes total) {
  store_sums(a, row, panel, mul(total, broadcast(a.x.scales[row])));
}

template <typename Tile, int kRows>
inline void integer_tile(const IntegerTask& a, std::int64_t row, std::int64_t panel) {
  const PackedIntegers weight = a.weight;  // a copy, which no store can change
  const std::int64_t stride = a.x.stride, sums_stride = stride / kInputBlock, x_groups = a.x.groups;
  const std::byte* const codes = weight.codes + panel * weight.padded_cols * Tile::kInputBytes;
  const std::int8_t* const x = a.x.codes + row * stride;
  const std::int32_t* const input_sums = a.x.sums + row * sums_stride;
  const std::int32_t* const input_totals = a.x.totals + row * (sums_stride + 1);
  const float* const x_scales = a.x.scales + row * x_groups;
  Lanes total[kRows];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = broadcast(0.0f);
  for (std::int64_t group = 0, first = 0; group < weight.groups; ++group, first += weight.group) {
    const std::int64_t left = weight.padded_cols - first, count = left < weight.group ? left : weight.group;
    const std::int64_t place = panel * weight.groups + group;
    const InputBlocks<kRows> inputs{
        x + first,       stride, input_sums + first / kInputBlock, sums_stride, input_totals + first / kInputBlock,
        sums_stride + 1, count};
    IntLanes sums[kRows];
    multiply_group_of<Tile, kRows>(weight, place, codes + first * Tile::kInputBytes, inputs, sums);
    if constexpr (!Tile::kGrouped) {
      const Lanes scales = load(weight.row_scales + panel * 16);
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) total[r] = mul(to_lanes(sums[r]), scales);
      continue;
    }
    const std::int64_t super = panel * weight.supers + (group >> weight.super_shift);
    const Lanes scales = scaled_halves(weight.scales, weight.factors, super, place);
    const std::int64_t input_group = first >> weight.input_shift;
    const float* const now = x_scales + input_group;
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      total[r] = fma(to_lanes(sums[r]), mul(scales, broadcast(now[r * x_groups])), total[r]);
    }
    if constexpr (Tile::kOffset == Offset::minimum) {
      const Lanes minimums = scaled_halves(weight.minimums, weight.minimum_factors, super, place);
      const float* const shifts = a.x.shifts + row * x_groups + input_group;
      MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
        total[r] = fma(minimums, broadcast(shifts[r * x_groups]), total[r]);
      }
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    if constexpr (Tile::kGrouped) {
      store_grouped(a, row + r, panel, total[r]);
    } else {
      store_whole(a, row + r, panel, total[r]);
    }
  }
}

/// `rows` of at most kRows rows.
template <typename Tile, int kRows>
inline void integer_rows(const IntegerTask& a, std::int64_t row, std::int64_t rows, std::int64_t panel) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return integer_tile<Tile, kRows>(a, row, panel);
    integer_rows<Tile, kRows - 1>(a, row, rows, panel);
  }
}

/// A panel, which the second-level cache holds, meets all rows in turn, in tiles of about equal height.
template <typename Tile>
void multiply_panels(const IntegerTask& a) {
  const std::int64_t tiles = (a.rows + kIntegerTileRows - 1) / kIntegerTileRows;
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    for (std::int64_t tile = 0, row = 0; tile < tiles; ++tile) {
      const std::int64_t rows = a.rows / tiles + (tile < a.rows % tiles ? 1 : 0);
      integer_rows<Tile, kIntegerTileRows>(a, row, rows, panel);
      row += rows;
    }
  }
}

/// Calls run(TileKind). Products with codes of inputs are of these kinds only: 8-bit weights with zeros take floats
/// (packed_matrix.cc).
template <typename Run>
inline void with_tile_kind(const PackedIntegers& weight, Run&& run) {
  const bool minimums = weight.minimums != nullptr;
  if (weight.kind == CodeKind::e2m1) {
    run(TileKind<CodeKind::e2m1, Offset::one>{});
  } else if (weight.kind == CodeKind::int4 && minimums) {
    run(TileKind<CodeKind::int4, Offset::minimum>{});
  } else if (weight.kind == CodeKind::int4 && weight.zeros != nullptr) {
    run(TileKind<CodeKind::int4, Offset::each>{});
  } else if (weight.kind == CodeKind::int4) {
    run(TileKind<CodeKind::int4, Offset::one>{});
  } else if (weight.scales == nullptr) {
    run(TileKind<CodeKind::int8, Offset::none, false>{});
  } else if (minimums) {
    run(TileKind<CodeKind::int8, Offset::minimum>{});
  } else {
    run(TileKind<CodeKind::int8, Offset::none>{});
  }
}

void multiply_integers(const IntegerTask& a) {
  with_tile_kind(a.weight, [&](auto tile) { multiply_panels<decltype(tile)>(a); });
}
