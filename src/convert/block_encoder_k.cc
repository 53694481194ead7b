// Blocks of 256 in groups with small integer scales: how these are chosen, and how the block is laid out.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "convert/block_encoder.h"
#include "core/check.h"
#include "core/float16.h"

namespace millrace {

namespace {

constexpr int kElements = 256;
// Grids that are tried for a group: as many on either side, each wider by this share of a code than the one before.
constexpr int kWidths = 6;
constexpr float kWidthStep = 0.2f;

float to_half(float value) {
  return f16_to_float(float_to_f16(value));
}

void store_half(float value, std::byte* target) {
  const std::uint16_t bits = float_to_f16(value);
  std::memcpy(target, &bits, sizeof bits);
}

// Where the reach of a block is beyond floats, products may be no numbers: the first argument of std::max and std::min
// is what they give then.

std::int32_t truncated(float value) {
  return static_cast<std::int32_t>(value);
}

/// What the largest of a block's scales is `steps` times of; not so small that a half would lose it.
float unit_of(float most, int steps) {
  constexpr float kSmallestHalf = 0x1p-24f;
  return most > 0.0f ? std::max(most / static_cast<float>(steps), kSmallestHalf) : 0.0f;
}

float inverse(float scale) {
  const float result = 1.0f / scale;
  return std::isfinite(result) ? result : 0.0f;
}

// --- q4_k and q5_k: (d * scale) * q - (dmin * minimum), groups of 32 -------------------------------------------------

constexpr int kAffineGroups = 8, kAffineGroup = 32;
constexpr int kMostFactor = 63;  // 6 bits

struct Affine {
  float scale = 0.0f, minimum = 0.0f;  // value = scale * code - minimum; neither is negative
};

struct AffineBlock {
  float d = 0.0f, dmin = 0.0f;  // as halves hold them
  std::array<std::uint8_t, kAffineGroups> scale{}, minimum{};
  double error = 0.0;  // summed squares

