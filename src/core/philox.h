// Philox4x32-10, a counter-based random number generator.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
//
// A draw is a pure function of (key, counter), so a token's random number depends on nothing but its own seed, choice
// index and position: not on the batch, the node, or how often it is recomputed.
#pragma once

#include <array>
#include <cstdint>

namespace millrace {

using PhiloxBlock = std::array<std::uint32_t, 4>;

constexpr PhiloxBlock philox4x32_10(PhiloxBlock counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * counter[0];
    const std::uint64_t p1 = 0xCD9E8D57ull * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

/// Uniform in [0, 1) with 24 bits, for the token at `position` of choice `choice` of a request with seed `seed`.
constexpr float philox_uniform(std::uint64_t seed, std::uint32_t choice, std::uint64_t position) {
  const PhiloxBlock block =
      philox4x32_10({static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32), choice, 0},
                    {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return static_cast<float>(block[0] >> 8) * 0x1p-24f;
}

}  // namespace millrace
