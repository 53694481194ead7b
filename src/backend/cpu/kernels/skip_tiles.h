// Where weights that lie input by input are (PackedSegment::tile, PackedIntegers::tile). Included inside an anonymous
// namespace (see kernel_table.h).

/// Asks for `bytes` bytes of an input's weights, into the second-level cache: it has more requests under way than the
/// first, and they are not needed at once.
MILLRACE_INLINE void prefetch_input(const std::byte* weights, std::int64_t bytes) {
  for (std::int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(weights + line, 0, 2);
}

/// Where panel `panel`'s weights of input 0 are, and how far input 1's are from there, in bytes. `inputs`: of the
/// tile, with padding; `of_input`: bytes of a panel's weights of one.
struct TilePlace {
  std::int64_t offset, stride;
};
inline TilePlace tile_place(std::int64_t rows, std::int64_t tile, std::int64_t inputs, std::int64_t panel,
                            std::int64_t of_input) {
  const std::int64_t panels = (rows + 15) / 16, tile_panels = tile / 16, first = panel / tile_panels * tile_panels;
  const std::int64_t width = panels - first < tile_panels ? panels - first : tile_panels;
  return {(first * inputs + panel - first) * of_input, width * of_input};
}

/// Panels from `panel` on that lie in one tile, before `end`.
inline std::int64_t panels_of_tile(std::int64_t tile, std::int64_t panel, std::int64_t end) {
  const std::int64_t tile_panels = tile / 16, left = tile_panels - panel % tile_panels;
  return end - panel < left ? end - panel : left;
}

/// Panels of a tile, or of a task's part of it, that a kernel has sums for at a time.
constexpr std::int64_t kSkipPanels = 128;

/// Sums of rows that leave the registers between pieces of the list of inputs.
struct SkipSums {
  alignas(64) float of[kSkipRows][kSkipPanels][16];
  void begin(std::int64_t rows, std::int64_t panels) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t p = 0; p < panels; ++p) store(of[r][p], broadcast(0.0f));
    }
  }
};

/// run(first panel, panels) for the parts of a task that lie in one tile each.
template <typename Run>
inline void with_tiles(const SkipTask& a, Run&& run) {
  for (std::int64_t panel = a.first_panel; panel < a.end_panel;) {
    const std::int64_t left = panels_of_tile(a.weight.tile, panel, a.end_panel);
    const std::int64_t panels = left < kSkipPanels ? left : kSkipPanels;
    run(panel, panels);
    panel += panels;
  }
}

/// Sums of panels from `panel` on, with the bias, to where they belong.
inline void store_skip_sums(const SkipTask& a, std::int64_t panel, std::int64_t panels, const SkipSums& sums) {
  for (std::int64_t p = panel; p < panel + panels; ++p) {
    const std::int64_t left = a.weight.rows - p * 16, lanes = left < 16 ? left : 16;
    for (std::int64_t r = 0; r < a.rows; ++r) {
      Lanes sum = load(sums.of[r][p - panel]);
      if (a.bias != nullptr) sum = add(sum, load_part(a.bias + p * 16, lanes));
      store_part(a.out + r * a.out_stride + p * 16, sum, lanes);
    }
  }
}

/// take.operator()<kPanels>(p) for p from 0 to panels in steps of kPanels, a power of two, and of less at the end.
template <int kPanels, typename Take>
MILLRACE_INLINE void in_steps(std::int64_t first, std::int64_t panels, const Take& take) {
  for (; first + kPanels <= panels; first += kPanels) take.template operator()<kPanels>(first);
  if constexpr (kPanels > 1) in_steps<kPanels / 2>(first, panels, take);
}

/// run.operator()<rows>() for the task's rows.
template <typename Run>
inline void with_rows(std::int64_t rows, const Run& run) {
  switch (rows) {
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    case 3:
      return run.template operator()<3>();
    default:
      return run.template operator()<4>();
  }
}
