// Weights of E4M3 as pairs of bfloat16, which holds all of its numbers. Included inside an anonymous namespace (see
// kernel_table.h).

inline std::int64_t padded_cols(const PackedSegment& weight) {
  return (weight.cols + kPairBlock - 1) / kPairBlock * kPairBlock;
}

/// Four inputs of 16 outputs in E4M3 as two lines of pairs.
inline void pair_up_e4m3(const std::byte* codes, std::byte* pairs) {
  // Outputs of the first two inputs by turns in the lower halves of the quarters, of the others in the upper.
  const __m512i order =
      _mm512_set_epi64(0x3f2f3e2e3d2d3c2c, 0x1f0f1e0e1d0d1c0c, 0x3b2b3a2a39293828, 0x1b0b1a0a19091808,  //
                       0x3727362635253424, 0x1707160615051404, 0x3323322231213020, 0x1303120211011000);
  const __m512i ordered = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(codes));
  const __m512i size = _mm512_and_si512(ordered, _mm512_set1_epi8(0x7f));
  // Four digits of the exponent with three of the mantissa become eight with seven: 120 more, in the upper byte 60.
  const __m512i low = _mm512_and_si512(_mm512_slli_epi16(size, 4), _mm512_set1_epi8(static_cast<char>(0xf0)));
  const __m512i high =
      _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(size, 4), _mm512_set1_epi8(0x0f)), _mm512_set1_epi8(0x3c));
  // Subnormal numbers are 0 to 7 times 2^-9.
  const __mmask64 subnormal = _mm512_testn_epi8_mask(size, _mm512_set1_epi8(0x78));
  const __m512i low_steps = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, static_cast<char>(0x80), static_cast<char>(0xc0),
                                                                 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m512i high_steps =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m512i lower = _mm512_mask_shuffle_epi8(low, subnormal, low_steps, size);
  const __m512i upper = _mm512_ternarylogic_epi64(_mm512_mask_shuffle_epi8(high, subnormal, high_steps, size), ordered,
                                                  _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);  // a or (b and c)
  _mm512_store_si512(pairs, _mm512_unpacklo_epi8(lower, upper));
  _mm512_store_si512(pairs + 64, _mm512_unpackhi_epi8(lower, upper));
}

/// Weights of E4M3 of a panel are unpacked as many inputs at a time.
constexpr std::int64_t kPairSpan = 256;
