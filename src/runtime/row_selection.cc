#include "runtime/row_selection.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace millrace {

namespace {

constexpr std::size_t kSortedItems = 64;  // so few are sorted instead of divided again
constexpr std::size_t kRefineBins = 256;
constexpr std::size_t kSample = 2048;
constexpr int kMaxPasses = 6;  // to close in on a limit; then it is found among what is left, however much that is

std::span<const float> block_of(const RowView& row, std::size_t block) {
  const std::size_t begin = block * kRowBlock;
  return row.logits.subspan(begin, std::min(kRowBlock, row.logits.size() - begin));
}

/// At least kSample of `count` places lie this far apart; all of them where there are not so many. Odd, so that it does
/// not fall into step with a layout in powers of two.
std::size_t sample_stride(std::size_t count) {
  return count / kSample > 1 ? (count / kSample - 1) | 1 : 1;
}

void collect_at_least(const RowView& row, float limit, std::vector<RowItem>& items) {
  std::array<std::int32_t, kRowBlock> places;
  items.clear();
  for (std::size_t block = 0; block < row.maxima.size(); ++block) {
    if (!(row.maxima[block] >= limit)) continue;
    const std::span<const float> logits = block_of(row, block);
    const std::size_t found = row.kernels->find_at_least(logits.data(), logits.size(), limit, places.data());
    for (std::size_t i = 0; i < found; ++i) {
      items.push_back(
          {logits[static_cast<std::size_t>(places[i])], static_cast<std::int32_t>(block * kRowBlock) + places[i], 1});
    }
  }
}

/// The first of `sums` at which the running sum reaches `wanted`, or the last; takes what is before it off `wanted`.
template <typename Sums>
std::size_t bin_that_reaches(const Sums& sums, std::uint64_t& wanted) {
  std::size_t bin = 0;
  for (; bin + 1 < sums.size() && sums[bin] < wanted; ++bin) wanted -= sums[bin];
  return bin;
}

/// What is known of the limit that is sought, the lowest unit of the set: it is `low` at least and below `high`.
struct LimitBracket {
  std::int32_t low = 1, high = kUnitsOfOne + 1;
  std::uint64_t sum_low = 0, sum_high = 0;     // of the units that reach low, and high: sum_high < wanted <= sum_low
  std::int64_t count_low = 0, count_high = 0;  // of these
};

struct Limits {
  double low, high;
};

/// A sample of the units, counted by their size: 64 steps to a power of two, which are the upper bits of a float.
class UnitSample {
 public:
  explicit UnitSample(std::span<const std::int32_t> units) {
    for (std::size_t i = 0; i < units.size(); i += sample_stride(units.size())) {
      if (units[i] > 0) ++counts_[step_of(units[i])];
    }
  }

  /// Two limits that should have the right one between them: where the sample, scaled to what is known of the ends of
  /// the bracket, has the wanted sum, and a margin of three standard deviations.
  [[nodiscard]] Limits limits(const LimitBracket& bracket, std::uint64_t wanted) const {
    const std::size_t first = step_of(bracket.low), last = step_of(bracket.high - 1);
    double sum = 0.0, squares = 0.0;
    for (std::size_t step = first; step <= last; ++step) {
      sum += counts_[step] * lowest_of(step);
      squares += counts_[step] * lowest_of(step) * lowest_of(step);
    }
    const double share =
        static_cast<double>(wanted - bracket.sum_high) / static_cast<double>(bracket.sum_low - bracket.sum_high);
    if (last - first < 32 || sum == 0.0) return evenly(bracket, share);
    // However little the sample says, the limits stay apart from the ends.
    const double deviation = std::sqrt(share * (1.0 - share) * squares) / sum;
    const double high_share = share - std::min(3.0 * deviation, 0.75 * share);
    const double low_share = share + std::min(3.0 * deviation, 0.75 * (1.0 - share));
    Limits limits{static_cast<double>(bracket.low), 0.0};
    double reached = 0.0;
    for (std::size_t step = last + 1; step-- > first;) {
      reached += counts_[step] * lowest_of(step);
      if (limits.high == 0.0 && reached >= high_share * sum) limits.high = lowest_of(step + 1);
      limits.low = lowest_of(step);
      if (reached >= low_share * sum) break;
    }
    return limits;
  }

