// Where weights that lie input by input are (PackedSegment::tile, PackedIntegers::tile). Included inside an anonymous
// namespace (see kernel_table.h).

constexpr std::int64_t kSkipLine = 64;

/// Asks for `bytes` bytes of an input's weights.
MILLRACE_INLINE void prefetch_input(const std::byte* weights, std::int64_t bytes) {
  for (std::int64_t line = 0; line < bytes; line += kSkipLine) __builtin_prefetch(weights + line);
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
