// BatchOutput: where the records of a batch go, in whatever order answers come. The file itself says what is answered;
// there is no other state, so that a run may end at any moment and the next one goes on.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/result.h"
#include "server/batch_file.h"
#include "server/batch_input.h"

namespace millrace {

class BatchOutput {
 public:
  /// Opens or makes the file, locks it (flock) for as long as this lives, and marks in `input` what it answers. What a
  /// run that was killed left unfinished at its end is cut off; its request is then not answered. After a loss of power
  /// a file system may show zeros where bytes had not reached the disk: what begins with a line that has one is cut off
  /// as well.
  ///
  /// Errors: no regular file, or the input itself; somebody else holds the lock; a record that answers no request of
  /// `input`, or one a second time; a line that is no record.
  static Result<BatchOutput> open(const std::string& path, BatchInput& input);

  /// Writes a record, which ends with its newline. On an error (a full disk) nothing of it is left. Now and then it
  /// waits until all is on the disk, so that a loss of power costs a few seconds of work. It costs no answer: what is
  /// lost of the file is answered again.
  Status append(std::string_view record);

  /// Waits until all is on the disk.
  Status sync();

  /// Records in the file.
  [[nodiscard]] std::int64_t records() const { return records_; }
  /// What open() has cut off.
  [[nodiscard]] std::uint64_t cut_bytes() const { return cut_bytes_; }

 private:
  explicit BatchOutput(OpenFile file);
  Status recover(BatchInput& input);
  Error take_back(Error error);

  OpenFile file_;
  std::uint64_t bytes_ = 0;  // of whole records
  std::int64_t records_ = 0;
  std::uint64_t cut_bytes_ = 0;
  std::chrono::steady_clock::time_point synced_;
};

}  // namespace millrace
