// The inputs of integer products, for all levels. Included inside an anonymous namespace (see kernel_table.h).

/// Of a group of inputs, kRows rows.
template <int kRows>
struct InputBlocks {
  const std::int8_t* codes;  // [kRows][stride]
  std::int64_t stride;
  const std::int32_t* sums;  // pair_sums(), [kRows][sums_stride]
  std::int64_t sums_stride;
  const std::int32_t* totals;  // of all codes before, [kRows][totals_stride]
  std::int64_t totals_stride;
  std::int64_t count;  // a multiple of kInputBlock; of int4, of kIntegerBlock

  /// Of the group's codes of a row.
  [[nodiscard]] std::int32_t total(std::int64_t row) const {
    const std::int32_t* const first = totals + row * totals_stride;
    return first[count / kInputBlock] - first[0];
  }
};
