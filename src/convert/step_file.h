// A file that is written piece by piece, can be larger than memory, and can be gone on with after a stop.
//
// The places of its parts are known before the first is written. They go to PATH.part, and what is finished is noted in
// PATH.journal, a line for each step; when all is there, the part gets its name and the journal goes away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "core/result.h"

namespace millrace {

/// What a file begins with, and where the rest goes.
struct StepFileLayout {
  struct Place {
    std::uint64_t offset = 0, bytes = 0;
  };
  std::string header;
  std::map<std::string, Place> places;  // by the names of tensors
  std::uint64_t bytes = 0;              // of the whole file
};

class StepFile {
 public:
  /// Opens PATH.part with room for all of it: reserved where the file system can do that, and otherwise compared with
  /// what is free at the start, which others may take meanwhile. `fingerprint`, one line: what the content depends on;
  /// where a part and a journal with the same one are there, their steps are done, and those of another are replaced.
  /// Errors: PATH is there; PATH.part or PATH.journal is, and not from here; the file cannot be made, the disk has no
  /// room for it, another process writes it.
  static Result<StepFile> open(const std::filesystem::path& path, StepFileLayout layout,
                               const std::string& fingerprint);

  StepFile(StepFile&& other) noexcept;
  StepFile& operator=(StepFile&&) = delete;
  ~StepFile();

  /// The note of a finished step; null where it is not finished.
  [[nodiscard]] const std::string* note(const std::string& step) const;
  [[nodiscard]] std::size_t finished() const { return notes_.size(); }
  /// What is written to until all is there.
  [[nodiscard]] std::filesystem::path part() const { return path_.string() + ".part"; }

  /// Bytes of the tensor from `offset` on. Error: the disk is full or fails.
  Status write(const std::string& tensor, std::uint64_t offset, std::span<const std::byte> bytes);
  /// All tensors of the step are written. `step`: without tabs and ends of lines; `note`: one line, kept with it.
  Status finish(const std::string& step, const std::string& note);
  /// All steps are finished: the file gets its name. Error: a file has it by now, which stays, and the part too.
  Status commit();
  /// Whether something could not be written.
  [[nodiscard]] bool failed() const { return failed_; }
  /// Nothing will come of it: part and journal go away.
  void abandon();

 private:
  StepFile() = default;

  [[nodiscard]] std::filesystem::path journal() const { return path_.string() + ".journal"; }
  Status lock_part();
  Status prepare(const std::string& fingerprint);
  Status take_notes(const std::string& text, const std::string& fingerprint);
  Status start(const std::string& fingerprint);
  Status reserve();
  [[nodiscard]] std::uint64_t part_bytes() const;

  std::filesystem::path path_;
  int file_ = -1, journal_file_ = -1;
  bool failed_ = false;
  StepFileLayout layout_;
  std::map<std::string, std::string> notes_;  // step -> note
};

}  // namespace millrace
