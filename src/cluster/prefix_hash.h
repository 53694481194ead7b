// PrefixHash: how the beginning of a prompt is known to gateways and nodes: by a number for each page of its tokens,
// which depends on all tokens before and on whose shared context it is.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/fnv.h"

namespace millrace {

/// A number, well mixed (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", fig. 15).
constexpr std::uint64_t mix_bits(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
  value = (value ^ value >> 27) * 0x94d049bb133111ebu;
  return value ^ value >> 31;
}

class PrefixHash {
 public:
  static constexpr std::int64_t kPageTokens = 16;

  /// `salt`: whose context it is (Request::cache_salt). Equal tokens of others have other numbers.
  explicit PrefixHash(std::string_view salt) {
    hash_.add(salt);
    hash_.add(std::uint64_t{salt.size()} << 32);
  }

  /// The next token. The number of the page that it completes, if it does.
  std::optional<std::uint64_t> add(std::int32_t token) {
    hash_.add(static_cast<std::uint64_t>(static_cast<std::uint32_t>(token)) + 1);
    if (++tokens_ % kPageTokens != 0) return std::nullopt;
    return mix_bits(hash_.value());
  }

 private:
  Fnv1a hash_;
  std::int64_t tokens_ = 0;
};

}  // namespace millrace
