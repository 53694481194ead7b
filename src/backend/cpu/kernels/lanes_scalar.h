// Sixteen floats on any processor. Included inside an anonymous namespace (see kernel_table.h).
//
// What every level's Lanes offers, with the same meaning: arithmetic lane by lane with one rounding an operation,
// except that fma() rounds once where the level has the instruction and twice here; reductions over one fixed tree
// (lane i with i + 8, then + 4, + 2, + 1), so that the result does not depend on the width of the registers behind it.

typedef float Quad __attribute__((vector_size(16)));
typedef std::int32_t QuadInt __attribute__((vector_size(16)));

struct Lanes {
  Quad part[4];
};

// How many Lanes accumulators of a matrix product fit the registers, how many rows share a weight, and how many panels
// are read side by side at most.
constexpr int kAccumulators = 3;
constexpr int kTileRows = 3;
constexpr int kTilePanels = 2;
// Whether 16-bit weights become floats so fast that each tile of a product may do it again.
constexpr bool kWidensCheaply = false;

/// Where registers are scarce: the value is needed here, and in a register.
inline void keep_in_register(Lanes& /*v*/) {}

#define LANES_EACH(expression)                          \
  Lanes result;                                         \
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) { \
    result.part[i] = (expression);                      \
  }                                                     \
  return result

inline Lanes broadcast(float value) {
  LANES_EACH((Quad{value, value, value, value}));
}
inline Lanes load(const float* p) {
  Lanes result;
  __builtin_memcpy(&result, p, sizeof result);
  return result;
}
inline void store(float* p, Lanes v) {
  __builtin_memcpy(p, &v, sizeof v);
}
inline Lanes add(Lanes a, Lanes b) {
  LANES_EACH(a.part[i] + b.part[i]);
}
inline Lanes sub(Lanes a, Lanes b) {
  LANES_EACH(a.part[i] - b.part[i]);
}
inline Lanes mul(Lanes a, Lanes b) {
  LANES_EACH(a.part[i] * b.part[i]);
}
inline Lanes div(Lanes a, Lanes b) {
  LANES_EACH(a.part[i] / b.part[i]);
}
/// a * b + c
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  LANES_EACH(a.part[i] * b.part[i] + c.part[i]);
}
/// The second operand where either is a NaN.
inline Lanes max(Lanes a, Lanes b) {
  LANES_EACH(a.part[i] > b.part[i] ? a.part[i] : b.part[i]);
}
inline Lanes min(Lanes a, Lanes b) {
  LANES_EACH(a.part[i] < b.part[i] ? a.part[i] : b.part[i]);
}
/// a < b ? x : y
inline Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
  LANES_EACH(a.part[i] < b.part[i] ? x.part[i] : y.part[i]);
}
inline Lanes magnitude(Lanes a) {
  LANES_EACH((Quad)((QuadInt)a.part[i] & 0x7fffffff));
}
/// The magnitude of a (not negative) with the sign of b.
inline Lanes with_sign(Lanes a, Lanes b) {
  LANES_EACH((Quad)((QuadInt)a.part[i] | ((QuadInt)b.part[i] & static_cast<std::int32_t>(0x80000000u))));
}
/// The largest power of two that is not larger than |a|; 0 for subnormal ones.
inline Lanes power_below(Lanes a) {
  LANES_EACH((Quad)((QuadInt)a.part[i] & 0x7f800000));
}
/// To the nearest integer, halves to even; |a| < 2^22.
inline Lanes round_nearest(Lanes a) {
  LANES_EACH((a.part[i] + 12582912.0f) - 12582912.0f);
}
/// 2^n for an integer n in [-126, 127]; unspecified for others and NaN.
inline Lanes power_of_two(Lanes n) {
  // n + 1.5 * 2^23 holds n in its low bits, and unlike a conversion is defined for every n.
  LANES_EACH((Quad)((((QuadInt)(n.part[i] + 12582912.0f)) - 0x4b400000 + 127) << 23));
}

/// The first `count` of 16 floats, zeros for the others; reads nothing beyond.
inline Lanes load_part(const float* p, std::int64_t count) {
  if (count == 16) return load(p);
  Lanes result = broadcast(0.0f);
  __builtin_memcpy(&result, p, static_cast<std::size_t>(count) * sizeof(float));
  return result;
}
inline void store_part(float* p, Lanes v, std::int64_t count) {
  if (count == 16) return store(p, v);
  __builtin_memcpy(p, &v, static_cast<std::size_t>(count) * sizeof(float));
}

