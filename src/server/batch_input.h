// BatchInput: the requests of a batch file, those that are not answered yet, in the order of the file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "server/batch_file.h"
#include "server/batch_line.h"

namespace millrace {

/// A longer line is answered with an error.
constexpr std::size_t kBatchLineBytes = std::size_t{32} << 20;
/// Requests of a file. Memory is bounded by it: 8 bytes a request, and 24 more while the file is opened.
constexpr std::size_t kBatchMaxRequests = 20'000'000;

class BatchInput {
 public:
  /// Reads all of the file once. Errors: no regular file; two lines with the same custom_id (with their numbers); too
  /// many requests.
  static Result<BatchInput> open(const std::string& path);

  [[nodiscard]] const OpenFile& file() const { return file_; }
  /// Lines that are not blank.
  [[nodiscard]] std::int64_t requests() const { return static_cast<std::int64_t>(hashes_.size()); }

  enum class Mark : std::uint8_t { done, twice, unknown };
  /// Says that a request is answered, so that next() passes it over. `twice`: that was said before. `unknown`: no line
  /// of this file has that number and hash.
  Mark mark_answered(const BatchKey& key);

  struct Item {
    BatchKey key;
    BatchLine line;
  };
  /// Empty after the last. Errors: reading fails, or the file has changed since it was opened.
  Result<std::optional<Item>> next();

 private:
  explicit BatchInput(OpenFile file);
  Status index();
  [[nodiscard]] Error changed() const;

  OpenFile file_;
  std::vector<std::uint64_t> hashes_;  // of each request's line
  std::vector<bool> answered_;
  std::optional<LineReader> reader_;  // of next(); begins with its first call, when file_ has its place
  std::size_t next_ = 0;
};

}  // namespace millrace
