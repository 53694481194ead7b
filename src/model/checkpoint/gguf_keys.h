// Typed reads of GGUF metadata for the translators. The first thing that is wrong is remembered and later reads give
// defaults, so that a translator reads top to bottom and asks for the status once, at its end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "model/checkpoint/gguf_file.h"

namespace millrace {

class GgufKeys {
 public:
  /// `prefix`: of all keys that are asked for, such as "llama."; `what` names the file in messages. Refers to both
  /// `metadata` and `what`.
  GgufKeys(const GgufMetadata& metadata, std::string prefix, std::string_view what)
      : metadata_(metadata), prefix_(std::move(prefix)), what_(what) {}

  [[nodiscard]] bool has(std::string_view key) const;
  /// Integers of any width, 0 to 2^53, what JSON numbers carry exactly.
  std::optional<std::int64_t> integer(std::string_view key);
  std::int64_t required_integer(std::string_view key);  // at least 1
  /// A key that may be one number or an array with one for each of `count` layers; always `count` numbers, or empty
  /// where the key is absent. Booleans count as 0 and 1.
  std::vector<std::int64_t> per_layer(std::string_view key, std::int64_t count);
  /// A finite number. A float32 gives the double of its shortest decimal form: 1e-05f is 1e-05, as in a config.json.
  std::optional<double> number(std::string_view key);
  double required_number(std::string_view key);
  std::optional<bool> flag(std::string_view key);
  std::optional<std::string> text(std::string_view key);
  const GgufArray* array(std::string_view key, GgufType type);

  void refuse(Error error) {
    if (!error_) error_ = std::move(error);
  }
  [[nodiscard]] std::string_view what() const { return what_; }
  [[nodiscard]] Status status() const {
    if (error_) return *error_;
    return Ok{};
  }

 private:
  const GgufValue* find(std::string_view key) const;
  void wrong(std::string_view key, std::string_view expected);

  const GgufMetadata& metadata_;
  std::string prefix_;
  std::string_view what_;
  std::optional<Error> error_;
};

/// The double that the shortest decimal form of `value` denotes.
double shortest_decimal(float value);

}  // namespace millrace