inline float reduce_add(Lanes v) {
  const Quad four = (v.part[0] + v.part[2]) + (v.part[1] + v.part[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
inline float reduce_max(Lanes v) {
  const Lanes a{{v.part[0], v.part[1], v.part[0], v.part[1]}};
  const Lanes b{{v.part[2], v.part[3], v.part[2], v.part[3]}};
  const Lanes m = max(a, b);
  float largest = m.part[0][0];
  for (int i = 1; i < 8; ++i) {
    const float other = m.part[i / 4][i % 4];
    largest = largest > other ? largest : other;
  }
  return largest;
}

/// The floats that have these bits.
inline Lanes lanes_of(const std::uint32_t (&bits)[16]) {
  Lanes result;
  __builtin_memcpy(&result, bits, sizeof result);
  return result;
}
inline Lanes load(const Bf16* p) {
  std::uint32_t bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = std::uint32_t{p[i].bits} << 16;
  return lanes_of(bits);
}
/// A half as the bits of a float.
inline std::uint32_t widen_half(std::uint32_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  std::uint32_t bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
    if (mantissa != 0) bits |= 0x400000u;  // quiet, as the instruction of the other levels makes it
  } else if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // a subnormal half
    __builtin_memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  return bits;
}
inline Lanes load(const Half* p) {
  std::uint32_t bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = widen_half(p[i].bits);
  return lanes_of(bits);
}
/// Divided by kE4m3Unit. The two codes of NaN are not looked for.
inline Lanes load(const E4m3* p) {
  std::uint32_t bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = widen_half((p[i].bits & 0x80u) << 8 | (p[i].bits & 0x7fu) << 7);
  return lanes_of(bits);
}
/// What load() gives back: values of E4M3 divided by kE4m3Unit.
inline void store(E4m3* p, Lanes v) {
  for (int i = 0; i < 16; ++i) {
    float value = 0.0f;
    __builtin_memcpy(&value, reinterpret_cast<const char*>(&v) + 4 * i, 4);
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, &value, 4);
    const std::uint32_t sign = bits >> 24 & 0x80u;
    value = (value < 0.0f ? -value : value) * kE4m3Unit;
    __builtin_memcpy(&bits, &value, 4);
    const bool subnormal =
        value < 0x1p-6f;  // then a whole number of 2^-9; else the float's own bits, with its bias of 127
    const std::uint32_t code = subnormal ? static_cast<std::uint32_t>(value * 512.0f) : (bits >> 20) - (120u << 3);
    p[i].bits = static_cast<std::uint8_t>(sign | (code & 0x7fu));
  }
}
inline Lanes load(const E5m2* p) {
  std::uint32_t bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = widen_half(std::uint32_t{p[i].bits} << 8);
  return lanes_of(bits);
}
/// Of values of E5M2 and NaN.
inline void store(E5m2* p, Lanes v) {
  for (int i = 0; i < 16; ++i) {
    float value = 0.0f;
    __builtin_memcpy(&value, reinterpret_cast<const char*>(&v) + 4 * i, 4);
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, &value, 4);
    const std::uint32_t sign = bits >> 24 & 0x80u;
    const float size = value < 0.0f ? -value : value;
    std::uint32_t code = ((bits & 0x7fffffffu) >> 21) - (112u << 2);  // the float's own bits, with its bias of 127
    if (size < 0x1p-14f) code = static_cast<std::uint32_t>(size * 65536.0f);
    p[i].bits = static_cast<std::uint8_t>(value != value ? 0x7eu : sign | code);
  }
}
/// Sixteen elements, each of which has two numbers: the first of each and the second of each.
inline void load_pairs(const Int4* p, Lanes& first, Lanes& second) {
  float numbers[2][16];
  for (int i = 0; i < 16; ++i) {
    numbers[0][i] = static_cast<float>((p[i].codes & 15) - kInt4Middle);
    numbers[1][i] = static_cast<float>((p[i].codes >> 4) - kInt4Middle);
  }
  first = load(numbers[0]);
  second = load(numbers[1]);
}
/// Sixteen numbers in order, which are eight elements.
inline Lanes load(const Int4* p) {
  float numbers[16];
  for (int i = 0; i < 16; ++i) {
    numbers[i] = static_cast<float>((p[i / 2].codes >> i % 2 * 4 & 15) - kInt4Middle);
  }
  return load(numbers);
}
/// To bfloat16, nearest even; a NaN stays one.
inline void store(Bf16* p, Lanes v) {
  for (int i = 0; i < 16; ++i) {
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, reinterpret_cast<const char*>(&v) + 4 * i, 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    p[i].bits = static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}
inline Lanes round_to_bf16(Lanes v) {
  Bf16 rounded[16];
  store(rounded, v);
  return load(rounded);
}

/// target[c][r] = rows[r][c]: 16 rows of 16 columns, target dense.
inline void transpose(const float* const rows[16], std::int64_t column, float* target) {
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 16; ++c) target[c * 16 + r] = rows[r][column + c];
  }
}

#undef LANES_EACH

// In whatever order is cheapest: here in their own.
inline Lanes load_paired(const Bf16* p) {
  return load(p);
}
inline Lanes in_order(Lanes paired) {
  return paired;
}
