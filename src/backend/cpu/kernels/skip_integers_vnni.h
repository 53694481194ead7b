// Products of codes of the inputs that rows keep, with weights that lie input by input (PackedIntegers::tile). Included
// inside an anonymous namespace (see kernel_table.h), after integers.h and integers_vnni.h for AVX-512, and
// skip_tiles.h.
//
// Four kept inputs of a group, whichever they are, are put side by side for each output, as the instruction wants them.
// Sums within a group are exact, so that they are those of the dense kernels; groups are folded as those fold them.

constexpr std::int64_t kSkipSpan = 128;  // kept inputs at a time where all inputs are one group

/// How a line of 64 bytes of an input's weights is divided.
template <CodeKind kKind>
struct SkipLine {
  static constexpr std::int64_t kPanelBytes = kKind == CodeKind::int8 ? 16 : 8;  // of an input
  static constexpr std::int64_t kPanels = 64 / kPanelBytes;
  static constexpr int kSums = kKind == CodeKind::int8 ? 4 : 8;
};

/// Asks for weights of the inputs that come next, one line after the other: memory wants them in long pieces, while the
/// products take a line of many inputs at a time.
struct SkipPrefetch {
  const std::byte* w = nullptr;  // of input 0, in the task's first panel
  std::int64_t stride = 0, bytes = 0;
  const std::int32_t* next = nullptr;
  const std::int32_t* end = nullptr;
  std::int64_t line = 0;

  MILLRACE_INLINE void ask() {
    if (next >= end) return;
    __builtin_prefetch(w + *next * stride + line, 0, 2);
    line += 64;
    if (line >= bytes) {
      line = 0;
      ++next;
    }
  }
};

/// sums[r] += the products of kept inputs [first, end) of a line. Of sum q (int8) the 128-bit lane l has outputs 4 q to
/// 4 q + 3 of panel l; of sums 2 q and 2 q + 1 (4 bits) it has outputs 4 (q % 2) to 4 (q % 2) + 3, and 8 more, of panel
/// 2 l + q / 2.
template <CodeKind kKind, int kRows>
MILLRACE_INLINE void add_line(const SkipIntegerTask& a, const std::byte* line, std::int64_t stride, std::int64_t row,
                              std::int64_t first, std::int64_t end, __mmask64 there, SkipPrefetch& ahead,
                              __m512i (&sums)[kRows][SkipLine<kKind>::kSums]) {
  const __m512i nibble = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
  const __m512i steps = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kE2m1Raised)));
  const std::int8_t* const x = a.codes + row * a.codes_stride;
  for (std::int64_t i = first; i < end; i += 4) {
    __m512i input[4];
    MILLRACE_UNROLL for (int k = 0; k < 4; ++k) {
      input[k] = _mm512_maskz_loadu_epi8(there, line + a.kept[i + k] * stride);
      ahead.ask();
    }
    const __m512i low = _mm512_unpacklo_epi8(input[0], input[1]), high = _mm512_unpackhi_epi8(input[0], input[1]);
    const __m512i more_low = _mm512_unpacklo_epi8(input[2], input[3]),
                  more_high = _mm512_unpackhi_epi8(input[2], input[3]);
    const __m512i quads[4] = {_mm512_unpacklo_epi16(low, more_low), _mm512_unpackhi_epi16(low, more_low),
                              _mm512_unpacklo_epi16(high, more_high), _mm512_unpackhi_epi16(high, more_high)};
    __m512i value[kRows];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      std::int32_t word;
      __builtin_memcpy(&word, x + r * a.codes_stride + i, sizeof word);
      value[r] = _mm512_set1_epi32(word);
    }
    MILLRACE_UNROLL for (int q = 0; q < 4; ++q) {
      if constexpr (kKind == CodeKind::int8) {
        const __m512i raised = _mm512_xor_si512(quads[q], sign);
        MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
          sums[r][q] = _mm512_dpbusd_epi32(sums[r][q], raised, value[r]);
        }
      } else {
        __m512i codes = _mm512_and_si512(quads[q], nibble);
        __m512i upper = _mm512_and_si512(_mm512_srli_epi16(quads[q], 4), nibble);
        if constexpr (kKind == CodeKind::e2m1) {
          codes = _mm512_shuffle_epi8(steps, codes);
          upper = _mm512_shuffle_epi8(steps, upper);
        }
        MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
          sums[r][2 * q] = _mm512_dpbusd_epi32(sums[r][2 * q], codes, value[r]);
          sums[r][2 * q + 1] = _mm512_dpbusd_epi32(sums[r][2 * q + 1], upper, value[r]);
        }
      }
    }
  }
}

