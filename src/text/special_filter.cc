#include "text/special_filter.h"

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

/// A character's place in the order of std::string, which compares bytes.
unsigned char byte(char c) {
  return static_cast<unsigned char>(c);
}

}  // namespace

SpecialTexts::SpecialTexts(std::vector<std::string> tokens, const std::vector<std::string>& keep) {
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  for (std::string& token : tokens) {
    if (token.empty()) continue;
    first_[byte(token[0])] = true;
    const bool kept = std::any_of(keep.begin(), keep.end(),
                                  [&](const std::string& text) { return text.find(token) != std::string::npos; });
    entries_.push_back({std::move(token), kept});
  }
}

void SpecialFilter::push(std::string_view text, std::string& out) {
  for (const char c : text) feed(c, out);
}

void SpecialFilter::feed(char c, std::string& out) {
  if (held_.empty()) {
    if (!texts_->first_[byte(c)]) {
      out += c;
      return;
    }
    low_ = 0;
    high_ = texts_->entries_.size();
  }
  // Narrow the entries down to those that have `c` at the next place; shorter ones come first in the order.
  const std::size_t depth = held_.size();
  const auto begin = texts_->entries_.begin() + static_cast<std::ptrdiff_t>(low_);
  const auto end = texts_->entries_.begin() + static_cast<std::ptrdiff_t>(high_);
  const auto value = [depth](const SpecialTexts::Entry& entry) {
    return entry.text.size() <= depth ? -1 : static_cast<int>(byte(entry.text[depth]));
  };
  const auto first = std::partition_point(begin, end, [&](const auto& entry) { return value(entry) < byte(c); });
  const auto last = std::partition_point(first, end, [&](const auto& entry) { return value(entry) == byte(c); });
  if (first == last) {
    resolve(out);
    feed(c, out);
    return;
  }
  held_ += c;
  low_ = static_cast<std::size_t>(first - texts_->entries_.begin());
  high_ = static_cast<std::size_t>(last - texts_->entries_.begin());
  if (first->text.size() == held_.size()) {
    matched_ = held_.size();
    keep_ = first->keep;
    if (high_ - low_ == 1) resolve(out);
  }
}

void SpecialFilter::resolve(std::string& out) {
  const std::string held = std::exchange(held_, {});
  const std::size_t matched = std::exchange(matched_, 0);
  if (matched == 0 || keep_) out.append(held, 0, std::max<std::size_t>(matched, 1));
  for (const char c : std::string_view(held).substr(std::max<std::size_t>(matched, 1))) feed(c, out);
}

void SpecialFilter::finish(std::string& out) {
  while (!held_.empty()) resolve(out);
}

}  // namespace millrace
