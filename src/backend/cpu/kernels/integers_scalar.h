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

inline Lanes to_lanes(const IntLanes& sums) {
  float values[16];
  for (int o = 0; o < 16; ++o) values[o] = static_cast<float>(sums.value[o]);
  return load(values);
}

/// Adds the products of `blocks` blocks of inputs with a panel's codes (PackedIntegers), to one sum a row.
template <int kRows>
inline void add_products_8(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t blocks,
                           IntLanes (&sums)[kRows]) {
  const auto* w = reinterpret_cast<const std::int8_t*>(codes);
  for (std::int64_t quad = 0; quad < blocks * (kIntegerBlock / 4); ++quad) {
    for (int r = 0; r < kRows; ++r) {
      const std::int8_t* input = x + r * x_stride + quad * 4;
      for (int o = 0; o < 16; ++o) {
        for (int k = 0; k < 4; ++k) sums[r].value[o] += w[quad * 64 + o * 4 + k] * input[k];
      }
    }
  }
}

template <int kRows>
inline void add_products_4(const std::byte* codes, const std::int8_t* x, std::int64_t x_stride, std::int64_t blocks,
                           IntLanes (&sums)[kRows]) {
  const auto* w = reinterpret_cast<const std::uint8_t*>(codes);
  for (std::int64_t quad = 0; quad < blocks * (kIntegerBlock / 4); ++quad) {
    for (int r = 0; r < kRows; ++r) {
      const std::int8_t* input = x + r * x_stride + quad * 4;
      for (int o = 0; o < 8; ++o) {
        for (int k = 0; k < 4; ++k) {
          const std::uint8_t both = w[quad * 32 + o * 4 + k];
          sums[r].value[o] += (both & 15) * input[k];
          sums[r].value[o + 8] += (both >> 4) * input[k];
        }
      }
    }
  }
}
