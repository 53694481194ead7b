// What attention and rope_store() must know of the elements of keys and values beside load() and store(). Included
// inside an anonymous namespace (see kernel_table.h).

/// What load() gives times this is the number, before scales.
template <typename Element>
constexpr float kUnit = 1.0f;
template <>
constexpr float kUnit<E4m3> = kE4m3Unit;

/// Whether a head's codes have a scale at each position, and a middle beside it: kv_scales().
template <typename Element>
constexpr bool kScaled = false;
template <>
constexpr bool kScaled<Int8> = true;
template <>
constexpr bool kScaled<E4m3> = true;
template <>
constexpr bool kScaled<Int4> = true;
template <typename Element>
constexpr bool kHasMiddle = false;
template <>
constexpr bool kHasMiddle<Int4> = true;

/// Numbers in an element.
template <typename Element>
constexpr int kNumbers = 1;
template <>
constexpr int kNumbers<Int4> = 2;

/// Elements of a head: kv_elements().
template <typename Element>
constexpr std::int64_t elements_of(std::int64_t numbers) {
  return (numbers + kNumbers<Element> - 1) / kNumbers<Element>;
}

// E4M3 without scales keeps NaN, which its neighbour's scale would show: as 480, the value that code would have.

inline Lanes load(const E4m3Unscaled* p) {
  const Lanes value = mul(load(&p->code), broadcast(kE4m3Unit));
  return select_less(magnitude(value), broadcast(480.0f), value, broadcast(__builtin_nanf("")));
}
/// What round_to_unscaled() gave.
inline void store(E4m3Unscaled* p, Lanes v) {
  store(&p->code, mul(v, broadcast(1.0f / kE4m3Unit)));
}
inline Lanes round_to_unscaled(const E4m3Unscaled*, Lanes v) {
  return select_less(broadcast(-1.0f), magnitude(v), round_to_e4m3(v), broadcast(480.0f));
}
/// To the nearest, ties to even; what does not fit becomes the largest, and NaN stays one.
inline Lanes round_to_unscaled(const E5m2*, Lanes v) {
  // As round_to_e4m3(), with two bits behind the leading one or steps of 2^-16. Where this overflows, to infinity or
  // NaN, min() has the largest code for it.
  const Lanes digits = mul(max(power_below(v), broadcast(0x1p-14f)), broadcast(0x1.8p21f));
  const Lanes rounded = with_sign(min(sub(add(magnitude(v), digits), digits), broadcast(57344.0f)), v);
  return select_less(broadcast(-1.0f), magnitude(v), rounded, broadcast(__builtin_nanf("")));
}

/// A number of the keys of 16 positions as it is in the computation.
template <typename Element>
inline Lanes whole_number(Lanes codes, const float* scale, const float* middle) {
  if constexpr (kScaled<Element>) codes = mul(mul(codes, broadcast(kUnit<Element>)), load(scale));
  if constexpr (kHasMiddle<Element>) codes = add(codes, load(middle));
  return codes;
}
