// Looks for marks at each place of a stream.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace millrace {

/// A small set of texts, none of them the beginning of another.
class MarkSet {
 public:
  enum class Found : std::uint8_t { none, beginning, whole };

  void add(std::string_view mark, int kind) {
    if (mark.empty()) return;
    marks_.emplace_back(mark, kind);
    first_[static_cast<unsigned char>(mark[0])] = true;
  }
  [[nodiscard]] bool may_begin(char c) const { return first_[static_cast<unsigned char>(c)]; }

  /// `text`, not empty, is one of the marks (then `kind` is set), the beginning of one, or neither.
  [[nodiscard]] Found find(std::string_view text, int& kind) const {
    Found found = Found::none;
    for (const auto& [mark, its_kind] : marks_) {
      if (!std::string_view(mark).starts_with(text)) continue;
      if (mark.size() == text.size()) {
        kind = its_kind;
        return Found::whole;
      }
      found = Found::beginning;
    }
    return found;
  }

 private:
  std::vector<std::pair<std::string, int>> marks_;
  std::array<bool, 256> first_{};
};

}  // namespace millrace
