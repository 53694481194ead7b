// Sixteen integer sums on any processor. Included inside an anonymous namespace (see kernel_table.h).

struct IntLanes {
  std::int32_t value[16];
};

constexpr int kIntegerTileRows = 2;

/// What codes are less than they are stored.
struct Zeros {
  std::int32_t value[16];
};

inline Zeros zeros_of(std::int32_t zero) {
  Zeros zeros;
  for (std::int32_t& value : zeros.value) value = zero;
  return zeros;
}
inline Zeros zeros_of(const std::uint8_t* stored) {
  Zeros zeros;
  for (int o = 0; o < 16; ++o) zeros.value[o] = stored[o];
  return zeros;
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

/// pair_sums() of a block of kInputBlock codes.
inline std::int32_t pair_sums_of(const std::int8_t* codes) {
  std::int32_t sums[2] = {};
  for (int i = 0; i < kInputBlock; ++i) sums[i / 2 % 2] += codes[i];
  return pair_sums(sums[0], sums[1]);
}

/// The sums of the products of a group's inputs with a panel's codes (PackedIntegers), one a row and output. To the
/// steps of E2M1, kE2m1Zero is added before.
template <int kRows, CodeKind kKind>
inline void multiply_group(const std::byte* codes, const InputBlocks<kRows>& inputs, IntLanes (&sums)[kRows]) {
  const auto* w = reinterpret_cast<const std::uint8_t*>(codes);
  for (IntLanes& sum : sums) sum = {};
  for (std::int64_t quad = 0; quad < inputs.count / 4; ++quad) {
    for (int r = 0; r < kRows; ++r) {
      const std::int8_t* input = inputs.codes + r * inputs.stride + quad * 4;
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

/// The same with codes of 4 bits less their zeros.
template <int kRows, CodeKind kKind>
inline void multiply_group(const std::byte* codes, const InputBlocks<kRows>& inputs, const Zeros& zeros,
                           IntLanes (&sums)[kRows]) {
  multiply_group<kRows, kKind>(codes, inputs, sums);
  for (int r = 0; r < kRows; ++r) {
    const std::int32_t sum = inputs.total(r);
    for (int o = 0; o < 16; ++o) sums[r].value[o] -= zeros.value[o] * sum;
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
