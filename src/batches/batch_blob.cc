#include "batches/batch_blob.h"

#include <algorithm>

namespace millrace {

Status BlobWriter::append(std::string_view bytes) {
  size_ += bytes.size();
  while (!bytes.empty()) {
    const std::size_t taken = std::min(bytes.size(), kBlobPiece - piece_.size());
    piece_.append(bytes.substr(0, taken));
    bytes.remove_prefix(taken);
    if (piece_.size() == kBlobPiece) MILLRACE_CHECK_OK(write());
  }
  return Ok{};
}

Status BlobWriter::finish() {
  return piece_.empty() ? Status(Ok{}) : write();
}

Status BlobWriter::write() {
  MILLRACE_CHECK_OK(store_->put(fmt::format("{}.{}", name_, next_), piece_));
  ++next_;
  piece_.clear();
  return Ok{};
}

Result<std::string> read_blob(BatchStore& store, const std::string& name, std::uint64_t begin, std::uint64_t end) {
  std::string bytes;
  for (std::uint64_t at = begin; at < end;) {
    const std::uint64_t piece = at / kBlobPiece, offset = at % kBlobPiece;
    MILLRACE_TRY(const auto entry, store.get(fmt::format("{}.{}", name, piece)));
    const std::uint64_t wanted = std::min(end - at, kBlobPiece - offset);
    if (!entry || entry->value.size() < offset + wanted) return fail("piece {} of {} is not whole", piece, name);
    bytes.append(entry->value, offset, wanted);
    at += wanted;
  }
  return bytes;
}

}  // namespace millrace
