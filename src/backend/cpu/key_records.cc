#include "backend/cpu/key_records.h"

#include <cstring>
#include <vector>

#include "core/check.h"
#include "kv/page_layout.h"

namespace millrace {

namespace {

constexpr std::size_t kSlots = 16, kVectorBytes = 16;  // of a page; what a processor surely takes at once

std::size_t padded(std::size_t bytes) {
  return (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
}

template <typename T>
struct VectorOf {
  using Type [[gnu::vector_size(kVectorBytes)]] = T;
};
template <typename T>
using Vector = typename VectorOf<T>::Type;

/// The first halves of two vectors by turns, and the second.
Vector<std::uint8_t> low_by_turns(Vector<std::uint8_t> a, Vector<std::uint8_t> b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
Vector<std::uint8_t> high_by_turns(Vector<std::uint8_t> a, Vector<std::uint8_t> b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
Vector<std::uint16_t> low_by_turns(Vector<std::uint16_t> a, Vector<std::uint16_t> b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
Vector<std::uint16_t> high_by_turns(Vector<std::uint16_t> a, Vector<std::uint16_t> b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
Vector<std::uint32_t> low_by_turns(Vector<std::uint32_t> a, Vector<std::uint32_t> b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
Vector<std::uint32_t> high_by_turns(Vector<std::uint32_t> a, Vector<std::uint32_t> b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

/// Rows to columns of a square. Laying rows i and i + side / 2 by turns rotates the bits of all places by one, so that
/// after as many rounds as a row's place has bits rows and columns have changed places.
template <typename T>
void transpose(Vector<T>* rows) {
  constexpr std::size_t kSide = kVectorBytes / sizeof(T);
  for (std::size_t round = 1; round < kSide; round *= 2) {
    Vector<T> turned[kSide];
    for (std::size_t i = 0; i < kSide / 2; ++i) {
      turned[2 * i] = low_by_turns(rows[i], rows[i + kSide / 2]);
      turned[2 * i + 1] = high_by_turns(rows[i], rows[i + kSide / 2]);
    }
    for (std::size_t i = 0; i < kSide; ++i) rows[i] = turned[i];
  }
}

template <typename T>
Vector<T> load(const std::byte* from) {
  Vector<T> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

/// Rows are short: a call for each would take longer than the copy.
void copy_row(std::byte* target, const std::byte* source, std::size_t bytes) {
  std::size_t at = 0;
  for (; at + kVectorBytes <= bytes; at += kVectorBytes) {
    const Vector<std::uint8_t> vector = load<std::uint8_t>(source + at);
    std::memcpy(target + at, &vector, kVectorBytes);
  }
  for (; at < bytes; ++at) target[at] = source[at];
}

/// Asks for memory ahead of its use: pages lie anywhere, and the processor does not foresee them.
void prefetch(const std::byte* from, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
}

/// Keys of a page [elements][kSlots] to rows of their own.
template <typename T>
void keys_to_rows(const std::byte* keys, std::size_t elements, std::byte* const* targets) {
  constexpr std::size_t kSide = kVectorBytes / sizeof(T);
  for (std::size_t e = 0; e < elements; e += kSide) {
    for (std::size_t slot = 0; slot < kSlots; slot += kSide) {
      Vector<T> rows[kSide] = {};
      const std::size_t count = elements - e < kSide ? elements - e : kSide;
      for (std::size_t i = 0; i < count; ++i) rows[i] = load<T>(keys + ((e + i) * kSlots + slot) * sizeof(T));
      transpose<T>(rows);
      for (std::size_t i = 0; i < kSide; ++i) std::memcpy(targets[slot + i] + e * sizeof(T), &rows[i], kVectorBytes);
    }
  }
}

/// And back.
template <typename T>
void rows_to_keys(const std::byte* const* sources, std::size_t elements, std::byte* keys) {
  constexpr std::size_t kSide = kVectorBytes / sizeof(T);
  for (std::size_t e = 0; e < elements; e += kSide) {
    for (std::size_t slot = 0; slot < kSlots; slot += kSide) {
      Vector<T> rows[kSide];
      for (std::size_t i = 0; i < kSide; ++i) rows[i] = load<T>(sources[slot + i] + e * sizeof(T));
      transpose<T>(rows);
      const std::size_t count = elements - e < kSide ? elements - e : kSide;
      for (std::size_t i = 0; i < count; ++i) {
        std::memcpy(keys + ((e + i) * kSlots + slot) * sizeof(T), &rows[i], kVectorBytes);
      }
    }
  }
}

}  // namespace

KeyRecords::KeyRecords(KvFormat format, std::int64_t head_dim)
    : element_bytes_(kv_element_bytes(format)),
      elements_(kv_elements(format, static_cast<std::size_t>(head_dim))),
      row_bytes_(elements_ * element_bytes_),
      scales_(kv_scales(format)),
      scales_at_(padded(row_bytes_)),
      bytes_(scales_at_ + padded(2 * scales_ * sizeof(float))) {
  const std::vector<KvShape> shape{{.kv_heads = 1, .head_dim = static_cast<std::int32_t>(head_dim)}};
  const PageLayout layout = make_page_layout(shape, kSlots, format);
  const KvPlace& place = layout.layers.front();
  layer_.page_bytes = layout.groups.front().page_bytes;
  layer_.key_offset = place.key_offset;
  layer_.value_offset = place.value_offset;
  layer_.key_scale_offset = place.key_scale_offset;
  layer_.value_scale_offset = place.value_scale_offset;
  layer_.page_tokens = kSlots;
  layer_.format = format;
}

void KeyRecords::scatter(const KvLayer& kv, std::int32_t page, std::int64_t kv_head, std::int64_t kv_heads,
                         std::byte* const* targets, std::int32_t next) const {
  const std::byte* const start = kv.pages + static_cast<std::size_t>(page) * kv.page_bytes;
  const std::size_t slab = static_cast<std::size_t>(kv_head) * kSlots * row_bytes_;
  const std::byte* const keys = start + kv.key_offset + slab;
  const std::byte* const later = kv.pages + static_cast<std::size_t>(next) * kv.page_bytes;
  prefetch(later + kv.key_offset + slab, kSlots * row_bytes_);
  switch (element_bytes_) {
    case 1:
      keys_to_rows<std::uint8_t>(keys, elements_, targets);
      break;
    case 2:
      keys_to_rows<std::uint16_t>(keys, elements_, targets);
      break;
    default:
      keys_to_rows<std::uint32_t>(keys, elements_, targets);
  }
  for (std::size_t s = 0; s < scales_; ++s) {
    const std::size_t first = (s * static_cast<std::size_t>(kv_heads) + static_cast<std::size_t>(kv_head)) * kSlots;
    for (std::size_t slot = 0; slot < kSlots; ++slot) {
      const std::size_t place = (first + slot) * sizeof(float), at = scales_at_ + 2 * s * sizeof(float);
      std::memcpy(targets[slot] + at, start + kv.key_scale_offset + place, sizeof(float));
      std::memcpy(targets[slot] + at + sizeof(float), start + kv.value_scale_offset + place, sizeof(float));
    }
  }
}

void KeyRecords::fill(const std::byte* const* records, const std::byte* const* values, std::byte* page) const {
  std::byte* const keys = page + layer_.key_offset;
  switch (element_bytes_) {
    case 1:
      rows_to_keys<std::uint8_t>(records, elements_, keys);
      break;
    case 2:
      rows_to_keys<std::uint16_t>(records, elements_, keys);
      break;
    default:
      rows_to_keys<std::uint32_t>(records, elements_, keys);
  }
  for (std::size_t slot = 0; slot < kSlots; ++slot) {
    std::byte* const value = page + layer_.value_offset + slot * row_bytes_;
    if (values[slot] != nullptr) {
      copy_row(value, values[slot], row_bytes_);
    } else {
      std::memset(value, 0, row_bytes_);
    }
    for (std::size_t s = 0; s < scales_; ++s) {
      const std::size_t place = (s * kSlots + slot) * sizeof(float), at = scales_at_ + 2 * s * sizeof(float);
      std::memcpy(page + layer_.key_scale_offset + place, records[slot] + at, sizeof(float));
      std::memcpy(page + layer_.value_scale_offset + place, records[slot] + at + sizeof(float), sizeof(float));
    }
  }
}

}  // namespace millrace
