// What came out of a task's documents with one model, on disk, so that it is computed once.
//
// A text file: a line of JSON with its key, then a line for each document, {"document": hash, "values": [...]}.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/result.h"

namespace millrace {

class OutcomeFile {
 public:
  /// In memory only.
  OutcomeFile() = default;

  /// Opens the file, or begins it, with its folder, where there is none or one of another `key`. A line that was not
  /// completed is cut off. One process at a time has it. Errors: the file or folder cannot be read or written; another
  /// process has it; it is damaged. The message says what to do.
  static Result<OutcomeFile> open(const std::filesystem::path& path, const std::string& key);

  /// The values of a document; null where it has none.
  [[nodiscard]] const std::vector<double>* find(std::uint64_t document) const;

  /// What to say where a document's values are not as many as it must have.
  [[nodiscard]] Error damaged() const;

  /// They are on their way to the disk when this returns: an interrupt does not lose them. Error: the disk is full or
  /// fails.
  Status add(std::uint64_t document, const std::vector<double>& values);

  /// Removes the file from the disk; the values stay.
  void remove();

 private:
  /// An open file, or none.
  class Descriptor {
   public:
    explicit Descriptor(int number = -1) : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
      std::swap(number_, other.number_);
      return *this;
    }
    ~Descriptor();
    [[nodiscard]] int number() const { return number_; }

   private:
    int number_;
  };

  Status read(const std::string& key);
  Status write(const std::string& text);

  std::filesystem::path path_;
  Descriptor file_;
  std::unordered_map<std::uint64_t, std::vector<double>> values_;
};

}  // namespace millrace
