// What tiles make of bfloat16 (products_amx.h), from the inputs that rows keep. Included inside an anonymous namespace
// (see kernel_table.h), after skip_pairs.h.
//
// Of 32 inputs those with even and those with odd indexes have a sum each, in single precision and in order; the two
// are added, and then added to the row's. Numbers below the normal ones count as zero, of inputs, of weights and of
// sums.

template <int kRows, int kPanels>
inline void add_kept(const SkipTask& a, const std::byte* w, std::int64_t stride, std::int64_t first, std::int64_t end,
                     PairSums<kRows, kPanels>& sums) {
  for (std::int64_t i = first; i < end; ++i) {
    const std::byte* const now = w + a.kept[i] * stride;
    prefetch_input(w + a.kept[i + kSkipAhead] * stride, kPanels * 32);
    Lanes weight[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
      weight[p].all = _mm512_castsi512_ps(_mm512_slli_epi32(widen_words(now + p * 32), 16));
    }
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const Lanes value = broadcast(a.x[r * a.x_stride + i]);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sums.of[r][p] = fma(value, weight[p], sums.of[r][p]);
    }
  }
}

template <int kRows, int kPanels>
inline void skip_pairs_tile(const SkipTask& a, std::int64_t panel) {
  const std::int64_t blocks = (a.weight.cols + kPairBlock - 1) / kPairBlock;
  const TilePlace place = tile_place(a.weight.rows, a.weight.tile, blocks * kPairBlock, panel, 32);
  const std::byte* const w = a.weight.data + place.offset;
  PairSums<kRows, kPanels> total, even, odd;
  total.zero();
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int32_t* const begins = a.begins + 2 * block;
    even.zero();
    odd.zero();
    add_kept<kRows, kPanels>(a, w, place.stride, begins[0], begins[1], even);
    add_kept<kRows, kPanels>(a, w, place.stride, begins[1], begins[2], odd);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
        total.of[r][p] = add(total.of[r][p], add(even.of[r][p], odd.of[r][p]));
      }
    }
  }
  store_pairs(a, panel, total);
}

__attribute__((noinline)) void skip_pairs_flushing(const SkipTask& a) {
  with_pair_tiles(a, [&]<int kRows, int kPanels>(std::int64_t panel) { skip_pairs_tile<kRows, kPanels>(a, panel); });
}

/// The bias is added as the dense kernel adds it: with numbers below the normal ones.
void skip_pairs_as_tiles(const SkipTask& a) {
  constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  const unsigned before = _mm_getcsr();
  SkipTask plain = a;
  plain.bias = nullptr;
  _mm_setcsr(before | kFlushToZero | kDenormalsAreZero);
  skip_pairs_flushing(plain);
  _mm_setcsr(before);
  if (a.bias == nullptr) return;
  for (std::int64_t panel = a.first_panel; panel < a.end_panel; ++panel) {
    const std::int64_t left = a.weight.rows - panel * 16, lanes = left < 16 ? left : 16;
    for (std::int64_t r = 0; r < a.rows; ++r) {
      float* const out = a.out + r * a.out_stride + panel * 16;
      store_part(out, add(load_part(out, lanes), load_part(a.bias + panel * 16, lanes)), lanes);
    }
  }
}
