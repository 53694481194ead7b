#include "kv/page_choice.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "core/philox.h"

namespace millrace {

namespace {

/// NaN is passed over.
float largest(const float* values, std::int64_t count) {
  constexpr std::int64_t kLanes = 16;  // side by side, for the compiler to use
  float best[kLanes];
  std::fill_n(best, kLanes, -std::numeric_limits<float>::infinity());
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) best[j] = values[i + j] > best[j] ? values[i + j] : best[j];
  }
  for (; i < count; ++i) best[0] = values[i] > best[0] ? values[i] : best[0];
  return *std::max_element(best, best + kLanes);
}

/// A number whose order is that of the floats.
std::uint32_t order_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

}  // namespace

PageCandidates page_candidates(const PageSelection& selection, std::int64_t position, std::int32_t page_tokens) {
  const std::int64_t pages = position / page_tokens + 1, most = selection.tokens / page_tokens;
  PageCandidates candidates;
  candidates.first = std::min(pages, (selection.sink_tokens + page_tokens - 1) / page_tokens);
  const std::int64_t recent = std::max<std::int64_t>(1, selection.recent_tokens);
  candidates.end = std::max(candidates.first, std::max<std::int64_t>(0, position - recent + 1) / page_tokens);
  candidates.chosen = std::clamp<std::int64_t>(most - candidates.first - (pages - candidates.end), 0,
                                               candidates.end - candidates.first);
  candidates.by_mass = selection.choice == PageChoice::quest && selection.mass < 1.0;
  if (selection.choice == PageChoice::recent && !candidates.all()) {
    candidates.end -= candidates.chosen;
    candidates.chosen = 0;
  }
  return candidates;
}

const std::vector<std::int32_t>& PageChooser::choose(const PageSelection& selection, const PageCandidates& candidates,
                                                     std::int64_t last_page, const float* scores, std::int64_t queries,
                                                     std::int64_t stride, const PageLot& lot, float scale) {
  const std::int64_t count = candidates.chosen > 0 ? candidates.end - candidates.first : 0;
  worth_.assign(static_cast<std::size_t>(count), -std::numeric_limits<float>::infinity());
  if (candidates.by_mass) wanted_.assign(static_cast<std::size_t>(count), 0);
  if (selection.choice == PageChoice::quest) {
    for (std::int64_t q = 0; q < queries; ++q) {
      const float* const row = scores + q * stride;
      const float best = largest(row, count);
      for (std::int64_t p = 0; p < count; ++p) {
        const float worth = row[p] - best;
        float& known = worth_[static_cast<std::size_t>(p)];
        known = worth > known ? worth : known;
      }
      if (candidates.by_mass) want(row, best, selection.mass, scale);
    }
  } else {
    for (std::int64_t p = 0; p < count; ++p) {
      const PhiloxBlock block =
          philox4x32_10({static_cast<std::uint32_t>(candidates.first + p), static_cast<std::uint32_t>(lot.position),
                         static_cast<std::uint32_t>(lot.position >> 32), lot.kv_head},
                        {lot.layer, 0});
      worth_[static_cast<std::size_t>(p)] = static_cast<float>(block[0] >> 8);
    }
  }
  pages_.clear();
  for (std::int64_t p = 0; p < candidates.first; ++p) pages_.push_back(static_cast<std::int32_t>(p));
  std::int64_t chosen = candidates.chosen;
  if (candidates.by_mass) {
    std::int64_t wanted = 0;
    for (std::size_t p = 0; p < wanted_.size(); ++p) {
      wanted += wanted_[p];
      if (wanted_[p] == 0) worth_[p] = -std::numeric_limits<float>::infinity();
    }
    chosen = std::min(chosen, wanted);
  }
  if (chosen > 0) {
    const Threshold threshold = threshold_of(chosen);
    std::int64_t equal = threshold.equal;
    for (std::int64_t p = 0; p < count; ++p) {
      const std::uint32_t key = order_of(worth_[static_cast<std::size_t>(p)]);
      const bool taken = key > threshold.key || (key == threshold.key && equal-- > 0);
      if (taken) pages_.push_back(static_cast<std::int32_t>(candidates.first + p));
    }
  }
  for (std::int64_t p = candidates.end; p <= last_page; ++p) pages_.push_back(static_cast<std::int32_t>(p));
  return pages_;
}

void PageChooser::want(const float* bounds, float best, double mass, float scale) {
  constexpr std::size_t kSteps = 256;
  constexpr float kPerNat = 8.0f;
  std::array<std::int32_t, kSteps> pages{};
  // How many steps below the best, the last with all that is further; NaN has none.
  const auto step_of = [&](std::size_t p) {
    const float below = (best - bounds[p]) * scale * kPerNat;
    return below < static_cast<float>(kSteps - 1) ? static_cast<std::size_t>(below) : kSteps - 1;
  };
  for (std::size_t p = 0; p < wanted_.size(); ++p) ++pages[step_of(p)];
  static const std::array<double, kSteps> kMassOfPage = [] {
    std::array<double, kSteps> masses{};
    for (std::size_t step = 0; step < kSteps; ++step) {
      masses[step] = std::exp(-(static_cast<double>(step) + 0.5) / static_cast<double>(kPerNat));
    }
    return masses;
  }();
  const auto mass_of = [&](std::size_t step) { return pages[step] * kMassOfPage[step]; };
  double all = 0.0, so_far = 0.0;
  for (std::size_t step = 0; step < kSteps; ++step) all += mass_of(step);
  std::size_t end = 0;
  while (end < kSteps && so_far < mass * all) so_far += mass_of(end++);
  for (std::size_t p = 0; p < wanted_.size(); ++p) {
    if (step_of(p) < end) wanted_[p] = 1;
  }
}

/// By the digits of the keys, from the highest on: how many pages have which tells where the last chosen one is.
PageChooser::Threshold PageChooser::threshold_of(std::int64_t chosen) {
  constexpr int kShifts[] = {21, 10, 0}, kDigits[] = {11, 11, 10};
  Threshold found{.key = 0, .equal = chosen};
  for (int round = 0; round < 3; ++round) {
    const int shift = kShifts[round], digits = kDigits[round];
    counts_.assign(std::size_t{1} << digits, 0);
    for (const float worth : worth_) {
      const std::uint32_t key = order_of(worth);
      const bool alike = round == 0 || key >> (shift + digits) == found.key;
      if (alike) ++counts_[(key >> shift) & ((1u << digits) - 1)];
    }
    std::size_t digit = counts_.size() - 1;
    for (; counts_[digit] < found.equal; --digit) found.equal -= counts_[digit];
    found.key = (found.key << digits) | static_cast<std::uint32_t>(digit);
  }
  return found;
}

}  // namespace millrace
