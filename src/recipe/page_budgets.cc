#include "recipe/page_budgets.h"

#include <algorithm>

#include "recipe/attention_profile.h"

namespace millrace {

namespace {

/// Pages for a unit of need with which layers that get `least` or in proportion come to `all`.
double pages_of_unit(std::span<const double> needs, double all, double least) {
  std::vector<double> ascending(needs.begin(), needs.end());
  std::ranges::sort(ascending);
  double need = 0.0;
  for (const double of_layer : ascending) need += of_layer;
  // Those with the smallest needs have the least, as long as their part would be smaller.
  for (const double of_layer : ascending) {
    if (of_layer * all >= least * need) break;
    all -= least;
    need -= of_layer;
  }
  return need > 0.0 ? std::max(all, 0.0) / need : 0.0;
}

}  // namespace

std::int64_t least_tokens(const PageSelection& selection) {
  const auto whole = [](std::int64_t tokens) { return (tokens + kProfilePage - 1) / kProfilePage * kProfilePage; };
  return whole(selection.sink_tokens) + kProfilePage + whole(selection.recent_tokens - 1) + kProfilePage;
}

std::vector<std::int64_t> page_budgets(std::span<const double> needs, std::int64_t mean, std::int64_t least) {
  std::vector<std::int64_t> pages;
  std::int64_t left = mean * static_cast<std::int64_t>(needs.size());
  const double unit = pages_of_unit(needs, static_cast<double>(left), static_cast<double>(least));
  // What one at a time would give each of them at least, less what rounding may have added, so that few remain.
  constexpr double kRounded = 1.0 - 1e-9;
  for (const double need : needs) {
    pages.push_back(std::max(least, static_cast<std::int64_t>(need * unit * kRounded) - 1));
    left -= pages.back();
  }
  for (; left > 0; --left) {
    std::size_t poorest = 0;
    const auto lacks = [&](std::size_t l) { return needs[l] / static_cast<double>(pages[l] + 1); };
    for (std::size_t l = 1; l < needs.size(); ++l) {
      if (lacks(l) > lacks(poorest)) poorest = l;
    }
    ++pages[poorest];
  }
  return pages;
}

}  // namespace millrace
