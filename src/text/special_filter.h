// Takes the texts of special tokens out of a stream of text.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

/// Immutable. Some models have thousands of special tokens, most of them reserved.
class SpecialTexts {
 public:
  /// `keep`: a token that is part of one of these passes.
  SpecialTexts(std::vector<std::string> tokens, const std::vector<std::string>& keep);

 private:
  friend class SpecialFilter;
  struct Entry {
    std::string text;
    bool keep = false;
  };
  std::vector<Entry> entries_;  // sorted by text
  std::array<bool, 256> first_{};
};

/// Finds the longest token at each place, from left to right. Holds back no more than the longest token.
class SpecialFilter {
 public:
  explicit SpecialFilter(std::shared_ptr<const SpecialTexts> texts) : texts_(std::move(texts)) {}

  void push(std::string_view text, std::string& out);
  void finish(std::string& out);

 private:
  void feed(char c, std::string& out);
  void resolve(std::string& out);  // what is held cannot become a longer token

  std::shared_ptr<const SpecialTexts> texts_;
  std::string held_;                // the beginning of a token
  std::size_t low_ = 0, high_ = 0;  // the entries that begin with it
  std::size_t matched_ = 0;         // length of the longest whole token in it
  bool keep_ = false;               // what to do with that one
};

}  // namespace millrace
