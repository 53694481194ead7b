// Products of the inputs that rows keep, with weights that lie input by input (PackedSegment::tile). Included inside an
// anonymous namespace (see kernel_table.h), after multiply.h and skip_tiles.h.
//
// Each output has one accumulator that takes its products in ascending k, as in multiply.h; what is left out would have
// added an exact zero.

constexpr std::int64_t kSkipChunk = 16;  // inputs that all panels of a tile meet before the next come

/// Inputs [first, end) of the list and kPanels panels, of which input 0's weights are at w.
template <int kRows, int kPanels, typename Element>
MILLRACE_INLINE void skip_chunk(const SkipTask& a, const std::byte* w, std::int64_t stride, std::int64_t first,
                                std::int64_t end, std::int64_t place, SkipSums& sums) {
  Lanes sum[kRows][kPanels];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = load(sums.of[r][place + p]);
  }
  for (std::int64_t i = first; i < end; ++i) {
    const auto* const now = reinterpret_cast<const Element*>(w + a.kept[i] * stride);
    prefetch_input(w + a.kept[i + kSkipChunk] * stride, kPanels * 16 * static_cast<std::int64_t>(sizeof(Element)));
    Lanes weight[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) weight[p] = load(now + p * 16);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const Lanes value = broadcast(a.x[r * a.x_stride + i]);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = fma(value, weight[p], sum[r][p]);
    }
  }
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) store(sums.of[r][place + p], sum[r][p]);
  }
}

template <int kRows, typename Element>
inline void skip_rows(const SkipTask& a) {
  constexpr std::int64_t kBytes = 16 * static_cast<std::int64_t>(sizeof(Element));
  SkipSums sums;
  with_tiles(a, [&](std::int64_t panel, std::int64_t panels) {
    const TilePlace place = tile_place(a.weight.rows, a.weight.tile, a.weight.cols, panel, kBytes);
    sums.begin(kRows, panels);
    for (std::int64_t first = 0; first < a.count; first += kSkipChunk) {
      const std::int64_t end = first + kSkipChunk < a.count ? first + kSkipChunk : a.count;
      in_steps<tile_panels(kRows)>(0, panels, [&]<int kPanels>(std::int64_t p) {
        skip_chunk<kRows, kPanels, Element>(a, a.weight.data + place.offset + p * kBytes, place.stride, first, end, p,
                                            sums);
      });
    }
    store_skip_sums(a, panel, panels, sums);
  });
}

template <typename Element>
void skip_of(const SkipTask& a) {
  with_rows(a.rows, [&]<int kRows>() { skip_rows<kRows, Element>(a); });
}

void skip_floats(const SkipTask& a) {
  if (a.weight.format == QuantFormat::f32) {
    skip_of<float>(a);
  } else if (a.weight.format == QuantFormat::bf16) {
    skip_of<Bf16>(a);
  } else {
    skip_of<Half>(a);
  }
}