/// panels[l] = lane l of a, b, c and d, one behind the other.
MILLRACE_INLINE void transpose_lanes(__m512i a, __m512i b, __m512i c, __m512i d, __m512i (&panels)[4]) {
  const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
  panels[0] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
  panels[1] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
  panels[2] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
  panels[3] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
}

/// The sums of a row as the panels of a line have them.
template <CodeKind kKind>
MILLRACE_INLINE void in_panels(const __m512i (&sums)[SkipLine<kKind>::kSums],
                               __m512i (&panels)[SkipLine<kKind>::kPanels]) {
  __m512i four[4];
  if constexpr (kKind == CodeKind::int8) {
    transpose_lanes(sums[0], sums[1], sums[2], sums[3], panels);
  } else {
    MILLRACE_UNROLL for (int half = 0; half < 2; ++half) {
      const int q = 4 * half;
      transpose_lanes(sums[q], sums[q + 2], sums[q + 1], sums[q + 3], four);
      MILLRACE_UNROLL for (int l = 0; l < 4; ++l) panels[2 * l + half] = four[l];
    }
  }
}

/// What rows have of a task's outputs: floats over groups, or integers where there is one group.
struct SkipTotals {
  static constexpr std::int64_t kPanels = 256;
  alignas(64) std::int32_t of[kSkipRows][kPanels][16];
};

/// Where the tile's groups have their elements: `width` panels side by side.
struct GroupPlace {
  std::int64_t first = 0, width = 0;  // panels

  /// Of a part with `count` groups for each panel.
  [[nodiscard]] std::int64_t of(std::int64_t panel, std::int64_t count, std::int64_t group) const {
    return first * count + group * width + panel - first;
  }
};

/// Folds a group into the totals of one panel, as integer_tile() does.
template <typename Tile>
MILLRACE_INLINE void fold_group(const SkipIntegerTask& a, const GroupPlace& tile, std::int64_t row, std::int64_t panel,
                                std::int64_t group, __m512i sum, std::int32_t* total) {
  const PackedIntegers& weight = a.weight;
  const std::int64_t place = tile.of(panel, weight.groups, group), first = group * weight.group;
  const std::int64_t left = weight.padded_cols - first, count = left < weight.group ? left : weight.group;
  const std::int64_t blocks = a.x.stride / kInputBlock;
  const std::int32_t* const totals = a.x.totals + row * (blocks + 1) + first / kInputBlock;
  const std::int32_t inputs = totals[count / kInputBlock] - totals[0];
  if constexpr (Tile::kKind == CodeKind::int8) {
    sum = _mm512_add_epi32(sum, _mm512_set1_epi32(-128 * inputs));
  } else if constexpr (Tile::kOffset == Offset::each) {
    const __m512i zeros = zeros_of(weight.zeros + place * 16).all;
    sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(-inputs)));
  } else if constexpr (Tile::kOffset == Offset::one) {
    sum = _mm512_add_epi32(sum, _mm512_set1_epi32(-inputs * weight.zero));
  }
  const std::int64_t super = tile.of(panel, weight.supers, group >> weight.super_shift);
  const std::int64_t input_group = first >> weight.input_shift;
  const Lanes scales = scaled_halves(weight.scales, weight.factors, super, place);
  auto* const kept = reinterpret_cast<float*>(total);
  Lanes result =
      fma(to_lanes(IntLanes{sum}), mul(scales, broadcast(a.x.scales[row * a.x.groups + input_group])), load(kept));
  if constexpr (Tile::kOffset == Offset::minimum) {
    const Lanes minimums = scaled_halves(weight.minimums, weight.minimum_factors, super, place);
    result = fma(minimums, broadcast(a.x.shifts[row * a.x.groups + input_group]), result);
  }
  store(kept, result);
}

/// Inputs [first, end) of the list, of one group, for kRows rows from `row` on and the task's panels.
template <typename Tile, int kRows>
inline void skip_span(const SkipIntegerTask& a, const std::byte* w, std::int64_t stride, std::int64_t row,
                      std::int64_t group, std::int64_t first, std::int64_t end, const GroupPlace& tile,
                      SkipPrefetch& ahead, SkipTotals& totals) {
  using Line = SkipLine<Tile::kKind>;
  const std::int64_t panels = a.end_panel - a.first_panel;
  for (std::int64_t done = 0; done < panels; done += Line::kPanels) {
    const std::int64_t count = panels - done < Line::kPanels ? panels - done : Line::kPanels;
    const std::int64_t bytes = count * Line::kPanelBytes;
    const __mmask64 there = bytes == 64 ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
    __m512i sums[kRows][Line::kSums];
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      MILLRACE_UNROLL for (int s = 0; s < Line::kSums; ++s) sums[r][s] = _mm512_setzero_si512();
    }
    add_line<Tile::kKind, kRows>(a, w + done * Line::kPanelBytes, stride, row, first, end, there, ahead, sums);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      __m512i of_panels[Line::kPanels];
      in_panels<Tile::kKind>(sums[r], of_panels);
      MILLRACE_UNROLL for (int p = 0; p < Line::kPanels; ++p) {
        if (p < count) {
          std::int32_t* const total = totals.of[row + r][done + p];
          if constexpr (Tile::kGrouped) {
            fold_group<Tile>(a, tile, row + r, a.first_panel + done + p, group, of_panels[p], total);
          } else {
            _mm512_store_si512(total, _mm512_add_epi32(_mm512_load_si512(total), of_panels[p]));
          }
        }
      }
    }
  }
}

