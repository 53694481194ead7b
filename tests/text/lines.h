// Lines of mixed-script Unicode, the same as tools/conformance/text_lines.py makes: a line is a function of its number.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace millrace::test {

class Lines {
 public:
  /// `pieces`: tests/fixtures/text/pieces.json.
  explicit Lines(const nlohmann::json& pieces)
      : texts_(pieces["texts"].get<std::vector<std::string>>()),
        ranges_(pieces["ranges"].get<std::vector<std::pair<std::uint32_t, std::uint32_t>>>()) {}

  [[nodiscard]] std::string line(std::uint64_t number) const {
    Random random{number * 0x2545F4914F6CDD1DU + 1};
    std::string out;
    const std::uint64_t count = 1 + random.below(10);
    for (std::uint64_t i = 0; i < count; ++i) {
      add_piece(random, out);
      if (random.below(2) != 0) out += ' ';
    }
    return out;
  }

 private:
  struct Random {  // SplitMix64
    std::uint64_t state;

    std::uint64_t next() {
      state += 0x9E3779B97F4A7C15U;
      std::uint64_t z = state;
      z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
      z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
      return z ^ (z >> 31U);
    }
    std::uint64_t below(std::uint64_t n) { return (next() >> 11U) % n; }
  };

  static void append(std::string& out, std::uint64_t code) {
    const auto byte = [&](std::uint64_t value) { out += static_cast<char>(value); };
    if (code < 0x80) return byte(code);
    if (code < 0x800) {
      byte(0xC0U | code >> 6U);
    } else {
      if (code < 0x10000) {
        byte(0xE0U | code >> 12U);
      } else {
        byte(0xF0U | code >> 18U);
        byte(0x80U | (code >> 12U & 0x3FU));
      }
      byte(0x80U | (code >> 6U & 0x3FU));
    }
    byte(0x80U | (code & 0x3FU));
  }

  static std::string stripped(std::string text) {
    // Python's strip() on the pieces: all white space that they begin or end with is in this list.
    for (const char* space : {" ", "\n", "\r", "\t", "\v", "\f", "\u00a0", "\u3000", "\u2028", "\u0085"}) {
      const std::string one(space);
      bool again = true;
      while (again) {
        again = false;
        if (text.starts_with(one)) text.erase(0, one.size()), again = true;
        if (text.ends_with(one)) text.resize(text.size() - one.size()), again = true;
      }
    }
    return text;
  }

  void add_piece(Random& random, std::string& out) const {
    const std::uint64_t kind = random.below(16);
    if (kind < 9) {
      out += texts_[random.below(texts_.size())];
    } else if (kind < 12) {
      const auto [first, last] = ranges_[random.below(ranges_.size())];
      const std::uint64_t count = 1 + random.below(8);
      for (std::uint64_t i = 0; i < count; ++i) append(out, first + random.below(last - first + 1));
    } else if (kind == 12) {
      const std::string text = stripped(texts_[random.below(texts_.size())]);
      const std::uint64_t count = 1 + random.below(40);
      for (std::uint64_t i = 0; i < count; ++i) out += text;
    } else if (kind == 13) {
      out += std::string(random.below(12), ' ');
    } else if (kind == 14) {
      const std::uint64_t number = random.next();
      out += std::to_string(number >> random.below(60));
    } else {
      const std::uint32_t first = ranges_[random.below(ranges_.size())].first;
      const std::uint64_t control = random.below(32);
      const std::uint64_t high = 127 + random.below(34);
      const std::uint64_t choices[] = {control, high, first};
      append(out, choices[random.below(3)]);
    }
  }

  std::vector<std::string> texts_;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges_;
};

}  // namespace millrace::test
