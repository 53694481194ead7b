#include "cluster/router.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "cluster/prefix_hash.h"
#include "core/check.h"

namespace millrace {

namespace {

constexpr float kAlike = 1.05f;  // scores within this of the best are taken for equal, and drawn by lot
constexpr std::uint64_t kUsable = std::uint64_t{1} << 63;  // a label of every node that may be used
constexpr std::size_t kMostMatches = 64;

}  // namespace

std::vector<std::uint64_t> PrefixIndex::pages_of(std::string_view salt, std::span<const std::int32_t> prompt) {
  std::vector<std::uint64_t> pages;
  PrefixHash hash(salt);
  for (std::size_t i = 0; i + 1 < prompt.size(); ++i) {
    if (const auto page = hash.add(prompt[i])) pages.push_back(*page);
  }
  return pages;
}

void PrefixIndex::add(NodeIndex node, std::span<const std::uint64_t> pages) {
  std::unordered_set<std::uint64_t>& held = held_[node];
  for (const std::uint64_t page : pages) {
    if (held.insert(page).second) holders_[page].push_back(node);
  }
}

void PrefixIndex::remove(NodeIndex node, std::span<const std::uint64_t> pages) {
  const auto held = held_.find(node);
  if (held == held_.end()) return;
  for (const std::uint64_t page : pages) {
    if (held->second.erase(page) == 0) continue;
    const auto holders = holders_.find(page);
    std::erase(holders->second, node);
    if (holders->second.empty()) holders_.erase(holders);
  }
}

void PrefixIndex::remove_all(NodeIndex node) {
  const auto held = held_.extract(node);
  if (held.empty()) return;
  for (const std::uint64_t page : held.mapped()) {
    const auto holders = holders_.find(page);
    std::erase(holders->second, node);
    if (holders->second.empty()) holders_.erase(holders);
  }
}

void PrefixIndex::find(std::span<const std::uint64_t> pages, std::vector<Match>& matches) const {
  matches.clear();
  // Whoever has a page has had all before it, so how far anybody has them is found by halving.
  std::size_t known = 0, unknown = pages.size() + 1;
  while (unknown - known > 1) {
    const std::size_t middle = known + (unknown - known) / 2;
    (holders_.contains(pages[middle - 1]) ? known : unknown) = middle;
  }
  // Then back over the prompt, an eighth at a time: how much shorter another one is matters less and less.
  for (std::size_t at = known; at > 0 && matches.size() < kMostMatches; at = std::min(at - 1, at - at / 8)) {
    const auto holders = holders_.find(pages[at - 1]);
    if (holders == holders_.end()) continue;
    for (const NodeIndex node : holders->second) {
      if (matches.size() == kMostMatches) break;
      if (std::ranges::find(matches, node, &Match::node) != matches.end()) continue;
      matches.push_back({node, static_cast<std::int64_t>(at)});
    }
  }
}

std::optional<std::uint64_t> Router::label(const std::string& name) {
  if (const auto known = labels_.find(name); known != labels_.end()) return known->second;
  if (labels_.size() == 63) return std::nullopt;  // the last bit is kUsable
  return labels_[name] = std::uint64_t{1} << labels_.size();
}

std::optional<std::uint64_t> Router::find_label(const std::string& name) const {
  const auto known = labels_.find(name);
  return known == labels_.end() ? std::nullopt : std::optional(known->second);
}

void Router::set_node(NodeIndex node, const NodeFacts& facts) {
  MILLRACE_CHECK(facts.speed.prefill > 0.0 && facts.speed.step > 0.0 && facts.places > 0, "node {} has no speed", node);
  if (node >= facts_.size()) {
    const std::size_t count = node + std::size_t{1};
    facts_.resize(count);
    have_.resize(count, 0);
    columns_.resize(count);
    scores_.resize(count, 0.0f);
  }
  if (facts_[node].kv_tokens != facts.kv_tokens || facts.kv_tokens == 0) {
    facts_[node].kv_tokens = facts.kv_tokens;
    set_kv(node, static_cast<double>(facts.kv_tokens));
  }
  facts_[node] = facts;
  have_[node] = facts.usable ? facts.labels | kUsable : 0;
  const NodeSpeed& speed = facts.hoped ? *facts.hoped : facts.speed;
  columns_.inverse_prefill[node] = static_cast<float>(1.0 / speed.prefill);
  columns_.step[node] = static_cast<float>(speed.step);
  columns_.step_per_sequence[node] = static_cast<float>(speed.step_per_sequence);
  columns_.places[node] = static_cast<float>(facts.places);
  columns_.inverse_places[node] = 1.0f / columns_.places[node];
  const double usd = usd_per_second(facts.price);
  columns_.usd_per_prompt_token[node] = static_cast<float>(usd / facts.speed.prefill);
  columns_.usd_per_answer_token[node] =
      static_cast<float>(usd * (facts.speed.step / static_cast<double>(facts.places) + facts.speed.step_per_sequence));
}

void Router::set_kv(NodeIndex node, double free) {
  const auto all = static_cast<double>(facts_[node].kv_tokens);
  const bool known = all > 0.0;
  columns_.kv_free[node] = known ? static_cast<float>(free) : std::numeric_limits<float>::max();
  columns_.inverse_kv_used[node] = known ? static_cast<float>(1.0 / std::max(1.0, all - free)) : 0.0f;
}

void Router::set_load(NodeIndex node, const NodeLoad& load) {
  set_kv(node, static_cast<double>(load.kv_free));
  columns_.sequences[node] = static_cast<float>(load.running + load.waiting);
  columns_.queued[node] = static_cast<float>(load.waiting_tokens);
}

Route Router::route_to(NodeIndex node, const RouteRequest& request) const {
  const Prediction prediction = predict(columns_, node, AskedFor(request.prompt_tokens, request.answer_tokens));
  return {.node = node,
          .ttft = static_cast<double>(prediction.ttft),
          .tpot = static_cast<double>(prediction.tpot),
          .usd = static_cast<double>(prediction.usd),
          .cached_tokens = static_cast<std::int64_t>(columns_.cached[node]),
          .within_slo = prediction.ttft <= static_cast<float>(ttft_room_.part() * request.ttft_slo) &&
                        prediction.tpot <= static_cast<float>(tpot_room_.part() * request.tpot_slo)};
}

void Router::score_all(const RouteRequest& request) {
  const std::size_t count = facts_.size();
  if (policy_ == RoutePolicy::round_robin) {
    for (std::size_t n = 0; n < count; ++n) scores_[n] = static_cast<float>((n + count - turn_ % count) % count);
    return;
  }
  if (policy_ == RoutePolicy::least_loaded) {
    for (std::size_t n = 0; n < count; ++n) scores_[n] = columns_.sequences[n] * columns_.inverse_places[n];
    return;
  }
  const AskedFor asked(request.prompt_tokens, request.answer_tokens);
  if (policy_ == RoutePolicy::prefix_aware) {
    score_by_ttft(columns_, asked, scores_);
  } else {
    score_by_cost(columns_, asked, 1.0f / static_cast<float>(ttft_room_.part() * request.ttft_slo),
                  1.0f / static_cast<float>(tpot_room_.part() * request.tpot_slo), scores_);
  }
}

std::vector<Route> Router::pick(const RouteRequest& request, std::size_t most) {
  const std::uint64_t wanted = request.labels | kUsable;
  prefixes_.find(request.pages, matches_);
  std::erase_if(matches_, [this](const PrefixIndex::Match& match) { return match.node >= columns_.cached.size(); });
  for (const PrefixIndex::Match& match : matches_) {
    columns_.cached[match.node] = static_cast<float>(match.pages * request.page_tokens);
  }
  score_all(request);
  struct Ranked {
    float score;
    std::uint64_t lot;
    NodeIndex node;
  };
  const auto better = [](const Ranked& a, const Ranked& b) {
    return a.score != b.score ? a.score < b.score : a.lot < b.lot;
  };
  std::vector<Ranked> best;  // a heap, the worst on top
  // More than are asked for, as the first is drawn from those that are nearly as good.
  const std::size_t kept = most + 8;
  for (NodeIndex node = 0; node < facts_.size(); ++node) {
    if (best.size() == kept && scores_[node] > best.front().score) continue;
    if ((have_[node] & wanted) != wanted || request.room > facts_[node].context) continue;
    if (std::ranges::find(request.avoid, node) != request.avoid.end()) continue;
    const Ranked ranked{scores_[node], mix_bits(request.lot ^ node), node};
    if (best.size() == kept && !better(ranked, best.front())) continue;
    best.push_back(ranked);
    std::ranges::push_heap(best, better);
    if (best.size() > kept) {
      std::ranges::pop_heap(best, better);
      best.pop_back();
    }
  }
  ++turn_;
  std::ranges::sort(best, better);
  // Many routers see the same beat: were all of them to take the one best node, it would be the worst one next.
  if (policy_ != RoutePolicy::round_robin && !best.empty()) {
    const float alike = best.front().score * kAlike;
    const auto end = std::ranges::find_if(best, [&](const Ranked& ranked) { return ranked.score > alike; });
    std::ranges::sort(best.begin(), end, {}, &Ranked::lot);
    // Of two by lot the one with less to do (Mitzenmacher 2001, "The power of two choices in randomized load
    // balancing").
    const auto load = [this](const Ranked& ranked) {
      return columns_.sequences[ranked.node] * columns_.inverse_places[ranked.node];
    };
    if (end - best.begin() > 1 && load(best[1]) < load(best[0])) std::swap(best[0], best[1]);
  }
  std::vector<Route> routes;
  for (std::size_t i = 0; i < std::min(most, best.size()); ++i) routes.push_back(route_to(best[i].node, request));
  for (const PrefixIndex::Match& match : matches_) columns_.cached[match.node] = 0.0f;
  return routes;
}

}  // namespace millrace
