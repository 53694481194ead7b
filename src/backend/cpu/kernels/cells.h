// Cells of a prompt's rows and of keys (CellTask). Included inside an anonymous namespace (see kernel_table.h), after
// kv_elements.h.

/// Row 15 of a cell meets position 0 of another, row 14 position 1: with the rows turned round, and in the order in
/// which pages have keys, that is one long product.
constexpr std::int64_t row_of_cell(std::int64_t place) {
  return kCell - 1 - place;
}

/// A page's keys as they are in the computation: [head_dim][kCell].
template <typename Element>
inline void widen_page(const CellTask& task, std::int64_t page, float* target) {
  const AttendArgs& args = *task.args;
  const KvLayer& kv = args.kv;
  const std::byte* const start = kv.pages + static_cast<std::size_t>(task.page_table[page]) * kv.page_bytes;
  const std::int64_t elements = elements_of<Element>(args.head_dim);
  const auto* keys = reinterpret_cast<const Element*>(start + kv.key_offset) + task.kv_head * kCell * elements;
  const float* const scale = reinterpret_cast<const float*>(start + kv.key_scale_offset) + task.kv_head * kCell;
  const float* const middle = scale + args.kv_heads * kCell;
  for (std::int64_t e = 0; e < elements; ++e, keys += kCell, target += kNumbers<Element> * kCell) {
    if constexpr (kNumbers<Element> == 1) {
      store(target, whole_number<Element>(load(keys), scale, middle));
    } else {
      Lanes first, second;
      load_pairs(keys, first, second);
      store(target, whole_number<Element>(first, scale, middle));
      store(target + kCell, whole_number<Element>(second, scale, middle));  // of an odd head_dim into the padding
    }
  }
}
