// Sixteen integer sums on any processor. Included inside an anonymous namespace (see kernel_table.h).

struct IntLanes {
  std::int32_t value[16];
};

constexpr int kIntegerTileRows = 2;

inline IntLanes no_sums() {
  return {};
}

/// sums[o] - zeros[o] * inputs
inline IntLanes subtract_zeros(IntLanes sums, const std::uint8_t* zeros, std::int32_t inputs) {
  for (int o = 0; o < 16; ++o) sums.value[o] -= zeros[o] * inputs;
  return sums;
}

/// sums[o] - amount
inline IntLanes subtract(IntLanes sums, std::int32_t amount) {
  for (int o = 0; o < 16; ++o) sums.value[o] -= amount;
  return sums;
}

inline Lanes to_lanes(const IntLanes& sums) {
  float values[16];
  for (int o = 0; o < 16; ++o) values[o] = static_cast<float>(sums.value[o]);
  return load(values);
}

/// Sixteen small integers.
inline Lanes load(const std::int8_t* p) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = p[i];
  return load(values);
}
/// Whole numbers from -128 to 127.
inline void store(std::int8_t* p, Lanes v) {
  float values[16];
  store(values, v);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(values[i]);
}

inline Lanes load_unsigned(const std::uint8_t* p) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = p[i];
  return load(values);
}

inline Lanes load(const Int8* p) {
  return load(&p->code);
}
inline void store(Int8* p, Lanes v) {
  store(&p->code, v);
}

/// Adds the products of `count` inputs (a multiple of kInputBlock; for int4, of kIntegerBlock) with a panel's codes
/// (PackedIntegers), to one sum a row and output. To the steps of E2M1, kE2m1Zero is added before.
template <int kRows, CodeKind kKind>
inline void add_products(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t count,
                         IntLanes (&sums)[kRows]) {
  const auto* w = reinterpret_cast<const std::uint8_t*>(codes);
  for (std::int64_t quad = 0; quad < count / 4; ++quad) {
    for (int r = 0; r < kRows; ++r) {
      const std::int8_t* input = x + r * x_stride + quad * 4;
      for (int o = 0; o < (kKind == CodeKind::int8 ? 16 : 8); ++o) {
        for (int k = 0; k < 4; ++k) {
          if constexpr (kKind == CodeKind::int8) {
            sums[r].value[o] += static_cast<std::int8_t>(w[quad * 64 + o * 4 + k]) * input[k];
          } else if constexpr (kKind == CodeKind::e2m1) {
            const std::uint8_t both = w[quad * 32 + o * 4 + k];
            sums[r].value[o] += kE2m1Raised[both & 15] * input[k];
            sums[r].value[o + 8] += kE2m1Raised[both >> 4] * input[k];
          } else {
            const std::uint8_t both = w[quad * 32 + o * 4 + k];
            sums[r].value[o] += (both & 15) * input[k];
            sums[r].value[o + 8] += (both >> 4) * input[k];
          }
        }
      }
    }
  }
}

constexpr float kWidenedUnit = 1.0f;

/// The steps of four inputs of a panel, at `codes` (PackedIntegers), divided by the unit, a power of two: of int4 the
/// codes themselves.
template <CodeKind kKind>
inline void widen_quad(const std::byte* codes, Lanes (&steps)[4]) {
  const auto* w = reinterpret_cast<const std::uint8_t*>(codes);
  for (int k = 0; k < 4; ++k) {
    float values[16];
    for (int o = 0; o < 16; ++o) {
      if constexpr (kKind == CodeKind::int8) {
        values[o] = static_cast<std::int8_t>(w[o * 4 + k]);
      } else {
        const std::uint8_t both = w[o % 8 * 4 + k], code = o < 8 ? both & 15 : both >> 4;
        values[o] = kKind == CodeKind::e2m1 ? kE2m1Signed[code] : code;
      }
    }
    steps[k] = load(values);
  }
}

/// For the measure of what is possible (limits.h).
std::int64_t multiply_add_bytes(std::int64_t rounds, float* sink) {
  std::uint32_t chains[16];
  for (std::uint32_t i = 0; i < 16; ++i) chains[i] = i;
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < 16; ++i) chains[i] += static_cast<std::uint32_t>(static_cast<std::int8_t>(chains[i]) * 3);
  }
  *sink = 0.0f;
  for (const std::uint32_t chain : chains) *sink += static_cast<float>(chain);
  return rounds * 16 * 2;
}
