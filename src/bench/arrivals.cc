#include "bench/arrivals.h"

#include <cmath>

#include "core/philox.h"

namespace millrace::bench {

std::vector<double> poisson_arrivals(double rate, std::int64_t count, std::uint64_t seed) {
  constexpr std::uint32_t kPurpose = 0x300;  // what the numbers are for: apart from those of bench/prompt.cc
  std::vector<double> arrivals(static_cast<std::size_t>(count), 0.0);
  if (std::isinf(rate)) return arrivals;
  double now = 0.0;
  for (std::int64_t i = 0; i < count; ++i) {
    const PhiloxBlock block =
        philox4x32_10({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32), 0, kPurpose},
                      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
    const std::uint64_t bits = (std::uint64_t{block[0]} << 21) ^ (block[1] >> 11);
    const double uniform = (static_cast<double>(bits) + 1.0) * 0x1p-53;  // in (0, 1]: its logarithm is finite
    now += -std::log(uniform) / rate;
    arrivals[static_cast<std::size_t>(i)] = now;
  }
  return arrivals;
}

}  // namespace millrace::bench
