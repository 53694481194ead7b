// Router: which node a request should run on. Pure: what is known of nodes and of the request in, a ranked list with
// predictions out; times come from outside.
//
// Predictions are simple on purpose, so that what a node is observed to do can set each of their numbers:
//
//   wait = prompt tokens queued / prefill rate, and where all places or all KV memory are taken the time until some is
//          free
//   TTFT = wait + uncached prompt tokens / prefill rate + step
//   TPOT = step + step_per_sequence * sequences
//
//   cost = (uncached prompt tokens / prefill rate + answer tokens * (step / places + step_per_sequence))
//          * ($/h + W * PUE * $/kWh): the node's seconds that are the request's share where all places are taken.
//          By what others happen to do at the moment, full nodes would seem cheap, and would draw more.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cluster/prefix_hash.h"
#include "cluster/router_prediction.h"

namespace millrace {

using NodeIndex = std::uint32_t;

/// What a node does with a model.
struct NodeSpeed {
  double prefill = 1000.0;           // tokens of prompts a second
  double step = 0.02;                // seconds of a step with one sequence that decodes
  double step_per_sequence = 0.001;  // … for each further one

  friend bool operator==(const NodeSpeed&, const NodeSpeed&) = default;
};

/// What its operator says of it.
struct NodePrice {
  double usd_per_hour = 0.0;
  double watts = 0.0;        // while it works
  double pue = 1.0;          // power of the site for each watt of the node
  double usd_per_kwh = 0.0;  // now
};

/// What a second of work costs, power included.
constexpr double usd_per_second(const NodePrice& price) {
  constexpr double kSecondsPerHour = 3600.0, kWattsPerKilowatt = 1000.0;
  return (price.usd_per_hour + price.watts / kWattsPerKilowatt * price.pue * price.usd_per_kwh) / kSecondsPerHour;
}

struct NodeFacts {
  NodeSpeed speed = {};
  /// That times are predicted by, where it may be faster than was seen. Costs go by `speed`: they are what they were
  /// seen to be until something else is.
  std::optional<NodeSpeed> hoped = {};
  NodePrice price = {};
  std::int64_t places = 16;        // sequences that run at once
  std::int64_t kv_tokens = 0;      // of all of them together; 0: not known
  std::int64_t context = 1 << 20;  // tokens of a sequence
  std::uint64_t labels = 0;        // bits, as Router::label() gives them
  bool usable = true;              // ready, and its circuit breaker is closed
};

/// What it has to do: of the caller's requests as the caller knows, of others' as beats say.
struct NodeLoad {
  std::int64_t running = 0, waiting = 0;  // sequences
  std::int64_t waiting_tokens = 0;        // of prompts
  std::int64_t kv_free = 0;               // tokens; looked at where it is known how many there are
};

struct RouteRequest {
  std::int64_t prompt_tokens = 0;
  double answer_tokens = 0.0;                 // that are expected
  std::int64_t room = 0;                      // tokens of a sequence that the node must have
  std::span<const std::uint64_t> pages = {};  // PrefixIndex::pages_of its prompt
  std::int64_t page_tokens = 16;              // of each of them
  std::uint64_t labels = 0;                   // that the node must have: model, quality, region, data class
  double ttft_slo = std::numeric_limits<double>::infinity();  // seconds
  double tpot_slo = std::numeric_limits<double>::infinity();
  std::uint64_t lot = 0;  // anything that differs from request to request
  std::span<const NodeIndex> avoid = {};
};

struct Route {
  NodeIndex node = 0;
  double ttft = 0.0, tpot = 0.0;  // seconds
  double usd = 0.0;
  std::int64_t cached_tokens = 0;
  bool within_slo = false;
};

enum class RoutePolicy : std::uint8_t {
  round_robin,
  least_loaded,     // fewest sequences for its places
  prefix_aware,     // shortest predicted TTFT
  cheapest_in_slo,  // cheapest of those that keep within the SLO with some room; of none, the one that misses it least
};

/// Which nodes have computed which beginnings of prompts. A beginning is known by a hash of all its tokens and of whose
/// shared context it is, one for every page.
class PrefixIndex {
 public:
  static constexpr std::int64_t kPageTokens = PrefixHash::kPageTokens;

