// What tiles make of bfloat16 (products_amx.h), from the inputs that rows keep. Included inside an anonymous namespace
// (see kernel_table.h), after skip_pairs.h.
//
// Of 32 inputs those with even and those with odd indexes have a sum each, in single precision and in order; the two
// are added, and then added to the row's. Numbers below the normal ones count as zero, of inputs, of weights and of
// sums.

/// sums += the products of inputs [first, end) of the list.
template <int kRows, int kPanels>
MILLRACE_INLINE void add_kept(const SkipTask& a, const std::byte* w, std::int64_t stride, std::int64_t first,
                              std::int64_t end, Lanes (&sums)[kRows][kPanels]) {
  for (std::int64_t i = first; i < end; ++i) {
    const std::byte* const now = w + a.kept[i] * stride;
    prefetch_input(w + a.kept[i + kSkipAhead] * stride, kPanels * kPairBytes);
    Lanes weight[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      weight[p].all = _mm512_castsi512_ps(_mm512_slli_epi32(widen_words(now + p * kPairBytes), 16));
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const Lanes value = broadcast(a.x[r * a.x_stride + i]);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sums[r][p] = fma(value, weight[p], sums[r][p]);
    }
  }
}

/// A block of inputs and kPanels panels, of which input 0's weights are at w.
template <int kRows, int kPanels>
MILLRACE_INLINE void skip_block(const SkipTask& a, const std::byte* w, std::int64_t stride, const std::int32_t* begins,
                                std::int64_t place, SkipSums& sums) {
  Lanes even[kRows][kPanels], odd[kRows][kPanels];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) even[r][p] = odd[r][p] = broadcast(0.0f);
  }
  add_kept<kRows, kPanels>(a, w, stride, begins[0], begins[1], even);
  add_kept<kRows, kPanels>(a, w, stride, begins[1], begins[2], odd);
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      float* const total = sums.of[r][place + p];
      store(total, add(load(total), add(even[r][p], odd[r][p])));
    }
  }
}

__attribute__((noinline)) void add_blocks(const SkipTask& a, std::int64_t panel, std::int64_t panels, SkipSums& sums) {
  const TilePlace place = pair_place(a, panel);
  const std::int64_t blocks = (a.weight.cols + kPairBlock - 1) / kPairBlock;
  with_rows(a.rows, [&]<int kRows>() {
    for (std::int64_t block = 0; block < blocks; ++block) {
      in_steps<pair_panels(kRows)>(0, panels, [&]<int kPanels>(std::int64_t p) {
        skip_block<kRows, kPanels>(a, a.weight.data + place.offset + p * kPairBytes, place.stride, a.begins + 2 * block,
                                   p, sums);
      });
    }
  });
}

void skip_pairs_as_tiles(const SkipTask& a) {
  constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  SkipSums sums;
  with_tiles(a, [&](std::int64_t panel, std::int64_t panels) {
    sums.begin(a.rows, panels);
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | kFlushToZero | kDenormalsAreZero);
    add_blocks(a, panel, panels, sums);
    _mm_setcsr(before);
    // The bias is added as the dense kernel adds it: with numbers below the normal ones.
    store_skip_sums(a, panel, panels, sums);
  });
}
