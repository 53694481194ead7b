// How weights that lie otherwise become panels: elements of 16 outputs side by side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backend/cpu/kernel_table.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace millrace {

inline constexpr std::int64_t kQuad = 4;  // codes of inputs that stand side by side

/// 16 outputs of two inputs, of two bytes each, side by side for each output.
inline void pair_up(const std::byte* first, const std::byte* second, std::byte* target) {
#if defined(__x86_64__)
  for (int half = 0; half < 2; ++half) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + half * 16));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second + half * 16));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + half * 32), _mm_unpacklo_epi16(a, b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + half * 32 + 16), _mm_unpackhi_epi16(a, b));
  }
#else
  for (std::int64_t o = 0; o < kPanelRows; ++o) {
    std::memcpy(target + o * 4, first + o * 2, 2);
    std::memcpy(target + o * 4 + 2, second + o * 2, 2);
  }
#endif
}

/// Eight bytes of four inputs, side by side for each.
inline void quad_up(const std::byte* const (&inputs)[kQuad], std::byte* target) {
#if defined(__x86_64__)
  __m128i in[kQuad];
  for (int k = 0; k < kQuad; ++k) in[k] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(inputs[k]));
  const __m128i first = _mm_unpacklo_epi8(in[0], in[1]), second = _mm_unpacklo_epi8(in[2], in[3]);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm_unpacklo_epi16(first, second));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 16), _mm_unpackhi_epi16(first, second));
#else
  for (std::int64_t b = 0; b < 8; ++b) {
    for (std::int64_t k = 0; k < kQuad; ++k) target[b * kQuad + k] = inputs[k][b];
  }
#endif
}

/// Four words of 32 bits of four rows: word w of all rows to target + w * stride.
inline void transpose_words(const std::byte* const (&rows)[4], std::byte* target, std::int64_t stride) {
#if defined(__x86_64__)
  __m128i row[4];
  for (int r = 0; r < 4; ++r) row[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r]));
  const __m128i low = _mm_unpacklo_epi32(row[0], row[1]), high = _mm_unpackhi_epi32(row[0], row[1]);
  const __m128i more_low = _mm_unpacklo_epi32(row[2], row[3]), more_high = _mm_unpackhi_epi32(row[2], row[3]);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm_unpacklo_epi64(low, more_low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target + stride), _mm_unpackhi_epi64(low, more_low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 2 * stride), _mm_unpacklo_epi64(high, more_high));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 3 * stride), _mm_unpackhi_epi64(high, more_high));
#else
  for (std::int64_t w = 0; w < 4; ++w) {
    for (std::int64_t r = 0; r < 4; ++r) std::memcpy(target + w * stride + r * 4, rows[r] + w * 4, 4);
  }
#endif
}

/// Two inputs of 16 outputs side by side, of two bytes each, apart: those of the first, then those of the second.
/// `pairs` may be the target.
inline void split_pairs(const std::byte* pairs, std::byte* target) {
  std::uint16_t together[2 * kPanelRows], apart[2 * kPanelRows];
  std::memcpy(together, pairs, sizeof together);
  for (std::int64_t o = 0; o < kPanelRows; ++o) {
    apart[o] = together[2 * o];
    apart[kPanelRows + o] = together[2 * o + 1];
  }
  std::memcpy(target, apart, sizeof apart);
}

}  // namespace millrace
