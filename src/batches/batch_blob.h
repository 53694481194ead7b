// Bytes of any number in a store whose values are bounded: pieces of one size under `name.0`, `name.1`, ...
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "batches/batch_store.h"

namespace millrace {

constexpr std::size_t kBlobPiece = 256 << 10;  // bytes; the last piece may have fewer

/// Writes from the beginning. What it writes again it writes over, so that two that write the same do no harm.
class BlobWriter {
 public:
  BlobWriter(BatchStore& store, std::string name) : store_(&store), name_(std::move(name)) {}

  Status append(std::string_view bytes);
  /// Writes what is left.
  Status finish();
  [[nodiscard]] std::uint64_t size() const { return size_; }

 private:
  Status write();

  BatchStore* store_;
  std::string name_, piece_;
  std::uint64_t next_ = 0;  // piece
  std::uint64_t size_ = 0;
};

/// Bytes `begin` to `end`. Error, ErrorKind::invalid: they are not all there.
Result<std::string> read_blob(BatchStore& store, const std::string& name, std::uint64_t begin, std::uint64_t end);

}  // namespace millrace
