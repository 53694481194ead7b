// Weights that are stored as codes, as floats: for products with inputs that are not rounded. Included inside an
// anonymous namespace (see kernel_table.h).
//
// Where scales are halves every value is exact: a step has at most nine bits, a half eleven.

/// Of a group: value = scale * step + shift.
struct GroupScale {
  Lanes scale, shift;
};

inline GroupScale group_scale(const PackedIntegers& weight, std::int64_t panel, std::int64_t group) {
  const std::int64_t place = panel * weight.groups + group;
  GroupScale of_group{broadcast(1.0f), broadcast(0.0f)};
  if (weight.float_scales != nullptr) of_group.scale = load(weight.float_scales + place * 16);
  if (weight.scales != nullptr) {
    const std::int64_t super = panel * weight.supers + (group >> weight.super_shift);
    of_group.scale = load(reinterpret_cast<const Half*>(weight.scales) + super * 16);
    if (weight.factors != nullptr) of_group.scale = mul(of_group.scale, load(weight.factors + place * 16));
    if (weight.minimums != nullptr) {
      of_group.shift = load(reinterpret_cast<const Half*>(weight.minimums) + super * 16);
      if (weight.minimum_factors != nullptr) {
        of_group.shift = mul(of_group.shift, load(weight.minimum_factors + place * 16));
      }
    }
  }
  if (weight.kind == CodeKind::e2m1) return of_group;  // its zero is of the integer kernels
  Lanes zero = broadcast(static_cast<float>(-weight.zero));
  if (weight.zeros != nullptr) zero = sub(zero, load_unsigned(weight.zeros + place * 16));
  of_group.shift = fma(zero, of_group.scale, of_group.shift);
  return of_group;
}

template <CodeKind kKind>
inline void widen_codes(const PackedIntegers& weight, std::int64_t panel, std::int64_t k, std::int64_t count,
                        float* target) {
  constexpr std::int64_t kInputBytes = kKind == CodeKind::int8 ? 16 : 8;
  const std::byte* codes = weight.codes + (panel * weight.padded_cols + k) * kInputBytes;
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t group = (k + done) / weight.group, left = (group + 1) * weight.group - (k + done);
    const std::int64_t end = left < count - done ? done + left : count;
    GroupScale of_group = group_scale(weight, panel, group);
    of_group.scale = mul(of_group.scale, broadcast(kWidenedUnit));
    for (; done < end; done += 4) {
      Lanes steps[4];
      widen_quad<kKind>(codes + done * kInputBytes, steps);
      MILLRACE_UNROLL for (int i = 0; i < 4; ++i) {
        store(target + (done + i) * 16, fma(steps[i], of_group.scale, of_group.shift));
      }
    }
  }
}

/// Weights of inputs [k, k + count) of a panel as floats [count rounded up to 4][16], less their row scales. k: a
/// multiple of 4.
inline void widen_codes(const PackedIntegers& weight, std::int64_t panel, std::int64_t k, std::int64_t count,
                        float* target) {
  if (weight.kind == CodeKind::int8) {
    widen_codes<CodeKind::int8>(weight, panel, k, count, target);
  } else if (weight.kind == CodeKind::int4) {
    widen_codes<CodeKind::int4>(weight, panel, k, count, target);
  } else {
    widen_codes<CodeKind::e2m1>(weight, panel, k, count, target);
  }
}

/// The same of E4M3, whose groups have scales in single precision.
inline void widen_e4m3(const PackedSegment& weight, std::int64_t panel, std::int64_t k, std::int64_t count,
                       float* target) {
  const auto* codes = reinterpret_cast<const E4m3*>(weight.data) + (panel * weight.cols + k) * 16;
  const std::int64_t groups = (weight.cols + weight.group - 1) / weight.group;
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t group = (k + done) / weight.group, left = (group + 1) * weight.group - (k + done);
    const std::int64_t end = left < count - done ? done + left : count;
    // The unit is a power of two: whether it is taken before or after changes no bit.
    const Lanes scale = mul(load(weight.group_scales + (panel * groups + group) * 16), broadcast(kE4m3Unit));
    for (; done < end; ++done) store(target + done * 16, mul(load(codes + done * 16), scale));
  }
}
