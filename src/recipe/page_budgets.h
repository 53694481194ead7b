// How many pages each layer's rows of answers may read, where a profile says how many its heads need. Pure.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "recipe/page_selection.h"

namespace millrace {

struct ActivationProfile;

/// Budgets of layers, in place of the one of a PageSelection.
struct PageBudgets {
  std::string profile_file = {};  // as the recipe names it; empty: all layers have the same
  std::shared_ptr<const ActivationProfile> profile = nullptr;  // what stands in it, once it is read
  std::vector<std::int64_t> tokens = {};  // of each layer of the model, once that is known; empty: as above
};

/// The fewest positions that a selection may be told to read: whole pages with the first and the most recent ones, for
/// the sake of the earliest recent one up to a page more, and one that is chosen.
std::int64_t least_tokens(const PageSelection& selection);

/// Pages of layers that need `needs` (above 0), `mean` (>= least) on average: `least` each, and then one at a time to
/// the layer that has least of what it needs, by need / (pages + 1) (D'Hondt's method; of equal ones the earlier). So
/// budgets that are above the least are in proportion to needs, but for whole pages, and a larger mean takes no page
/// from any layer. At most 2^36 pages and 10,000 layers.
std::vector<std::int64_t> page_budgets(std::span<const double> needs, std::int64_t mean, std::int64_t least);

}  // namespace millrace