 private:
  static constexpr std::uint32_t kShift = 17, kFirst = 127u << 6, kSteps = (31u << 6) + 1;

  static std::size_t step_of(std::int32_t unit) {
    return (std::bit_cast<std::uint32_t>(static_cast<float>(unit)) >> kShift) - kFirst;
  }
  static double lowest_of(std::size_t step) {
    return static_cast<double>(std::bit_cast<float>((static_cast<std::uint32_t>(step) + kFirst) << kShift));
  }
  /// … as if the units of the bracket were spread evenly.
  static Limits evenly(const LimitBracket& bracket, double share) {
    const double width = bracket.high - bracket.low, middle = bracket.high - width * share;
    return {middle - width / 16.0, middle + width / 16.0};
  }

  std::array<std::uint16_t, kSteps> counts_{};
};

std::int32_t limit_within(const LimitBracket& bracket, double limit) {
  return static_cast<std::int32_t>(
      std::clamp(limit, static_cast<double>(bracket.low + 1), static_cast<double>(bracket.high - 1)));
}

LimitBracket bracket_limit(const RowKernels& kernels, std::span<const std::int32_t> units, std::uint64_t total,
                           std::uint64_t wanted) {
  const auto few = static_cast<std::int64_t>(kRowBlock + units.size() / 128);
  const UnitSample sample(units);
  LimitBracket bracket{.sum_low = total, .count_low = static_cast<std::int64_t>(units.size())};
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    if (bracket.count_low - bracket.count_high <= few || bracket.high - bracket.low == 1) break;
    const Limits guess = sample.limits(bracket, wanted);
    const std::int32_t limits[2] = {limit_within(bracket, guess.low), limit_within(bracket, guess.high)};
    const UnitSums above = kernels.sum_units(units.data(), units.size() / kRowBlock, limits[0], limits[1]);
    for (int i = 0; i < 2; ++i) {
      if (above.sums[i] >= wanted && limits[i] > bracket.low) {
        bracket.low = limits[i];
        bracket.sum_low = above.sums[i];
        bracket.count_low = above.counts[i];
      } else if (above.sums[i] < wanted && limits[i] < bracket.high) {
        bracket.high = limits[i];
        bracket.sum_high = above.sums[i];
        bracket.count_high = above.counts[i];
      }
    }
  }
  return bracket;
}

/// The units from low to below high, and for each block the sum of those above; returns the sum of these sums.
std::uint64_t collect_units(const RowKernels& kernels, std::int32_t low, std::int32_t high, SelectionScratch& scratch) {
  std::array<std::int32_t, kRowBlock> places;
  scratch.found.clear();
  scratch.unit_sums.resize(scratch.units.size() / kRowBlock);
  std::uint64_t sum_above = 0;
  for (std::size_t block = 0; block < scratch.unit_sums.size(); ++block) {
    const std::int32_t* units = &scratch.units[block * kRowBlock];
    const FoundUnits found = kernels.find_units(units, low, high, places.data());
    for (std::size_t i = 0; i < found.count; ++i) {
      const std::int32_t unit = units[places[i]];
      // A float holds each unit exactly: it comes from one, and was rounded only where that had bits to spare.
      scratch.found.push_back({static_cast<float>(unit), static_cast<std::int32_t>(block * kRowBlock) + places[i],
                               static_cast<std::uint64_t>(unit)});
    }
    scratch.unit_sums[block] = found.sum_above;
    sum_above += found.sum_above;
  }
  return sum_above;
}

/// floor(total · uniform), where uniform is a multiple of 2^-24.
std::uint64_t share_of(std::uint64_t total, float uniform) {
  const auto parts = static_cast<std::uint64_t>(uniform * 0x1p24f);
  return (total >> 24) * parts + (((total & 0xffffff) * parts) >> 24);
}

}  // namespace

RowView view_row(const RowKernels& kernels, std::span<const float> logits, std::vector<float>& maxima) {
  maxima.resize((logits.size() + kRowBlock - 1) / kRowBlock);
  RowView row{&kernels, logits, maxima, -std::numeric_limits<float>::infinity()};
  for (std::size_t block = 0; block < maxima.size(); ++block) {
    const std::span<const float> in_block = block_of(row, block);
    maxima[block] = kernels.block_maximum(in_block.data(), in_block.size());
    row.largest = std::max(row.largest, maxima[block]);
  }
  return row;
}

