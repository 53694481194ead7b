#include "audits/audit_score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/check.h"
#include "core/philox.h"

namespace millrace {

namespace {

// Another numeric class may draw the line of a cut (top_p, top_k, min_p) a little elsewhere. Lines within these are
// tried too, and the one that is best for the node counts.
constexpr double kCutMass = 0.01;    // of the kept mass
constexpr double kCutWeight = 0.15;  // of a token's weight, relative

struct Item {
  std::int32_t token = 0;
  double weight = 0.0;  // 1 for the most likely one
};

/// What the reference says of a place, after temperature and before the cuts.
struct Place {
  std::vector<Item> items;  // most likely first
  double own = 0.0;         // weight of the token that is judged
  double tail = 0.0;        // the most that all other tokens can weigh together
};

Place make_place(const TokenLogprobs& reference, double temperature, std::int64_t vocab) {
  Place place;
  const double largest = static_cast<double>(reference.top.front().second);
  double said = 0.0;
  for (const auto& [token, logprob] : reference.top) {
    said += std::exp(static_cast<double>(logprob));
    place.items.push_back({token, std::exp((static_cast<double>(logprob) - largest) / temperature)});
  }
  place.own = std::exp((static_cast<double>(reference.logprob) - largest) / temperature);
  const auto others = static_cast<double>(vocab) - static_cast<double>(place.items.size());
  if (others <= 0.0) return place;
  const double rest = std::max(0.0, 1.0 - said) * std::exp(-largest);
  // Below the least likely one that was said, (p / p0)^(1/T) is at most p / p0 times what it is there. With T above 1
  // it is concave, and the sum is largest where all of the tail is alike.
  const double least = std::exp(static_cast<double>(reference.top.back().second) - largest);
  place.tail = temperature <= 1.0 ? rest * std::pow(least, 1.0 / temperature - 1.0)
                                  : others * std::pow(rest / others, 1.0 / temperature);
  return place;
}

/// How many of the most likely tokens are kept, at least and at most, and whether the tail may be among them.
struct Cut {
  std::size_t least = 0, most = 0;
  bool tail = false;
};

Cut find_cut(const Place& place, const SamplingParams& sampling) {
  const std::vector<Item>& items = place.items;
  Cut cut{items.size(), items.size(), place.tail > 0.0};
  double kept_tail = place.tail;
  if (sampling.top_k > 0 && static_cast<std::size_t>(sampling.top_k) <= items.size()) {
    const auto k = static_cast<std::size_t>(sampling.top_k);
    const double line = items[k - 1].weight;
    cut = {k, k, false};
    kept_tail = 0.0;
    while (cut.least > 1 && items[cut.least - 1].weight <= line * (1.0 + kCutWeight)) --cut.least;
    while (cut.most < items.size() && items[cut.most].weight >= line * (1.0 - kCutWeight)) ++cut.most;
  }
  if (sampling.top_p < 1.0f) {
    double fewest = 0.0, all = 0.0, sum = 0.0;
    for (std::size_t i = 0; i < cut.most; ++i) {
      all += items[i].weight;
      if (i < cut.least) fewest += items[i].weight;
    }
    const double lowest = (static_cast<double>(sampling.top_p) - kCutMass) * fewest;
    const double highest = (static_cast<double>(sampling.top_p) + kCutMass) * (all + kept_tail);
    std::size_t least = 0, most = 0;
    for (std::size_t i = 0; i < cut.most; ++i) {
      sum += items[i].weight;
      if (least == 0 && sum >= lowest) least = i + 1;
      if (most == 0 && sum >= highest) most = i + 1;
    }
    if (least > 0) cut.least = std::min(cut.least, least);
    if (most > 0) {
      cut.most = most;
      cut.tail = false;
    }
  }
  if (sampling.min_p > 0.0f) {
    const double line = static_cast<double>(sampling.min_p);
    const auto kept = [&](double limit) {
      const auto end = std::ranges::find_if(items, [&](const Item& item) { return item.weight < limit; });
      return std::max<std::size_t>(1, static_cast<std::size_t>(end - items.begin()));
    };
    const std::size_t most = kept(line * (1.0 - kCutWeight));
    if (most < items.size()) cut.tail = false;
    cut.most = std::min(cut.most, most);
    cut.least = std::min(cut.least, kept(line * (1.0 + kCutWeight)));
  }
  return cut;
}

}  // namespace

bool can_score(const Placement& placement) {
  return !placement.grammar && !needs_counts(placement.sampling) && placement.sampling.logit_bias.empty();
}

double token_distance(const TokenLogprobs& reference, std::int32_t token, const SamplingParams& sampling,
                      std::int64_t position, std::int64_t vocab) {
  if (reference.top.empty()) return 0.0;  // a row of nothing but NaN: any token is as good
  if (sampling.temperature == 0.0f || sampling.top_k == 1) {
    const double best = std::exp(static_cast<double>(reference.top.front().second));
    return std::max(0.0, best - std::exp(static_cast<double>(reference.logprob)));
  }
  const Place place = make_place(reference, static_cast<double>(sampling.temperature), vocab);
  const Cut cut = find_cut(place, sampling);
  const double uniform =
      static_cast<double>(philox_uniform(sampling.seed, sampling.choice, static_cast<std::uint64_t>(position)));
  double before = 0.0, sum = 0.0;  // of kept tokens: those with lower ids, all
  bool found = false;
  // Nobody knows on which side of the token the tail lies.
  const auto missed_by = [&](double tail) {
    const double low = before / (sum + tail), high = (before + place.own + tail) / (sum + tail);
    return std::max({0.0, low - uniform, uniform - high});
  };
  double nearest = 1.0, kept = 0.0;
  for (std::size_t n = 1; n <= place.items.size(); ++n) {
    const Item& item = place.items[n - 1];
    sum += item.weight;
    if (item.token < token) before += item.weight;
    found = found || item.token == token;
    if (n < cut.least) continue;
    if (n > cut.most) {
      if (found) return std::min(1.0, (sum - kept) / sum + missed_by(0.0));
      continue;
    }
    const double tail = n == cut.most && cut.tail ? place.tail : 0.0;
    if (found || tail > 0.0) nearest = std::min(nearest, missed_by(tail));
    if (n < cut.most) continue;
    if (found || tail > 0.0) return nearest;
    kept = sum;
  }
  return std::min(1.0, 1.0 - kept / (sum + place.tail) + missed_by(place.tail));
}

double answer_score(std::span<const ReferredToken> tokens, const SamplingParams& sampling, std::int64_t first_position,
                    std::int64_t vocab) {
  MILLRACE_CHECK(!tokens.empty(), "an answer without tokens has no score");
  double sum = 0.0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    sum += token_distance(tokens[i].logprobs, tokens[i].token, sampling, first_position + static_cast<std::int64_t>(i),
                          vocab);
  }
  return sum / static_cast<double>(tokens.size());
}

}  // namespace millrace
