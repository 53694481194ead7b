// Where products leave the outputs of a panel. Included inside an anonymous namespace (see kernel_table.h).

/// Where the outputs of a panel go.
struct PanelTarget {
  float* out;  // of the first row
  std::int64_t stride, rows;
  std::int64_t lanes;  // outputs that exist
  const float* bias;   // of the panel, or null
};

/// out[r] = value(r) plus the bias.
template <typename Value>
inline void store_rows(const PanelTarget& a, Value&& value) {
  if (a.bias != nullptr) {
    const Lanes bias = load_part(a.bias, a.lanes);
    for (std::int64_t r = 0; r < a.rows; ++r) store_part(a.out + r * a.stride, add(value(r), bias), a.lanes);
  } else if (a.lanes < 16) {
    for (std::int64_t r = 0; r < a.rows; ++r) store_part(a.out + r * a.stride, value(r), a.lanes);
  } else {
    for (std::int64_t r = 0; r < a.rows; ++r) store(a.out + r * a.stride, value(r));
  }
}

/// take(r, what is there).
template <typename Take>
inline void load_rows(const PanelTarget& a, Take&& take) {
  for (std::int64_t r = 0; r < a.rows; ++r) take(r, load_part(a.out + r * a.stride, a.lanes));
}

template <typename Task>
inline PanelTarget target_of(const Task& task, std::int64_t panel) {
  const std::int64_t left = task.weight.rows - panel * 16;
  return {task.out + panel * 16, task.out_stride, task.rows, left < 16 ? left : 16,
          task.bias != nullptr ? task.bias + panel * 16 : nullptr};
}
