// Products of bfloat16 with the inputs that rows keep. Included inside an anonymous namespace (see kernel_table.h),
// after skip_tiles.h.

/// Sixteen weights of an input in the lower halves of their lanes.
MILLRACE_INLINE __m512i widen_words(const std::byte* weights) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)));
}

template <int kRows, int kPanels>
struct PairSums {
  Lanes of[kRows][kPanels];
  MILLRACE_INLINE void zero() {
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) of[r][p] = broadcast(0.0f);
    }
  }
};

template <int kRows, int kPanels>
inline void store_pairs(const SkipTask& a, std::int64_t panel, const PairSums<kRows, kPanels>& sums) {
  MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
    const std::int64_t left = a.weight.rows - (panel + p) * 16, lanes = left < 16 ? left : 16;
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      Lanes sum = sums.of[r][p];
      if (a.bias != nullptr) sum = add(sum, load_part(a.bias + (panel + p) * 16, lanes));
      store_part(a.out + r * a.out_stride + (panel + p) * 16, sum, lanes);
    }
  }
}

/// run.template operator()<rows, panels>(panel) for panels of one tile each, as many as eight sums have room for.
template <typename Run>
inline void with_pair_tiles(const SkipTask& a, Run&& run) {
  constexpr int kSums = 8;
  for (std::int64_t panel = a.first_panel; panel < a.end_panel;) {
    const std::int64_t panels = panels_of_tile(a.weight.tile, panel, a.end_panel);
    const auto take = [&]<int kRows>() {
      constexpr int kPanels = kRows == 1 ? kSums : kRows == 2 ? kSums / 2 : kSums / 4;
      if (panels >= kPanels) {
        run.template operator()<kRows, kPanels>(panel);
        panel += kPanels;
      } else {
        run.template operator()<kRows, 1>(panel);
        ++panel;
      }
    };
    if (a.rows == 1) {
      take.template operator()<1>();
    } else if (a.rows == 2) {
      take.template operator()<2>();
    } else if (a.rows == 3) {
      take.template operator()<3>();
    } else {
      take.template operator()<4>();
    }
  }
}
