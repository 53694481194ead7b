#include "kv/key_hash.h"

#include "core/philox.h"

namespace millrace {

std::vector<double> hash_planes(const KeyHash& hash, std::uint32_t kv_head, std::int64_t head_dim) {
  std::vector<double> planes(static_cast<std::size_t>(head_dim * kHashLanes), 0.0);
  for (std::int64_t d = 0; d < head_dim; ++d) {
    for (std::int64_t plane = 0; plane < kHashBits; ++plane) {
      std::int64_t sum = 0;
      for (std::uint32_t half = 0; half < 2; ++half) {
        const PhiloxBlock block =
            philox4x32_10({static_cast<std::uint32_t>(d * kHashLanes + plane), half, hash.layer, 2 * kv_head},
                          {static_cast<std::uint32_t>(hash.seed), static_cast<std::uint32_t>(hash.seed >> 32)});
        for (const std::uint32_t word : block) sum += (word & 0xffffu) + (word >> 16);
      }
      planes[static_cast<std::size_t>(d * kHashLanes + plane)] = static_cast<double>(2 * sum - 16 * 0xffff) / 2;
    }
  }
  return planes;
}

std::uint8_t bucket_of(const double* planes, const float* x, std::int64_t head_dim) {
  double sums[kHashLanes] = {};
  for (std::int64_t d = 0; d < head_dim; ++d, planes += kHashLanes) {
    const double number = x[d];
    for (std::int64_t lane = 0; lane < kHashLanes; ++lane) sums[lane] += number * planes[lane];
  }
  std::uint32_t code = 0;
  for (std::uint32_t plane = 0; plane < kHashBits; ++plane) code |= (sums[plane] > 0.0 ? 1u : 0u) << plane;
  code ^= code >> 1;  // the place of a word in the Gray code
  code ^= code >> 2;
  code ^= code >> 4;
  return static_cast<std::uint8_t>(code);
}

}  // namespace millrace
