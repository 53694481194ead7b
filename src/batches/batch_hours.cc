#include "batches/batch_hours.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "core/fnv.h"

namespace millrace {

namespace {

constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kMostKinds = 64;
constexpr double kForBatches = 0.75;      // of places: batch_budget() keeps the others
constexpr double kMemory = 600.0;         // seconds over which the load of interactive requests is averaged
constexpr double kDeadlineClass = 900.0;  // deadlines that are closer together are planned as one

/// Of a line that is as long as others.
double usual_seconds(const NodeSpeed& speed, std::int64_t places) {
  constexpr double kPrompt = 1000.0, kAnswer = 256.0;
  return batch_seconds(speed, places, kPrompt, kAnswer);
}

std::uint64_t kind_of(const NodeTerms& terms, double seconds) {
  Fnv1a hash;
  const auto add = [&](double value) { hash.add(std::bit_cast<std::uint64_t>(value)); };
  for (const double value : {terms.usd_per_hour, terms.busy_watts, terms.pue, terms.tariff.utc_offset_hours})
    add(value);
  for (const double price : terms.tariff.usd_per_kwh) add(price);
  hash.add(static_cast<std::uint64_t>(std::llround(std::log2(seconds))));
  return hash.value();
}

/// Whether it matters when such nodes work, or whether it is they that do.
bool costs(const BatchNodes& nodes) {
  return nodes.usd_per_hour != 0.0 || std::ranges::any_of(nodes.tariff.usd_per_kwh, [&](double price) {
           return price * nodes.watts * nodes.pue != 0.0;
         });
}

double tokens_of(const WaitingLines& batch) {
  return batch.prompt_tokens + batch.answer_tokens;
}

}  // namespace

std::vector<BatchSupply> batch_supply(const NodeTable& nodes, std::string_view model, const SpeedOf& speed_of) {
  std::vector<BatchSupply> supply;
  std::map<std::uint64_t, std::size_t> known;
  for (const auto& [name, node] : nodes.nodes()) {
    const NodeModel* served = node.usable() ? NodeTable::model(node, model) : nullptr;
    if (served == nullptr) continue;
    const NodeSpeed speed = speed_of(name, *served);
    const double seconds = usual_seconds(speed, node.record.places);
    if (!std::isfinite(seconds) || seconds <= 0.0) continue;
    const std::uint64_t kind = kind_of(node.terms, seconds);
    const auto [at, is_new] = known.try_emplace(kind, supply.size());
    if (is_new && supply.size() == kMostKinds) {
      known.erase(at);
      continue;
    }
    if (is_new) {
      supply.push_back({.kind = kind,
                        .nodes = {.speed = speed,
                                  .places = node.record.places,
                                  .usd_per_hour = node.terms.usd_per_hour,
                                  .watts = node.terms.busy_watts,
                                  .pue = node.terms.pue,
                                  .tariff = node.terms.tariff}});
    }
    BatchSupply& alike = supply[at->second];
    alike.count += 1.0;
    const auto mean = [&](double& value, double of_this) { value += (of_this - value) / alike.count; };
    mean(alike.nodes.speed.prefill, speed.prefill);
    mean(alike.nodes.speed.step, speed.step);
    mean(alike.nodes.speed.step_per_sequence, speed.step_per_sequence);
    auto places = static_cast<double>(alike.nodes.places);
    mean(places, static_cast<double>(node.record.places));
    alike.nodes.places = std::max<std::int64_t>(1, std::llround(places));
    alike.busy += static_cast<double>(std::min(node.record.places, node.beat.running + node.beat.waiting));
  }
  return supply;
}

void BatchHours::set_supply(std::vector<BatchSupply> supply) {
  const std::lock_guard lock(mutex_);
  supply_ = std::move(supply);
}

/// What of the nodes' load is not that of lines. A beat does not say; but how many lines run is known, if other
/// gateways run as many as this one, and on which kinds of nodes, if they go where they cost least.
void BatchHours::learn(const StartQuery& query, const std::vector<BatchSupply>& supply) {
  const double since = std::chrono::duration<double>(query.now - learned_).count();
  const double part = 1.0 - std::exp(-std::max(0.0, since) / kMemory);
  learned_ = query.now;
  const auto has_lines = [&](const BatchSupply& alike) { return open_.empty() || open_.contains(alike.kind); };
  double busy = 0.0;
  for (const BatchSupply& alike : supply) busy += has_lines(alike) ? alike.busy : 0.0;
  const double lines = std::min(busy, static_cast<double>(query.lines_at_beats * query.gateways));
  std::map<std::uint64_t, Share> shares;
  for (const BatchSupply& alike : supply) {
    const double others = has_lines(alike) && busy > 0.0 ? alike.busy * (1.0 - lines / busy) : alike.busy;
    const double now = others / (alike.count * static_cast<double>(alike.nodes.places));
    Share share = shares_[alike.kind];
    share.of_places = std::exchange(share.told, true) ? share.of_places + part * (now - share.of_places) : now;
    shares[alike.kind] = share;
  }
  shares_ = std::move(shares);
}

void BatchHours::plan(const StartQuery& query) {
  std::vector<BatchSupply> supply;
  {
    const std::lock_guard lock(mutex_);
    supply = supply_;
  }
  learn(query, supply);
  limits_.clear();
  open_.clear();
  for (const WaitingLines& batch : query.batches) limits_[batch.id] = {kAny, kAny, batch.lines};
  if (std::ranges::none_of(supply, costs, &BatchSupply::nodes)) return;

  std::vector<BatchNodes> nodes;
  for (const BatchSupply& alike : supply) {
    nodes.push_back(alike.nodes);
    nodes.back().spare = alike.count * std::max(0.0, kForBatches - shares_.at(alike.kind).of_places);
  }
  const UnixSeconds wall(static_cast<double>(query.wall));
  std::vector<BatchLines> work;
  double prompts = 0.0, answers = 0.0;
  // What is urgent runs anyway; more of it than there is room for is no reason to hurry with the rest.
  const auto plans = [](const WaitingLines& batch) { return batch.seconds_left > kUrgent; };
  for (const WaitingLines& batch : query.batches) {
    if (!plans(batch)) continue;
    const auto lines = static_cast<double>(batch.lines);
    const UnixSeconds deadline = wall + UnixSeconds(batch.seconds_left);
    if (work.empty() || deadline - work.back().deadline > UnixSeconds(kDeadlineClass)) work.push_back({deadline});
    work.back().deadline = std::min(work.back().deadline, deadline);
    work.back().prompt_tokens += lines * batch.prompt_tokens;
    work.back().answer_tokens += lines * batch.answer_tokens;
    prompts += lines * batch.prompt_tokens;
    answers += lines * batch.answer_tokens;
  }
  if (!std::isfinite(prompts + answers)) return;
  const BatchPlan made = plan_batch(wall, nodes, work);
  if (made.late) return;

  // What of all work is for this hour, the most urgent first; and on how many places.
  double tokens = 0.0, places = 0.0;
  for (std::size_t group = 0; group < nodes.size(); ++group) {
    const BatchNodes& alike = nodes[group];
    if (made.seconds[group] <= 0.0) continue;
    open_.insert(supply[group].kind);
    tokens += made.seconds[group] / batch_seconds(alike.speed, alike.places, prompts, answers) * (prompts + answers);
    places += alike.spare * static_cast<double>(alike.places);
  }
  auto own_places = static_cast<std::int64_t>(std::ceil(places / static_cast<double>(query.gateways)));
  for (const WaitingLines& batch : query.batches) {
    const auto lines = static_cast<double>(batch.lines);
    if (!plans(batch) || lines <= 0.0 || tokens_of(batch) <= 0.0) continue;
    const double now = std::clamp(tokens / tokens_of(batch), 0.0, lines);
    tokens -= now * tokens_of(batch);
    Limit& limit = limits_[batch.id];
    // A part of a line is one, so that the last ones do not wait for ever.
    limit.in_all = static_cast<std::int64_t>(std::ceil(now * batch.own / lines - 1e-9));
    limit.at_once = std::min(limit.in_all, own_places);
    own_places -= limit.at_once;
    limit.in_all = std::max(limit.in_all, batch.sample);
    limit.at_once = std::max(limit.at_once, batch.sample);
  }
}

std::vector<std::int64_t> BatchHours::limits(const StartQuery& query) {
  const auto is_new = [&](const WaitingLines& batch) { return !limits_.contains(batch.id); };
  const bool due = !ever_planned_ || query.now - planned_ >= kPlanEvery || query.now < planned_;
  if (due || std::ranges::any_of(query.batches, is_new)) {
    plan(query);
    planned_ = query.now;
    ever_planned_ = true;
  }
  std::vector<std::int64_t> limits;
  for (const WaitingLines& batch : query.batches) {
    const Limit& limit = limits_.at(batch.id);
    const std::int64_t done = std::max<std::int64_t>(0, limit.lines - batch.lines);
    limits.push_back(std::max<std::int64_t>(0, std::min(limit.at_once, limit.in_all - done)));
  }
  return limits;
}

}  // namespace millrace