  [[nodiscard]] Affine group(std::size_t g) const {
    return {d * static_cast<float>(scale[g]), dmin * static_cast<float>(minimum[g])};
  }
};

/// The code nearest to each of 32 numbers, 0 to top.
void nearest_codes(const float* x, Affine grid, float top, std::int32_t* codes) {
  const float id = inverse(grid.scale);
  for (int j = 0; j < kAffineGroup; ++j) {
    const float code = std::min(std::max(0.0f, (x[j] + grid.minimum) * id), top);
    codes[j] = truncated(code + 0.5f);
  }
}

float affine_error(const float* x, Affine grid, float top) {
  std::int32_t codes[kAffineGroup];
  nearest_codes(x, grid, top, codes);
  float sum = 0.0f;
  for (int j = 0; j < kAffineGroup; ++j) {
    const float change = x[j] - (grid.scale * static_cast<float>(codes[j]) - grid.minimum);
    sum += change * change;
  }
  return sum;
}

/// Codes reach from the lowest number, or zero, to the highest.
Affine plain_affine(const float* x, float top) {
  const auto [low, high] = std::minmax_element(x, x + kAffineGroup);
  const float minimum = -std::min(*low, 0.0f);
  return {(*high + minimum) / top, minimum};
}

/// Scale and minimum that are best for the codes; the minimum is not negative.
Affine solve_affine(const float* x, const std::int32_t* codes) {
  double q = 0.0, qq = 0.0, v = 0.0, qv = 0.0;
  for (int j = 0; j < kAffineGroup; ++j) {
    const double code = codes[j], value = x[j];
    q += code;
    qq += code * code;
    v += value;
    qv += code * value;
  }
  const double determinant = kAffineGroup * qq - q * q;
  if (determinant <= 0.0) return {};
  const double scale = (kAffineGroup * qv - q * v) / determinant, offset = (qq * v - q * qv) / determinant;
  if (offset <= 0.0) return {static_cast<float>(scale), static_cast<float>(-offset)};
  return {static_cast<float>(qv / qq), 0.0f};
}

Affine fit_affine(const float* x, float top) {
  Affine best = plain_affine(x, top);
  if (!(best.scale > 0.0f)) return best;
  const Affine plain = best;
  float least = affine_error(x, best, top);
  for (int step = -kWidths; step <= kWidths; ++step) {
    const float width = kWidthStep * static_cast<float>(step);
    std::int32_t codes[kAffineGroup];
    nearest_codes(x, {plain.scale * top / (top + width), plain.minimum}, top, codes);
    const Affine solved = solve_affine(x, codes);
    if (!(solved.scale > 0.0f)) continue;
    if (const float error = affine_error(x, solved, top); error < least) {
      least = error;
      best = solved;
    }
  }
  return best;
}

std::uint8_t factor_of(float value, float unit) {
  return static_cast<std::uint8_t>(std::min(static_cast<float>(kMostFactor), value * inverse(unit) + 0.5f));
}

/// Integer scale and minimum of group g, the best of those around the exact ones; returns the error.
float choose_factors(const float* x, Affine exact, float top, bool neighbours, std::size_t g, AffineBlock& block) {
  const int scale = factor_of(exact.scale, block.d), minimum = factor_of(exact.minimum, block.dmin);
  const int reach = neighbours ? 1 : 0;
  float least = INFINITY;
  for (int s = std::max(scale - reach, 0); s <= std::min(scale + reach, kMostFactor); ++s) {
    for (int m = std::max(minimum - reach, 0); m <= std::min(minimum + reach, kMostFactor); ++m) {
      const Affine grid{block.d * static_cast<float>(s), block.dmin * static_cast<float>(m)};
      const float error = affine_error(x, grid, top);
      if (!(error < least) && std::isfinite(least)) continue;
      least = error;
      block.scale[g] = static_cast<std::uint8_t>(s);
      block.minimum[g] = static_cast<std::uint8_t>(m);
    }
  }
  return least;
}

using AffineFits = std::array<Affine, kAffineGroups>;

AffineBlock with_scales(const float* x, const AffineFits& fits, float d, float dmin, float top, bool neighbours) {
  AffineBlock block{.d = to_half(d), .dmin = to_half(dmin)};
  for (std::size_t g = 0; g < kAffineGroups; ++g) {
    block.error += choose_factors(x + g * kAffineGroup, fits[g], top, neighbours, g, block);
  }
  return block;
}

AffineBlock block_of(const float* x, const AffineFits& fits, float top, bool neighbours) {
  Affine most;
  for (const Affine& fit : fits) {
    most.scale = std::max(most.scale, fit.scale);
    most.minimum = std::max(most.minimum, fit.minimum);
  }
  return with_scales(x, fits, unit_of(most.scale, kMostFactor), unit_of(most.minimum, kMostFactor), top, neighbours);
}

/// The two scales of the block that are best for what else it holds: x = d * a - dmin * b, a = scale * code.
AffineBlock solve_block(const float* x, const AffineFits& fits, const AffineBlock& block, float top) {
  double aa = 0.0, ab = 0.0, bb = 0.0, ax = 0.0, bx = 0.0;
  for (std::size_t g = 0; g < kAffineGroups; ++g) {
    std::int32_t codes[kAffineGroup];
    nearest_codes(x + g * kAffineGroup, block.group(g), top, codes);
    const double b = -static_cast<double>(block.minimum[g]);
    for (std::size_t j = 0; j < kAffineGroup; ++j) {
      const double a = static_cast<double>(block.scale[g]) * codes[j], value = x[g * kAffineGroup + j];
      aa += a * a;
      ab += a * b;
      bb += b * b;
      ax += a * value;
      bx += b * value;
    }
  }
  const double determinant = aa * bb - ab * ab;
  double d = block.d, dmin = block.dmin;
  if (determinant > 1e-9 * aa * bb) {
    d = (ax * bb - bx * ab) / determinant;
    dmin = (bx * aa - ax * ab) / determinant;
  } else if (aa > 0.0) {
    d = ax / aa;
  }
  if (!(d > 0.0) || !(dmin >= 0.0)) return block;
  return with_scales(x, fits, static_cast<float>(d), static_cast<float>(dmin), top, true);
}

/// As unpack_scales() of quant/blocks.h reads them.
void pack_factors(const AffineBlock& block, std::byte* target) {
  for (std::size_t g = 0; g < 4; ++g) {
    const int scale = block.scale[g + 4], minimum = block.minimum[g + 4];
    target[g] = static_cast<std::byte>(block.scale[g] | (scale >> 4) << 6);
    target[g + 4] = static_cast<std::byte>(block.minimum[g] | (minimum >> 4) << 6);
    target[g + 8] = static_cast<std::byte>((scale & 0xf) | (minimum & 0xf) << 4);
  }
}

void store_affine(const float* x, const AffineBlock& block, bool five_bits, std::byte* target) {
  const float top = five_bits ? 31.0f : 15.0f;
  store_half(block.d, target);
  store_half(block.dmin, target + 2);
  pack_factors(block, target + 4);
  std::byte* high = target + 16;
  std::byte* low = high + (five_bits ? kAffineGroup : 0);
  std::memset(high, 0, (five_bits ? kAffineGroup : 0) + kElements / 2);
  for (std::size_t g = 0; g < kAffineGroups; ++g) {
    std::int32_t codes[kAffineGroup];
    nearest_codes(x + g * kAffineGroup, block.group(g), top, codes);
    for (std::size_t j = 0; j < kAffineGroup; ++j) {
      low[g / 2 * kAffineGroup + j] |= static_cast<std::byte>((codes[j] & 0xf) << (g % 2 * 4));
      if (five_bits) high[j] |= static_cast<std::byte>((codes[j] >> 4) << g);
    }
  }
}

void encode_affine(const float* x, bool five_bits, bool search, std::byte* target) {
  const float top = five_bits ? 31.0f : 15.0f;
  AffineFits fits;
  for (std::size_t g = 0; g < kAffineGroups; ++g) fits[g] = plain_affine(x + g * kAffineGroup, top);
  AffineBlock best = block_of(x, fits, top, false);
  if (search) {
    const auto take = [&](const AffineBlock& other) {
      if (other.error < best.error) best = other;
    };
    for (std::size_t g = 0; g < kAffineGroups; ++g) fits[g] = fit_affine(x + g * kAffineGroup, top);
    const AffineBlock first = block_of(x, fits, top, true);
    take(first);
    take(solve_block(x, fits, first, top));
  }
  store_affine(x, best, five_bits, target);
}

// --- q6_k: (d * scale) * (q - 32), groups of 16 ----------------------------------------------------------------------

constexpr int kSignedGroups = 16, kSignedGroup = 16;
constexpr int kLowest = -32, kHighest = 31, kMostSigned = 127;

struct SignedBlock {
  float d = 0.0f;
  std::array<std::int8_t, kSignedGroups> scale{};
  double error = 0.0;

