// Products of bfloat16 with the inputs that rows keep. Included inside an anonymous namespace (see kernel_table.h),
// after skip_tiles.h.

constexpr std::int64_t kPairBytes = 32;  // of an input's weights in a panel

/// Sixteen weights of an input in the lower halves of their lanes.
MILLRACE_INLINE __m512i widen_words(const std::byte* weights) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)));
}

/// Panels that sums of kRows rows have registers for, beside as many.
constexpr int pair_panels(int rows) {
  return rows == 1 ? 8 : rows == 2 ? 4 : 2;
}

inline TilePlace pair_place(const SkipTask& a, std::int64_t panel) {
  const std::int64_t inputs = (a.weight.cols + kPairBlock - 1) / kPairBlock * kPairBlock;
  return tile_place(a.weight.rows, a.weight.tile, inputs, panel, kPairBytes);
}
