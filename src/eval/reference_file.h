// What a model as stored says of every token of a text, on disk, so that it is computed once and every recipe is
// compared with it.
//
// A file: its key, then windows, one after the other, each complete or cut off at the end of the file. A position has
// the log-probabilities of the whole vocabulary in 16 bits between the lowest and the highest of them, compressed.
// Where they span 30 nats a step is 0.0005, which leaves an error of some 1e-8 nats in a divergence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"

namespace millrace {

/// One position's distribution.
struct ReferencePosition {
  std::int32_t top = 0;                // the token of the highest logit, of equal ones the lowest id
  std::vector<float> log_probability;  // [vocab]
  std::vector<float> probability;      // [vocab], adds up to 1
};

class ReferenceFile {
 public:
  /// Opens the file, or begins it, with its folder, where there is none or one of another `key`; windows that were not
  /// completed are cut off. One process writes, any number reads. Errors: the file or folder cannot be written; another
  /// process is writing it.
  static Result<ReferenceFile> open(const std::filesystem::path& path, const std::string& key, std::int32_t vocab);

  ReferenceFile(ReferenceFile&&) noexcept;
  ReferenceFile& operator=(ReferenceFile&&) noexcept;
  ~ReferenceFile();

  /// Complete ones: what is there already need not be computed again.
  [[nodiscard]] std::size_t windows() const { return starts_.size(); }

  /// Appends a window: its positions in order, and end_window() for it to count. Errors: the disk is full or fails.
  Status begin_window();
  Status add(std::span<const float> logits);
  Status end_window();

  /// No more windows are wanted: others may read from now on.
  void finish();

  /// A place in a window.
  struct Cursor {
    std::uint64_t at = 0;
    std::uint64_t left = 0;  // positions
  };

  /// The start of a window, and then its positions one after the other; cursor.left must not be 0. Error: the file is
  /// damaged; the message says to remove it.
  Result<Cursor> start_of(std::size_t window);
  Status next(Cursor& cursor, ReferencePosition& position);

 private:
  struct State;
  explicit ReferenceFile(std::unique_ptr<State> state);

  Status begin(const std::string& key);
  Status find_windows();

  std::unique_ptr<State> state_;
  std::vector<std::uint64_t> starts_;  // of complete windows
};

}  // namespace millrace
