// The passes of row_kernels.h, over `Lanes`: a few numbers side by side. Included inside an anonymous namespace by each
// file that defines Lanes, so that nothing compiled for one instruction set can be linked into code for another; for
// the same reason it uses nothing of the standard library but types.

constexpr std::size_t kWidth = Lanes::kWidth;
constexpr std::size_t kPartialSums = 16;

// Loops over arrays of registers must be unrolled whole, or the arrays go to memory.
#undef MILLRACE_UNROLL
#if defined(__clang__)
#define MILLRACE_UNROLL _Pragma("unroll")
#else
#define MILLRACE_UNROLL _Pragma("GCC unroll 16")
#endif

/// A block of kRowBlock logits: this one, or where it is shorter a copy in `padded` that ends in NaN, which no pass
/// counts.
inline const float* whole_block(const float* block, std::size_t count, float* padded) {
  if (count == kRowBlock) return block;
  for (std::size_t i = 0; i < kRowBlock; ++i) padded[i] = i < count ? block[i] : __builtin_nanf("");
  return padded;
}

/// 2^(y + kPower) for y of kSmallestExponent to 0, any value elsewhere: y = n + f with n whole and |f| <= 1/2; n goes
/// into the exponent, and 2^f is a polynomial. Degree 5, fitted to the least squares of the relative error at
/// Chebyshev's nodes; the coefficients were rounded to float32 one by one, the later ones fitted again. Its own error
/// is 1.02e-7.
template <int kPower>
Lanes::Floats exp2_lanes(Lanes::Floats y) {
  static_assert(kPower % 2 == 0, "so that halves go to the same n with every power");
  // 1.5 · 2^23: the last bits of the sum are y + kPower, rounded to whole.
  const Lanes::Floats magic = Lanes::set(12582912.0f + static_cast<float>(kPower));
  const Lanes::Floats shifted = Lanes::add(y, magic);
  const Lanes::Floats f = Lanes::sub(y, Lanes::sub(shifted, magic));
  Lanes::Floats p = Lanes::set(0x1.5ac9b2p-10f);
  p = Lanes::add(Lanes::mul(p, f), Lanes::set(0x1.3cec1ap-7f));
  p = Lanes::add(Lanes::mul(p, f), Lanes::set(0x1.c6b9e8p-5f));
  p = Lanes::add(Lanes::mul(p, f), Lanes::set(0x1.ebf9b6p-3f));
  p = Lanes::add(Lanes::mul(p, f), Lanes::set(0x1.62e426p-1f));
  p = Lanes::add(Lanes::mul(p, f), Lanes::set(1.0f));
  return Lanes::add_exponent(p, shifted);
}

/// Weights times 2^kPower.
template <int kPower = 0>
Lanes::Floats weigh(Lanes::Floats logits, const WeightScale& weights) {
  const Lanes::Floats y = Lanes::mul(Lanes::sub(logits, Lanes::set(weights.largest)), Lanes::set(weights.scale));
  return Lanes::keep(exp2_lanes<kPower>(y), Lanes::at_least(y, Lanes::set(weights.floor)));
}

float block_maximum(const float* block, std::size_t count) {
  float padded[kRowBlock];
  block = whole_block(block, count, padded);
  Lanes::Floats a = Lanes::set(-__builtin_huge_valf());
  Lanes::Floats b = a, c = a, d = a;  // four, since each maximum waits for the last
  for (std::size_t i = 0; i < kRowBlock; i += 4 * kWidth) {
    a = Lanes::max(Lanes::load(block + i), a);
    b = Lanes::max(Lanes::load(block + i + kWidth), b);
    c = Lanes::max(Lanes::load(block + i + 2 * kWidth), c);
    d = Lanes::max(Lanes::load(block + i + 3 * kWidth), d);
  }
  float lanes[kWidth];
  Lanes::store(lanes, Lanes::max(Lanes::max(a, b), Lanes::max(c, d)));
  float largest = lanes[0];
  for (std::size_t l = 1; l < kWidth; ++l) largest = lanes[l] > largest ? lanes[l] : largest;
  return largest;
}

/// Appends the places whose bits are set.
inline std::size_t append(std::uint32_t bits, std::size_t at, std::size_t found, std::int32_t* places) {
  for (; bits != 0; bits &= bits - 1) places[found++] = static_cast<std::int32_t>(at) + __builtin_ctz(bits);
  return found;
}

std::size_t find_at_least(const float* block, std::size_t count, float limit, std::int32_t* places) {
  float padded[kRowBlock];
  block = whole_block(block, count, padded);
  std::size_t found = 0;
  for (std::size_t i = 0; i < kRowBlock; i += kWidth) {
    found = append(Lanes::bits(Lanes::at_least(Lanes::load(block + i), Lanes::set(limit))), i, found, places);
  }
  return found;
}

