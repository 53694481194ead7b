// Elementary functions on Lanes. Included inside an anonymous namespace (see kernel_table.h).
//
// Every lane computes the same operations whatever the others hold, and tails are padded, so a value's result depends
// on the value alone. Errors against the exact function, measured by the test cpu_math_test: exp and sigmoid 2 ulp,
// tanh 3 ulp, erf 2 ulp (ulp of the result).

struct ReducedExp {
  Lanes exponent;  // n, an integer
  Lanes excess;    // exp(r) - 1 for the remainder |r| <= ln(2) / 2: exp(x) = 2^n * (1 + excess)
};

/// x in [-105, 105], or NaN. Cody and Waite's two-step reduction ("Software Manual for the Elementary Functions",
/// 1980); then Taylor's series: the first term left out, r^8 / 8!, is below 6e-9.
inline ReducedExp reduce_exp(Lanes x) {
  const Lanes n = round_nearest(mul(x, broadcast(1.44269504f)));
  // ln 2 = 355 / 512 - 2.12194440e-4. The first part has 9 bits, so its product with n is exact.
  Lanes r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Lanes p = broadcast(1.0f / 5040.0f);
  p = fma(p, r, broadcast(1.0f / 720.0f));
  p = fma(p, r, broadcast(1.0f / 120.0f));
  p = fma(p, r, broadcast(1.0f / 24.0f));
  p = fma(p, r, broadcast(1.0f / 6.0f));
  p = fma(p, r, broadcast(0.5f));
  return {n, fma(mul(p, r), r, r)};
}

/// exp(0) is 1 exactly; exp(-inf) is 0; overflows to infinity above 88.72; gradual underflow.
inline Lanes exp(Lanes x) {
  // The bound comes first: a NaN in the second operand passes through.
  x = max(broadcast(-105.0f), min(broadcast(89.0f), x));
  const ReducedExp e = reduce_exp(x);
  // Two factors, as 2^128 and 2^-150 are no floats of their own.
  const Lanes half = round_nearest(mul(e.exponent, broadcast(0.5f)));
  const Lanes value = mul(add(e.excess, broadcast(1.0f)), power_of_two(half));
  return mul(value, power_of_two(sub(e.exponent, half)));
}

inline Lanes sigmoid(Lanes x) {
  return div(broadcast(1.0f), add(broadcast(1.0f), exp(sub(broadcast(0.0f), x))));
}

/// tanh(x) = e / (e + 2) with e = exp(2 |x|) - 1, where the subtraction of 1 loses nothing: e = 2^n excess + (2^n - 1).
inline Lanes tanh(Lanes x) {
  const Lanes twice = min(broadcast(20.0f), mul(broadcast(2.0f), magnitude(x)));  // beyond, the result rounds to 1
  const ReducedExp r = reduce_exp(twice);
  const Lanes scale = power_of_two(r.exponent);
  const Lanes e = fma(scale, r.excess, sub(scale, broadcast(1.0f)));
  return with_sign(div(e, add(e, broadcast(2.0f))), x);
}

/// |x| < 1: x (1 + P(x^2)). Else 1 - exp(-Q(|x|)). P and Q interpolate erf(sqrt(t)) / sqrt(t) - 1 on [0, 1] and
/// -log(erfc(a)) on [1, 4] at Chebyshev nodes (degrees 6 and 8), coefficients rounded to float; both are then off by
/// less than 1e-8 before evaluation.
inline Lanes erf(Lanes x) {
  const Lanes t = mul(x, x);
  Lanes p = broadcast(7.87587487e-5f);
  p = fma(p, t, broadcast(-8.0168643e-4f));
  p = fma(p, t, broadcast(5.18908724e-3f));
  p = fma(p, t, broadcast(-2.68542115e-2f));
  p = fma(p, t, broadcast(0.112835944f));
  p = fma(p, t, broadcast(-0.37612626f));
  p = fma(p, t, broadcast(0.128379167f));
  const Lanes near = fma(x, p, x);

  const Lanes a = min(broadcast(4.0f), magnitude(x));
  Lanes q = broadcast(-1.6371514e-6f);
  q = fma(q, a, broadcast(4.60580413e-5f));
  q = fma(q, a, broadcast(-5.9680565e-4f));
  q = fma(q, a, broadcast(4.7595962e-3f));
  q = fma(q, a, broadcast(-2.64211353e-2f));
  q = fma(q, a, broadcast(0.110080086f));
  q = fma(q, a, broadcast(0.631826043f));
  q = fma(q, a, broadcast(1.13023341f));
  q = fma(q, a, broadcast(-3.2013806e-4f));
  const Lanes far = sub(broadcast(1.0f), exp(sub(broadcast(0.0f), q)));
  return select_less(magnitude(x), broadcast(1.0f), near, with_sign(far, x));
}

/// To the nearest number of E4M3, of a value that is not beyond the largest.
inline Lanes round_to_e4m3(Lanes value) {
  // Three bits behind the leading one are left, or steps of 2^-9: what is added and taken off has its last digit there.
  const Lanes digits = mul(max(power_below(value), broadcast(0x1p-6f)), broadcast(0x1.8p20f));
  return with_sign(min(sub(add(magnitude(value), digits), digits), broadcast(448.0f)), value);
}
