// A hash for names of files and for telling inputs apart; not against those who want two inputs to look the same.
// Source: Fowler, Noll and Vo, FNV-1a with 64 bits (RFC 9923).
#pragma once

#include <cstdint>
#include <string_view>

namespace millrace {

class Fnv1a {
 public:
  /// The bytes of a text; those of two texts in a row are the bytes of their sum.
  constexpr void add(std::string_view text) {
    for (const char c : text) add(static_cast<std::uint64_t>(static_cast<unsigned char>(c)));
  }
  /// A whole value in one step. Of a byte it is FNV-1a's.
  constexpr void add(std::uint64_t value) { hash_ = (hash_ ^ value) * 0x100000001b3u; }

  [[nodiscard]] constexpr std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace millrace