/// The task's panels are of one tile.
template <typename Tile>
void skip_integer_panels(const SkipIntegerTask& a) {
  using Line = SkipLine<Tile::kKind>;
  const PackedIntegers& weight = a.weight;
  const TilePlace place = tile_place(weight.rows, weight.tile, weight.padded_cols, a.first_panel, Line::kPanelBytes);
  const std::byte* const w = weight.codes + place.offset;
  const std::int64_t tile_panels = weight.tile / 16;
  const GroupPlace tile{a.first_panel / tile_panels * tile_panels, place.stride / Line::kPanelBytes};
  const std::int64_t panels = a.end_panel - a.first_panel;
  const std::int32_t* const all = a.kept + a.begins[weight.groups];
  SkipPrefetch ahead{.w = w, .stride = place.stride, .bytes = panels * Line::kPanelBytes, .next = a.kept};
  SkipTotals totals;
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t p = 0; p < panels; ++p) _mm512_store_si512(totals.of[r][p], _mm512_setzero_si512());
  }
  for (std::int64_t group = 0; group < weight.groups; ++group) {
    const std::int64_t begin = a.begins[group], end_of_group = a.begins[group + 1];
    for (std::int64_t first = begin; first < end_of_group; first += kSkipSpan) {
      const std::int64_t end = end_of_group - first < kSkipSpan ? end_of_group : first + kSkipSpan;
      // As far as the next span, and never what has come already.
      const std::int32_t* const now = a.kept + end;
      ahead.end = all - now < kSkipAheadCodes ? all : now + kSkipAheadCodes;
      if (ahead.next < now) {
        ahead.next = now;
        ahead.line = 0;
      }
      std::int64_t row = 0;
      for (; row + 2 <= a.rows; row += 2)
        skip_span<Tile, 2>(a, w, place.stride, row, group, first, end, tile, ahead, totals);
      if (row < a.rows) skip_span<Tile, 1>(a, w, place.stride, row, group, first, end, tile, ahead, totals);
    }
    // A group of which nothing is kept adds nothing but its minimum, whose share of the inputs is zero as well.
  }
  const std::int64_t blocks = a.x.stride / kInputBlock;
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t p = 0; p < panels; ++p) {
      const std::int64_t panel = a.first_panel + p, left = weight.rows - panel * 16, lanes = left < 16 ? left : 16;
      Lanes total = load(reinterpret_cast<const float*>(totals.of[r][p]));
      if constexpr (!Tile::kGrouped) {
        const std::int32_t* const of_row = a.x.totals + r * (blocks + 1);
        const std::int32_t inputs = of_row[weight.padded_cols / kInputBlock] - of_row[0];
        const __m512i sum = _mm512_add_epi32(_mm512_load_si512(totals.of[r][p]), _mm512_set1_epi32(-128 * inputs));
        total = mul(mul(to_lanes(IntLanes{sum}), load(weight.row_scales + panel * 16)), broadcast(a.x.scales[r]));
      } else if (weight.row_scales != nullptr) {
        total = mul(total, load(weight.row_scales + panel * 16));
      }
      if (a.bias != nullptr) total = add(total, load_part(a.bias + panel * 16, lanes));
      store_part(a.out + r * a.out_stride + panel * 16, total, lanes);
    }
  }
}

void skip_integers(const SkipIntegerTask& a) {
  SkipIntegerTask part = a;
  for (part.first_panel = a.first_panel; part.first_panel < a.end_panel; part.first_panel = part.end_panel) {
    const std::int64_t panels = panels_of_tile(a.weight.tile, part.first_panel, a.end_panel);
    part.end_panel = part.first_panel + (panels < SkipTotals::kPanels ? panels : SkipTotals::kPanels);
    with_tile_kind(a.weight, [&](auto tile) { skip_integer_panels<decltype(tile)>(part); });
  }
}
