// Products of the inputs that rows keep, with weights that lie input by input (PackedSegment::tile). Included inside an
// anonymous namespace (see kernel_table.h), after multiply.h and skip_tiles.h.
//
// Each output has one accumulator that takes its products in ascending k, as in multiply.h; what is left out would have
// added an exact zero.

template <int kRows, int kPanels, typename Element>
inline void skip_tile(const SkipTask& a, std::int64_t panel) {
  constexpr std::int64_t kBytes = 16 * static_cast<std::int64_t>(sizeof(Element));
  const TilePlace place = tile_place(a.weight.rows, a.weight.tile, a.weight.cols, panel, kBytes);
  const std::byte* const w = a.weight.data + place.offset;
  const std::int32_t* const kept = a.kept;
  const float* const x = a.x;
  Lanes sum[kRows][kPanels];
  MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = broadcast(0.0f);
  }
  for (std::int64_t i = 0; i < a.count; ++i) {
    const auto* const now = reinterpret_cast<const Element*>(w + kept[i] * place.stride);
    prefetch_input(w + kept[i + kSkipAhead] * place.stride, kPanels * kBytes);
    Lanes weight[kPanels];
    MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) weight[p] = load(now + p * 16);
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      const Lanes value = broadcast(x[r * a.x_stride + i]);
      MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) sum[r][p] = fma(value, weight[p], sum[r][p]);
    }
  }
  MILLRACE_UNROLL for (int p = 0; p < kPanels; ++p) {
    const std::int64_t left = a.weight.rows - (panel + p) * 16, lanes = left < 16 ? left : 16;
    MILLRACE_UNROLL for (int r = 0; r < kRows; ++r) {
      if (a.bias != nullptr) sum[r][p] = add(sum[r][p], load_part(a.bias + (panel + p) * 16, lanes));
      store_part(a.out + r * a.out_stride + (panel + p) * 16, sum[r][p], lanes);
    }
  }
}

template <int kRows, int kPanels, typename Element>
inline std::int64_t skip_panels(const SkipTask& a, std::int64_t panel, std::int64_t panels) {
  if constexpr (kPanels > 1) {
    if (panels < kPanels) return skip_panels<kRows, kPanels / 2, Element>(a, panel, panels);
  }
  skip_tile<kRows, kPanels, Element>(a, panel);
  return kPanels;
}

template <int kRows, typename Element>
inline void skip_rows(const SkipTask& a) {
  for (std::int64_t panel = a.first_panel; panel < a.end_panel;) {
    const std::int64_t panels = panels_of_tile(a.weight.tile, panel, a.end_panel);
    panel += skip_panels<kRows, tile_panels(kRows), Element>(a, panel, panels);
  }
}

template <typename Element>
void skip_of(const SkipTask& a) {
  switch (a.rows) {
    case 1:
      return skip_rows<1, Element>(a);
    case 2:
      return skip_rows<2, Element>(a);
    case 3:
      return skip_rows<3, Element>(a);
    default:
      return skip_rows<4, Element>(a);
  }
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