std::int32_t place_of_largest(const RowView& row) {
  const auto block = std::find(row.maxima.begin(), row.maxima.end(), row.largest) - row.maxima.begin();
  const auto begin = row.logits.begin() + block * static_cast<std::ptrdiff_t>(kRowBlock);
  return static_cast<std::int32_t>(std::find(begin, row.logits.end(), row.largest) - row.logits.begin());
}

std::span<RowItem> most_likely_items(const RowView& row, std::size_t k, SelectionScratch& scratch) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  std::vector<float>& sample = scratch.sample;
  float limit = kLowest;
  if (k <= row.maxima.size()) {
    // The k-th largest of the maxima of blocks has k logits at least as large: few others are, unless the row is flat.
    sample.assign(row.maxima.begin(), row.maxima.end());
    const auto kth = sample.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(sample.begin(), kth, sample.end(), std::greater<>());
    limit = std::max(limit, *kth);
  } else if (const std::size_t stride = sample_stride(row.logits.size()); stride > 1) {
    // As many of a sample in proportion, and four standard deviations more.
    sample.clear();
    for (std::size_t i = 0; i < row.logits.size(); i += stride) {
      if (row.logits[i] >= kLowest) sample.push_back(row.logits[i]);
    }
    const double expected = static_cast<double>(k) / static_cast<double>(stride);
    const auto rank = static_cast<std::size_t>(expected + 4.0 * std::sqrt(expected));
    if (rank < sample.size()) {
      const auto ranked = sample.begin() + static_cast<std::ptrdiff_t>(rank);
      std::nth_element(sample.begin(), ranked, sample.end(), std::greater<>());
      limit = *ranked;
    }
  }
  collect_at_least(row, limit, scratch.found);
  if (scratch.found.size() < k && limit > kLowest) collect_at_least(row, kLowest, scratch.found);  // a sample misled
  if (scratch.found.size() > k) {
    scratch.rest = scratch.found;
    const RowItem last = smallest_prefix(scratch.rest, k);
    std::erase_if(scratch.found, [&](const RowItem& item) { return more_likely(last, item); });
  }
  return scratch.found;
}

RowItem smallest_prefix(std::vector<RowItem>& items, std::uint64_t wanted) {
  while (items.size() > kSortedItems) {
    const auto [low, high] = std::minmax_element(items.begin(), items.end(),
                                                 [](const RowItem& a, const RowItem& b) { return a.logit < b.logit; });
    if (low->logit == high->logit || std::isinf(high->logit)) break;  // equals stand in their order already
    // In double precision neither the difference nor the scale can overflow. The largest goes to the first bin and the
    // smallest to the last, so each round leaves some item out.
    const double top = high->logit, scale = kRefineBins / (top - low->logit);
    const auto bin_of = [&](const RowItem& item) {
      return std::min(static_cast<std::size_t>((top - item.logit) * scale), kRefineBins - 1);
    };
    std::array<std::uint64_t, kRefineBins> sums{};
    for (const RowItem& item : items) sums[bin_of(item)] += item.weight;
    const std::size_t bin = bin_that_reaches(sums, wanted);
    std::erase_if(items, [&](const RowItem& item) { return bin_of(item) != bin; });
  }
  if (!std::is_sorted(items.begin(), items.end(), more_likely)) std::sort(items.begin(), items.end(), more_likely);
  std::size_t last = 0;
  for (; last + 1 < items.size() && items[last].weight < wanted; ++last) wanted -= items[last].weight;
  return items[last];
}

double sum_blocks(const RowView& row, const WeightScale& weights, std::vector<double>& block_sums) {
  block_sums.resize(row.maxima.size());
  double total = 0.0;
  for (std::size_t block = 0; block < block_sums.size(); ++block) {
    const std::span<const float> logits = block_of(row, block);
    const bool counts = row.kernels->weight(row.maxima[block], weights) > 0.0f;
    const float sum = counts ? row.kernels->sum_weights(logits.data(), logits.size(), weights) : 0.0f;
    block_sums[block] = static_cast<double>(sum);
    total += block_sums[block];
  }
  return total;
}

