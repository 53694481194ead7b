// When the requests of a load test start. Pure.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace::bench {

/// `count` arrival times in seconds, ascending: a Poisson process of `rate` requests a second, which is gaps that are
/// exponentially distributed and independent. An infinite rate starts all at 0. A function of its arguments.
std::vector<double> poisson_arrivals(double rate, std::int64_t count, std::uint64_t seed);

}  // namespace millrace::bench