float weight(float logit, const WeightScale& weights) {
  float lanes[kWidth];
  Lanes::store(lanes, weigh(Lanes::set(logit), weights));
  return lanes[0];
}

float sum_weights(const float* block, std::size_t count, const WeightScale& weights) {
  constexpr std::size_t kSums = kPartialSums / kWidth;
  float padded[kRowBlock];
  block = whole_block(block, count, padded);
  Lanes::Floats sums[kSums];
  MILLRACE_UNROLL for (std::size_t s = 0; s < kSums; ++s) sums[s] = Lanes::set(0.0f);
  for (std::size_t i = 0; i < kRowBlock; i += kPartialSums) {
    MILLRACE_UNROLL for (std::size_t s = 0; s < kSums; ++s) {
      sums[s] = Lanes::add(sums[s], weigh(Lanes::load(block + i + s * kWidth), weights));
    }
  }
  float lanes[kPartialSums];
  MILLRACE_UNROLL for (std::size_t s = 0; s < kSums; ++s) Lanes::store(lanes + s * kWidth, sums[s]);
  for (std::size_t half = kPartialSums / 2; half > 0; half /= 2) {
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

std::uint64_t fill_units(const float* block, std::size_t count, const WeightScale& weights, std::int32_t* units) {
  float padded[kRowBlock];
  block = whole_block(block, count, padded);
  Lanes::UnitSum sum = Lanes::no_units();
  for (std::size_t i = 0; i < kRowBlock; i += 2 * kWidth) {
    const Lanes::Ints a = Lanes::round(weigh<kUnitPower>(Lanes::load(block + i), weights));
    const Lanes::Ints b = Lanes::round(weigh<kUnitPower>(Lanes::load(block + i + kWidth), weights));
    Lanes::store_ints(units + i, a);
    Lanes::store_ints(units + i + kWidth, b);
    sum = Lanes::add_units(sum, Lanes::add_ints(a, b));
  }
  return Lanes::total(sum);
}

struct LimitSum {
  Lanes::Ints below;  // the limit - 1
  Lanes::UnitSum sum = Lanes::no_units();
  Lanes::Ints count = Lanes::set_int(0);

  void add(Lanes::Ints a, Lanes::Ints b) {
    const Lanes::Ints a_reaches = Lanes::greater(a, below), b_reaches = Lanes::greater(b, below);  // -1 where it does
    sum = Lanes::add_units(sum, Lanes::add_ints(Lanes::and_ints(a, a_reaches), Lanes::and_ints(b, b_reaches)));
    count = Lanes::sub_ints(count, Lanes::add_ints(a_reaches, b_reaches));
  }
  [[nodiscard]] std::int64_t total_count() const {
    std::int32_t lanes[kWidth];
    Lanes::store_ints(lanes, count);
    std::int64_t total = 0;
    for (const std::int32_t lane : lanes) total += lane;
    return total;
  }
};

UnitSums sum_units(const std::int32_t* units, std::size_t blocks, std::int32_t limit, std::int32_t other_limit) {
  LimitSum one{Lanes::set_int(limit - 1)}, other{Lanes::set_int(other_limit - 1)};
  for (std::size_t i = 0; i < blocks * kRowBlock; i += 2 * kWidth) {
    const Lanes::Ints a = Lanes::load_ints(units + i), b = Lanes::load_ints(units + i + kWidth);
    one.add(a, b);
    other.add(a, b);
  }
  return {{Lanes::total(one.sum), Lanes::total(other.sum)}, {one.total_count(), other.total_count()}};
}

FoundUnits find_units(const std::int32_t* block, std::int32_t low, std::int32_t high, std::int32_t* places) {
  FoundUnits found;
  Lanes::UnitSum sum = Lanes::no_units();
  const Lanes::Ints below_low = Lanes::set_int(low - 1), below_high = Lanes::set_int(high - 1);
  for (std::size_t i = 0; i < kRowBlock; i += kWidth) {
    const Lanes::Ints lanes = Lanes::load_ints(block + i);
    const Lanes::Ints above = Lanes::greater(lanes, below_high);
    sum = Lanes::add_units(sum, Lanes::and_ints(lanes, above));
    const Lanes::Ints between = Lanes::sub_ints(Lanes::greater(lanes, below_low), above);
    found.count = append(Lanes::bits_of_ints(between), i, found.count, places);
  }
  found.sum_above = Lanes::total(sum);
  return found;
}

constexpr RowKernels make_table(const char* name) {
  return {name, block_maximum, find_at_least, weight, sum_weights, fill_units, sum_units, find_units};
}