std::int32_t draw_by_place(const RowView& row, const WeightScale& weights, float uniform, SelectionScratch& scratch) {
  const double target = static_cast<double>(uniform) * sum_blocks(row, weights, scratch.block_sums);
  // The running sum is the one that made the total, which is above the target.
  std::size_t block = 0;
  double before = 0.0;
  while (before + scratch.block_sums[block] <= target) before += scratch.block_sums[block++];
  const std::span<const float> logits = block_of(row, block);
  std::size_t last = 0;  // one with a weight, for a target that lies in what the block's sum was rounded up by
  double reached = before;
  for (std::size_t i = 0; i < logits.size() && reached <= target; ++i) {
    const float weight = row.kernels->weight(logits[i], weights);
    if (weight > 0.0f) last = i;
    reached += static_cast<double>(weight);
  }
  return static_cast<std::int32_t>(block * kRowBlock + last);
}

std::int32_t draw_in_top_p(const RowView& row, const WeightScale& weights, float top_p, float min_p, float uniform,
                           SelectionScratch& scratch) {
  const RowKernels& kernels = *row.kernels;
  std::vector<std::int32_t>& units = scratch.units;
  units.resize(row.maxima.size() * kRowBlock);
  std::uint64_t total = 0;
  for (std::size_t block = 0; block < row.maxima.size(); ++block) {
    const std::span<const float> logits = block_of(row, block);
    total += kernels.fill_units(logits.data(), logits.size(), weights, &units[block * kRowBlock]);
  }

  const auto wanted = std::max<std::uint64_t>(
      1, static_cast<std::uint64_t>(std::ceil(static_cast<double>(top_p) * static_cast<double>(total))));
  const LimitBracket bracket = bracket_limit(kernels, units, total, wanted);
  std::uint64_t heavy = collect_units(kernels, bracket.low, bracket.high, scratch);
  scratch.rest = scratch.found;
  const RowItem last = smallest_prefix(scratch.rest, wanted - heavy);

  // The set is all above a limit, and of those that reach it the ones up to `last_place`. min_p may raise the limit.
  auto limit = static_cast<std::int32_t>(last.weight);
  std::int32_t last_place = last.place;
  const auto floor = static_cast<std::int32_t>(std::ceil(static_cast<double>(min_p) * kUnitsOfOne));
  if (floor > limit) {
    limit = floor;
    last_place = std::numeric_limits<std::int32_t>::max();
  }
  if (limit != bracket.low || limit + 1 != bracket.high) heavy = collect_units(kernels, limit, limit + 1, scratch);
  std::erase_if(scratch.found, [&](const RowItem& item) { return item.place > last_place; });

  const std::vector<RowItem>& ties = scratch.found;
  std::uint64_t target = share_of(heavy + ties.size() * static_cast<std::uint64_t>(limit), uniform);
  std::size_t block = 0;
  for (std::size_t tie = 0;; ++block) {
    const auto end = static_cast<std::int32_t>((block + 1) * kRowBlock);
    std::uint64_t sum = scratch.unit_sums[block];
    for (; tie < ties.size() && ties[tie].place < end; ++tie) sum += static_cast<std::uint64_t>(limit);
    if (target < sum) break;
    target -= sum;
  }
  for (auto place = static_cast<std::int32_t>(block * kRowBlock);; ++place) {
    const std::int32_t unit = units[static_cast<std::size_t>(place)];
    if (unit < limit || (unit == limit && place > last_place)) continue;
    if (target < static_cast<std::uint64_t>(unit)) return place;
    target -= static_cast<std::uint64_t>(unit);
  }
}

double portable_log2(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752) {
    m *= 2.0;
    --exponent;
  }
  // ln m = 2 · artanh((m - 1) / (m + 1)), whose series ends below the last place after twelve terms for m of √½ to √2.
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double sum = 0.0;
  for (int i = 11; i >= 0; --i) sum = sum * square + 1.0 / (2 * i + 1);
  return exponent + 2.8853900817779268 * (s * sum);  // 2 / ln 2
}

}  // namespace millrace