  /// The hashes of a prompt's pages, as far as they are full and the next token is not the first of an answer.
  static std::vector<std::uint64_t> pages_of(std::string_view salt, std::span<const std::int32_t> prompt);

  void add(NodeIndex node, std::span<const std::uint64_t> pages);
  void remove(NodeIndex node, std::span<const std::uint64_t> pages);
  void remove_all(NodeIndex node);

  struct Match {
    NodeIndex node = 0;
    std::int64_t pages = 0;
  };
  /// Nodes that have the longest beginnings, longest first; those that have shorter ones may be missing.
  void find(std::span<const std::uint64_t> pages, std::vector<Match>& matches) const;

  [[nodiscard]] std::size_t size() const { return holders_.size(); }

 private:
  std::unordered_map<std::uint64_t, std::vector<NodeIndex>> holders_;
  std::unordered_map<NodeIndex, std::unordered_set<std::uint64_t>> held_;
};

/// Which part of a limit predictions may fill, so that nearly all that were predicted to keep it do. It is moved by
/// what comes: down a little by each one that missed, up by much less by each one that kept it, and rests where one in
/// 200 misses, whatever predictions are worth (Gibbs and Candès 2021, "Adaptive conformal inference under distribution
/// shift").
class SloRoom {
 public:
  void came(bool kept) {
    part_ += kRate * (kept ? kMisses : kMisses - 1.0);
    part_ = part_ < kLeast ? kLeast : (part_ > kMost ? kMost : part_);
  }
  [[nodiscard]] double part() const { return part_; }

 private:
  static constexpr double kMost = 0.9, kLeast = 0.3;
  static constexpr double kMisses = 0.005, kRate = 0.01;

  double part_ = kMost;
};

/// Not thread-safe. Nodes are numbers below a count that grows; what they are called, the caller knows.
class Router {
 public:
  explicit Router(RoutePolicy policy = RoutePolicy::cheapest_in_slo) : policy_(policy) {}
  void set_policy(RoutePolicy policy) { policy_ = policy; }

  /// A bit for a label such as "model=m" or "region=eu". At most 64 in all: none once they are used up.
  std::optional<std::uint64_t> label(const std::string& name);
  /// Of a label that some node has had; none: no node has.
  [[nodiscard]] std::optional<std::uint64_t> find_label(const std::string& name) const;

  void set_node(NodeIndex node, const NodeFacts& facts);
  /// What it has to do now.
  void set_load(NodeIndex node, const NodeLoad& load);

  /// The best nodes, best first, at most `most`. Empty: there is none that may.
  std::vector<Route> pick(const RouteRequest& request, std::size_t most);

  /// Of a request that was predicted to be within the SLO: whether it was.
  void ttft_came(bool kept) { ttft_room_.came(kept); }
  void tpot_came(bool kept) { tpot_room_.came(kept); }

  [[nodiscard]] PrefixIndex& prefixes() { return prefixes_; }
  [[nodiscard]] const NodeFacts& facts(NodeIndex node) const { return facts_[node]; }
  [[nodiscard]] std::size_t count() const { return facts_.size(); }

 private:
  [[nodiscard]] Route route_to(NodeIndex node, const RouteRequest& request) const;
  void set_kv(NodeIndex node, double free);
  void score_all(const RouteRequest& request);

  RoutePolicy policy_;
  PrefixIndex prefixes_;
  std::unordered_map<std::string, std::uint64_t> labels_;
  std::vector<NodeFacts> facts_;
  std::vector<std::uint64_t> have_;  // labels, 0 where it may not be used
  RouterColumns columns_;            // what is cached: zero between calls
  std::vector<float> scores_;        // the lower the better
  std::vector<PrefixIndex::Match> matches_;
  std::uint64_t turn_ = 0;
  SloRoom ttft_room_, tpot_room_;
};

}  // namespace millrace
