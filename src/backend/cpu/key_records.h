// Keys of single positions, which lie across their pages, so that one touches all lines of its page: from pages to
// records, each of which is one key, and from records in any order to pages again. Values lie in one piece, and stay
// where they are until then.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"

namespace millrace {

/// What one kv head has at one position: its key, and the scales and middles of key and value, each filled up to 16
/// bytes.
class KeyRecords {
 public:
  /// Of pages of 16 positions.
  KeyRecords(KvFormat format, std::int64_t head_dim);

  [[nodiscard]] std::size_t bytes() const { return bytes_; }

  /// The 16 positions of a page, of kv head `kv_head` of `kv_heads`, to targets[0 … 15]. Targets are aligned to 16.
  /// `next`: the page that will be wanted then.
  void scatter(const KvLayer& kv, std::int32_t page, std::int64_t kv_head, std::int64_t kv_heads,
               std::byte* const* targets, std::int32_t next) const;

  /// The value of a kv head at a slot of a page.
  [[nodiscard]] const std::byte* value(const KvLayer& kv, std::int32_t page, std::int64_t kv_head,
                                       std::int64_t slot) const {
    return kv.pages + static_cast<std::size_t>(page) * kv.page_bytes + kv.value_offset +
           static_cast<std::size_t>(kv_head * kv.page_tokens + slot) * row_bytes_;
  }
  [[nodiscard]] std::size_t value_bytes() const { return row_bytes_; }

  /// Pages for one kv head: where things lie in them. `pages` is null.
  [[nodiscard]] const KvLayer& layer() const { return layer_; }
  /// Sixteen records and values to a page of these, aligned to 16. A null value is zeros.
  void fill(const std::byte* const* records, const std::byte* const* values, std::byte* page) const;

 private:
  KvLayer layer_;
  std::size_t element_bytes_, elements_, row_bytes_, scales_;  // of a key or value
  std::size_t scales_at_, bytes_;                              // in a record
};

}  // namespace millrace