  [[nodiscard]] float group(std::size_t g) const { return d * static_cast<float>(scale[g]); }
};

/// The code nearest to each of 16 numbers.
void signed_codes(const float* x, float id, std::int32_t* codes) {
  for (int j = 0; j < kSignedGroup; ++j) {
    // Adding makes it positive, so that cutting off rounds.
    const float code = std::min(std::max(static_cast<float>(kLowest), x[j] * id), static_cast<float>(kHighest));
    codes[j] = truncated(code + (0.5f - kLowest)) + kLowest;
  }
}

float signed_error(const float* x, float scale) {
  std::int32_t codes[kSignedGroup];
  signed_codes(x, inverse(scale), codes);
  float sum = 0.0f;
  for (int j = 0; j < kSignedGroup; ++j) {
    const float change = x[j] - scale * static_cast<float>(codes[j]);
    sum += change * change;
  }
  return sum;
}

/// The number that is largest in size becomes -32.
float plain_signed(const float* x) {
  const float* largest =
      std::max_element(x, x + kSignedGroup, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  return *largest / static_cast<float>(kLowest);
}

float fit_signed(const float* x) {
  const float plain = plain_signed(x);
  if (plain == 0.0f) return plain;
  float best = plain, least = signed_error(x, plain);
  for (int step = -kWidths; step <= kWidths; ++step) {
    const float width = kWidthStep * static_cast<float>(step);
    std::int32_t codes[kSignedGroup];
    signed_codes(x, inverse(plain * kLowest / (kLowest - width)), codes);
    double cc = 0.0, cx = 0.0;
    for (int j = 0; j < kSignedGroup; ++j) {
      cc += static_cast<double>(codes[j]) * codes[j];
      cx += static_cast<double>(codes[j]) * x[j];
    }
    if (cc == 0.0) continue;
    const auto solved = static_cast<float>(cx / cc);
    if (const float error = signed_error(x, solved); error < least) {
      least = error;
      best = solved;
    }
  }
  return best;
}

using SignedFits = std::array<float, kSignedGroups>;

SignedBlock with_scale(const float* x, const SignedFits& fits, float d, bool neighbours) {
  SignedBlock block{.d = to_half(d)};
  const int reach = neighbours ? 1 : 0;
  for (std::size_t g = 0; g < kSignedGroups; ++g) {
    const float exact = std::clamp(fits[g] * inverse(block.d), -static_cast<float>(kMostSigned), 127.0f);
    const int scale = static_cast<int>(std::lround(exact));
    float least = INFINITY;
    for (int s = std::max(scale - reach, -kMostSigned); s <= std::min(scale + reach, kMostSigned); ++s) {
      const float error = signed_error(x + g * kSignedGroup, block.d * static_cast<float>(s));
      if (!(error < least) && std::isfinite(least)) continue;
      least = error;
      block.scale[g] = static_cast<std::int8_t>(s);
    }
    block.error += least;
  }
  return block;
}

SignedBlock block_of(const float* x, const SignedFits& fits, bool neighbours) {
  float most = 0.0f;
  for (const float fit : fits) most = std::max(most, std::fabs(fit));
  return with_scale(x, fits, unit_of(most, kMostSigned), neighbours);
}

SignedBlock solve_block(const float* x, const SignedFits& fits, const SignedBlock& block) {
  double aa = 0.0, ax = 0.0;
  for (std::size_t g = 0; g < kSignedGroups; ++g) {
    std::int32_t codes[kSignedGroup];
    signed_codes(x + g * kSignedGroup, inverse(block.group(g)), codes);
    for (std::size_t j = 0; j < kSignedGroup; ++j) {
      const double a = static_cast<double>(block.scale[g]) * codes[j];
      aa += a * a;
      ax += a * x[g * kSignedGroup + j];
    }
  }
  if (!(aa > 0.0) || !(ax > 0.0)) return block;
  return with_scale(x, fits, static_cast<float>(ax / aa), true);
}

void store_signed(const float* x, const SignedBlock& block, std::byte* target) {
  std::byte* low = target;
  std::byte* high = target + 128;
  std::memset(low, 0, 128 + 64);
  for (std::size_t g = 0; g < kSignedGroups; ++g) {
    std::int32_t codes[kSignedGroup];
    signed_codes(x + g * kSignedGroup, inverse(block.group(g)), codes);
    const std::size_t half = g / 8, quarter = g / 2 % 4, column = g % 2 * kSignedGroup;
    for (std::size_t j = 0; j < kSignedGroup; ++j) {
      const int code = codes[j] - kLowest;
      low[half * 64 + quarter % 2 * 32 + column + j] |= static_cast<std::byte>((code & 0xf) << (quarter / 2 * 4));
      high[half * 32 + column + j] |= static_cast<std::byte>((code >> 4) << (quarter * 2));
    }
  }
  std::memcpy(target + 192, block.scale.data(), kSignedGroups);
  store_half(block.d, target + 208);
}

void encode_signed(const float* x, bool search, std::byte* target) {
  SignedFits fits;
  for (std::size_t g = 0; g < kSignedGroups; ++g) fits[g] = plain_signed(x + g * kSignedGroup);
  SignedBlock best = block_of(x, fits, false);
  if (search) {
    const auto take = [&](const SignedBlock& other) {
      if (other.error < best.error) best = other;
    };
    for (std::size_t g = 0; g < kSignedGroups; ++g) fits[g] = fit_signed(x + g * kSignedGroup);
    const SignedBlock first = block_of(x, fits, true);
    take(first);
    take(solve_block(x, fits, first));
  }
  store_signed(x, best, target);
}

void encode_block(QuantFormat format, bool search, const float* values, std::byte* target) {
  if (format == QuantFormat::q6_k) return encode_signed(values, search, target);
  MILLRACE_CHECK(format == QuantFormat::q4_k || format == QuantFormat::q5_k, "{}", format_info(format).name);
  encode_affine(values, format == QuantFormat::q5_k, search, target);
}

}  // namespace

void encode_k_block(QuantFormat format, const float* values, std::byte* target) {
  encode_block(format, true, values, target);
}

void encode_k_block_plainly(QuantFormat format, const float* values, std::byte* target) {
  encode_block(format, false, values, target);
}

}  // namespace millrace
