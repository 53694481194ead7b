// Finds stop strings in a stream of text pieces, also where one lies across the border of two tokens.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

/// Text goes in piece by piece; what cannot be part of a stop string any more comes out. When a stop string is complete
/// the text before it comes out and stopped() is true; the stop string itself and what follows are never emitted. Of
/// two stop strings the one that ends first wins, of two that end at once the longer one.
class StopStrings {
 public:
  /// Empty strings are ignored.
  explicit StopStrings(std::vector<std::string> stops);

  [[nodiscard]] std::string push(std::string_view text);
  /// The text that was held back, when the stream ends without a stop string.
  [[nodiscard]] std::string finish();
  [[nodiscard]] bool stopped() const { return stopped_; }
  /// The stop string that was found; empty before.
  [[nodiscard]] const std::string& found() const { return found_; }

 private:
  [[nodiscard]] std::size_t held_back() const;

  std::vector<std::string> stops_;
  std::string pending_, found_;
  bool stopped_ = false;
};

}  // namespace millrace
