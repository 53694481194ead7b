// What dot products make of bfloat16 (products_bf16.h), from the inputs that rows keep: the same instruction, with
// pairs put together from the two inputs' weights. Included inside an anonymous namespace (see kernel_table.h), after
// skip_pairs.h.

/// Pairs [first, end) of the list, in single inputs, and kPanels panels, of which input 0's weights are at w.
template <int kRows, int kPanels>
MILLRACE_INLINE void skip_dots(const SkipTask& a, const std::byte* w, std::int64_t stride, std::int64_t first,
                               std::int64_t end, std::int64_t place, SkipSums& sums) {
  Lanes sum[kRows][kPanels];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = load(sums.of[r][place + p]);
  }
  for (std::int64_t i = first; i < end; i += 2) {
    const std::byte* const lower = w + a.kept[i] * stride;
    const std::byte* const upper = w + a.kept[i + 1] * stride;
    prefetch_input(w + a.kept[i + kSkipAhead] * stride, kPanels * kPairBytes);
    prefetch_input(w + a.kept[i + 1 + kSkipAhead] * stride, kPanels * kPairBytes);
    __m512i weight[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      weight[p] = _mm512_or_si512(widen_words(lower + p * kPairBytes),
                                  _mm512_slli_epi32(widen_words(upper + p * kPairBytes), 16));
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      std::int32_t pair;
      __builtin_memcpy(&pair, a.pairs + r * a.x_stride + i, sizeof pair);
      const __m512i value = _mm512_set1_epi32(pair);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
        sum[r][p].all = _mm512_dpbf16_ps(sum[r][p].all, (__m512bh)value, (__m512bh)weight[p]);
      }
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) store(sums.of[r][place + p], sum[r][p]);
  }
}

void skip_pairs_by_dots(const SkipTask& a) {
  constexpr std::int64_t kChunk = 16;  // inputs that all panels of a tile meet before the next come
  SkipSums sums;
  with_tiles(a, [&](std::int64_t panel, std::int64_t panels) {
    const TilePlace place = pair_place(a, panel);
    sums.begin(a.rows, panels);
    with_rows(a.rows, [&]<int kRows>() {
      for (std::int64_t first = 0; first < a.count; first += kChunk) {
        const std::int64_t end = first + kChunk < a.count ? first + kChunk : a.count;
        in_steps<pair_panels(kRows)>(0, panels, [&]<int kPanels>(std::int64_t p) {
          skip_dots<kRows, kPanels>(a, a.weight.data + place.offset + p * kPairBytes, place.stride, first, end, p,
                                    sums);
        });
      }
    });
    store_skip_sums(a, panel, panels, sums);
  });
}
