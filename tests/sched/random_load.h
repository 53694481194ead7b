// A random life of a scheduler, checked at every step.
#pragma once

#include <cstdint>

namespace millrace {

struct RandomLoadReport {
  std::int64_t steps = 0, rows = 0, completed = 0, cancelled = 0, preemptions = 0, cached_tokens = 0, swaps = 0,
               dropped_pages = 0, freed_pages = 0, failures = 0;
  double slowest = 0.0;  // steps that a sequence took, of the steps that its rank allows it
};

/// Draws limits from `seed` (tiny to moderate page pools, budgets, windows, prefix cache on and off), then runs `steps`
/// steps of arrivals, cancels, holds and steps that fail, and lets everybody end. Aborts where anything is wrong.
/// `thorough`: rows look at every slot they may see, and every invariant is checked in every step instead of now and
/// then. `levels`: the limits are such that several levels take pages from common pools and keep some, most of them
/// unequally many.
RandomLoadReport run_random_load(std::uint32_t seed, std::int64_t steps, bool thorough, bool levels = false);

}  // namespace millrace
