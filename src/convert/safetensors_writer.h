// A safetensors file that is written piece by piece, can be larger than memory, and can be gone on with after a stop.
//
// The tensors' places are known before the first is written. They go to PATH.part, and what is finished is noted in
// PATH.journal, a line for each step; when all is there, the part gets its name and the journal goes away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

struct OutputTensor {
  std::string name;
  std::string_view dtype;  // as safetensors names it: "F32", "I8", ...
  std::vector<std::int64_t> shape;

  [[nodiscard]] std::uint64_t bytes() const;
};

class SafetensorsWriter {
 public:
  /// Opens PATH.part with room for the tensors, one after the other. `fingerprint`, one line: what the content depends
  /// on; where a part and a journal with the same one are there, their steps are done. Errors: the file cannot be made,
  /// the disk has no room for it, another process writes it.
  static Result<SafetensorsWriter> open(const std::filesystem::path& path, const std::vector<OutputTensor>& tensors,
                                        const std::string& fingerprint);

  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;
  ~SafetensorsWriter();

  /// The note of a finished step; null where it is not finished.
  [[nodiscard]] const std::string* note(const std::string& step) const;
  [[nodiscard]] std::size_t finished() const { return notes_.size(); }

  /// Bytes of the tensor from `offset` on. Error: the disk is full or fails.
  Status write(const std::string& tensor, std::uint64_t offset, std::span<const std::byte> bytes);
  /// All tensors of the step are written. `note`: one line, kept with it.
  Status finish(const std::string& step, const std::string& note);
  /// All steps are finished: the file gets its name.
  Status commit();

 private:
  SafetensorsWriter() = default;

  [[nodiscard]] std::filesystem::path part() const { return path_.string() + ".part"; }
  [[nodiscard]] std::filesystem::path journal() const { return path_.string() + ".journal"; }
  Status read_journal(const std::string& fingerprint);
  Status start(std::string_view header, const std::string& fingerprint, std::uint64_t total);

  std::filesystem::path path_;
  int file_ = -1, journal_file_ = -1;
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> places_;  // tensor -> where, bytes
  std::map<std::string, std::string> notes_;                               // step -> note
};

}  // namespace millrace
