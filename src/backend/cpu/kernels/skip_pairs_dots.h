// What dot products make of bfloat16 (products_bf16.h), from the inputs that rows keep: the same instruction, with
// pairs put together from the two inputs' weights. Included inside an anonymous namespace (see kernel_table.h), after
// skip_pairs.h.

template <int kRows, int kPanels>
inline void skip_dots_tile(const SkipTask& a, std::int64_t panel) {
  const std::int64_t inputs = (a.weight.cols + kPairBlock - 1) / kPairBlock * kPairBlock;
  const TilePlace place = tile_place(a.weight.rows, a.weight.tile, inputs, panel, 32);
  const std::byte* const w = a.weight.data + place.offset;
  PairSums<kRows, kPanels> total;
  total.zero();
  for (std::int64_t i = 0; i < a.count; i += 2) {
    const std::byte* const first = w + a.kept[i] * place.stride;
    const std::byte* const second = w + a.kept[i + 1] * place.stride;
    prefetch_input(w + a.kept[i + kSkipAhead] * place.stride, kPanels * 32);
    prefetch_input(w + a.kept[i + 1 + kSkipAhead] * place.stride, kPanels * 32);
    __m512i weight[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      weight[p] = _mm512_or_si512(widen_words(first + p * 32), _mm512_slli_epi32(widen_words(second + p * 32), 16));
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      std::int32_t pair;
      __builtin_memcpy(&pair, a.pairs + r * a.x_stride + i, sizeof pair);
      const __m512i value = _mm512_set1_epi32(pair);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
        total.of[r][p].all = _mm512_dpbf16_ps(total.of[r][p].all, (__m512bh)value, (__m512bh)weight[p]);
      }
    }
  }
  store_pairs(a, panel, total);
}

void skip_pairs_by_dots(const SkipTask& a) {
  with_pair_tiles(a, [&]<int kRows, int kPanels>(std::int64_t panel) { skip_dots_tile<kRows, kPanels>(a, panel); });
}
