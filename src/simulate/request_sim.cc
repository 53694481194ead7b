#include "simulate/request_sim.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace millrace {

namespace {

constexpr double kHop = 0.0004, kJitter = 0.0002;  // seconds of a message's way on an average, as SimWeather has them
constexpr double kQuarter = 900.0;                 // seconds
constexpr double kAgain = 0.1;                     // between two tries to place what no node takes
constexpr double kMissedByNode = 1.0;  // after which a node that is back says that it does not know a stream
constexpr double kDeskEvery = 1.0;
// As SloWatch has them.
constexpr double kSlack = 1.25;
constexpr int kWindowTokens = 16;
constexpr double kRounding = 1e-6;

/// The clock's first time at which `seconds` have passed, whatever rounding does.
Instant instant_of(double seconds) {
  return Instant(static_cast<std::int64_t>(std::ceil(seconds * 1e9)) + 1);
}

double seconds_of(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

RequestSim::RequestSim(const std::vector<SimNode>& nodes, const Workload& work, const SimOptions& options)
    : nodes_(&nodes),
      work_(&work),
      options_(&options),
      churn_(nodes, options.seed, options.churn),
      dispatch_(nodes, work, options),
      tally_(work, options),
      desk_(nodes, work, options, dispatch_, [this](std::size_t request, const Route& route) { send(request, route); }),
      requests_(work.requests.size()) {
  node_states_.reserve(nodes.size());
  for (const SimNode& node : nodes) {
    node_states_.push_back({.model = StepNode(node, work.block_tokens)});
    node_states_.back().model.meter().set_time(options.start);
  }
  dispatch_.set_prices(options.start);
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    const auto node = static_cast<NodeIndex>(n);
    if (churn_.starts_down(node)) {
      node_states_[n].model.fail();
      at(churn_.down_for(node), [this, node] { repair(node); });
    } else {
      dispatch_.set_usable(node, true);
      next_failure(node);
    }
  }
}

double RequestSim::now() const {
  return seconds_of(clock_.now());
}

void RequestSim::at(double when, std::function<void()> call) {
  clock_.at(instant_of(when), std::move(call));
}

SimResult RequestSim::run() {
  const double into = std::fmod(options_->start.count(), kQuarter);
  at(kQuarter - (into < 0.0 ? into + kQuarter : into), [this] { quarter(); });
  if (!work_->requests.empty()) at(work_->requests.front().arrival, [this] { arrive(); });
  while (tally_.open() > 0 && clock_.step()) {
  }
  std::vector<const NodeMeter*> meters;
  for (Node& node : node_states_) {
    node.model.advance(std::max(now(), tally_.last_end()), events_);
    meters.push_back(&node.model.meter());
  }
  return tally_.result(*nodes_, meters);
}

void RequestSim::arrive() {
  const std::size_t request = next_arrival_++;
  if (next_arrival_ < work_->requests.size()) at(work_->requests[next_arrival_].arrival, [this] { arrive(); });
  requests_[request].untaken = now();
  if (dispatch_.fits_none(request)) {
    tally_.failed(request);
  } else if (work_->requests[request].batch && options_->batch == BatchMode::deferred) {
    desk_.add(request);
    if (!std::exchange(desk_looks_, true)) at(now() + kDeskEvery, [this] { look_at_batch(); });
  } else {
    place(request);
  }
}

void RequestSim::look_at_batch() {
  desk_.look(now());
  if (tally_.open() > 0) at(now() + kDeskEvery, [this] { look_at_batch(); });
}

void RequestSim::place(std::size_t request) {
  Request& state = requests_[request];
  const SimRequest& asked = work_->requests[request];
  const Duration patience = state.attempt == 0 ? timing_.no_node : timing_.give_up;
  if (now() - state.untaken >= seconds_of(patience) && !asked.batch) {
    tally_.failed(request);
    return;
  }
  const auto route = dispatch_.pick(
      {.request = request, .gateway = gateway_of(request), .emitted = state.emitted, .avoid = state.avoid}, now());
  if (route) {
    send(request, *route);
  } else {
    at(now() + kAgain, [this, request] { place(request); });
  }
}

/// Of a placement, in seconds: those of one moment overtake each other.
double RequestSim::way(std::size_t request, std::uint32_t attempt) const {
  const std::uint64_t drawn = mix_bits(mix_bits(request ^ (options_->seed << 40)) ^ attempt);
  return kHop + kJitter * (static_cast<double>(drawn >> 11) * 0x1p-53 - 0.5);
}

void RequestSim::send(std::size_t request, const Route& route) {
  Request& state = requests_[request];
  const SimRequest& asked = work_->requests[request];
  state.node = route.node;
  state.placed = now();
  state.accepted = false;
  const std::uint32_t attempt = ++state.attempt;
  Open& open = open_[request];
  open.work = {.node = {},
               .prompt_tokens = asked.prompt + state.emitted,
               .expected_cached = route.cached_tokens,
               .ttft = route.ttft,
               .tpot = route.tpot,
               .ttft_slo = dispatch_.ttft_slo(request),
               .tpot_slo = dispatch_.tpot_slo(request),
               .within_slo = route.within_slo,
               .placed = clock_.now()};
  open.late = 0;
  dispatch_.observe(gateway_of(request), route.node, WorkStage::placed, open.work, now());
  touch(route.node);
  at(now() + way(request, attempt), [this, request, attempt] { take(request, attempt); });
  const double patience = kSlack * dispatch_.ttft_slo(request);
  if (std::isfinite(patience)) look_again(request, now() + patience, true);
}

void RequestSim::left(std::size_t request, std::int64_t tokens, double when) {
  const auto open = open_.find(request);
  NodeWork& work = open->second.work;
  const NodeIndex node = requests_[request].node;
  work.tokens = tokens;
  work.last = instant_of(when);
  dispatch_.observe(gateway_of(request), node, WorkStage::left, work, when);
  tally_.billed(dispatch_.billed(gateway_of(request), node, work));
}

void RequestSim::look_again(std::size_t request, double when, bool for_first) {
  const double look = seconds_of(timing_.look);
  at((std::floor(when / look) + 1.0) * look,
     [this, request, attempt = requests_[request].attempt, for_first] { look_at_slo(request, attempt, for_first); });
}

void RequestSim::watch_tokens(std::size_t request, const Open& open) {
  // A gateway looks all the time. Here it looks when the window should be full, at the last moment at which it would
  // be in time, and then until it is over.
  const double look = seconds_of(timing_.look), due = kSlack * dispatch_.tpot_slo(request) * kWindowTokens;
  const StepNode& node = node_states_[requests_[request].node].model;
  const std::int64_t missing = kWindowTokens - (node.emitted(request) - open.window_tokens);
  const double full = now() + static_cast<double>(missing) * node.step_seconds();
  const double in_time = std::floor((open.window + due) / look + kRounding) * look - look / 2.0;
  look_again(request, now() < in_time ? std::min(full, in_time) : now() + look / 2.0);
}

bool RequestSim::tokens_are_late(std::size_t request, Open& open) {
  constexpr int kWindows = 2;
  const double due = kSlack * dispatch_.tpot_slo(request) * kWindowTokens;
  const std::int64_t tokens = node_states_[requests_[request].node].model.emitted(request);
  const bool over = now() - open.window > due + kRounding;
  if (tokens - open.window_tokens >= kWindowTokens || over) {
    open.late = over ? open.late + 1 : 0;
    open.window = now();
    open.window_tokens = tokens;
  }
  watch_tokens(request, open);
  if (open.late < kWindows) return false;
  open.late = 0;
  return true;
}

void RequestSim::look_at_slo(std::size_t request, std::uint32_t attempt, bool for_first) {
  constexpr int kMostMoves = 2;
  Request& state = requests_[request];
  if (state.attempt != attempt || !state.accepted) return;
  const NodeIndex from = state.node;
  happened(from);
  const auto found = open_.find(request);
  if (found == open_.end()) return;  // it has just ended
  Open& open = found->second;
  if (for_first ? open.work.first != Instant{0} : !tokens_are_late(request, open)) return;
  if (open.slo_moves == kMostMoves) return;
  const std::int64_t emitted = node_states_[from].model.emitted(request);
  state.avoid.push_back(from);
  const auto route = dispatch_.pick(
      {.request = request, .gateway = gateway_of(request), .emitted = state.emitted + emitted, .avoid = state.avoid},
      now());
  // It pays its prompt once more: for a node that would be as slow it does not move.
  if (!route || !route->within_slo) {
    state.avoid.pop_back();
    return;
  }
  ++open.slo_moves;
  tally_.migrated(request);
  left(request, emitted, now());
  state.emitted += static_cast<std::int32_t>(emitted);
  node_states_[from].model.cancel(request);
  node_states_[from].changed = now();
  schedule(from);
  send(request, *route);
}

void RequestSim::take(std::size_t request, std::uint32_t attempt) {
  Request& state = requests_[request];
  Node& node = node_states_[state.node];
  if (!node.model.is_up()) {
    // Nobody answers: given up, or the node is missed before.
    double when = state.placed + seconds_of(timing_.place_give_up);
    if (node.missed > now()) when = std::min(when, node.missed);
    at(when, [this, request, attempt] { move(request, attempt); });
    return;
  }
  const SimRequest& asked = work_->requests[request];
  happened(state.node);
  state.accepted = true;
  node.model.start({.id = request,
                    .prompt = asked.prompt + state.emitted,
                    .answer = asked.answer - state.emitted,
                    .blocks = work_->blocks_of(asked),
                    .batch = asked.batch});
  node.changed = now();
  schedule(state.node);
}

void RequestSim::move(std::size_t request, std::uint32_t attempt) {
  Request& state = requests_[request];
  if (state.attempt != attempt) return;
  if (std::exchange(state.accepted, false)) {
    tally_.migrated(request);
    state.untaken = now();
  }
  const SimRequest& asked = work_->requests[request];
  if (asked.batch && options_->batch == BatchMode::deferred) {
    desk_.left(state.node);
    desk_.add(request);
    return;
  }
  state.avoid.assign(1, state.node);
  place(request);
}

void RequestSim::happened(NodeIndex index) {
  Node& node = node_states_[index];
  events_.clear();
  node.model.advance(now(), events_);
  for (const NodeEvent& event : events_) {
    const std::size_t request = event.id;
    NodeWork& work = open_.at(request).work;
    if (event.kind == NodeEvent::Kind::first_token) {
      tally_.first_token(request, event.at + kHop);
      work.first = instant_of(event.at + kHop);
      work.cached_tokens = event.cached;
      dispatch_.observe(gateway_of(request), index, WorkStage::began, work, event.at + kHop);
      Open& open = open_.at(request);
      open.window = event.at + kHop;
      open.window_tokens = 1;
      if (std::isfinite(dispatch_.tpot_slo(request)) && work_->requests[request].answer > kWindowTokens) {
        watch_tokens(request, open);
      }
      continue;
    }
    const SimRequest& asked = work_->requests[request];
    tally_.ended(request, event.at + kHop, index, event.cached);
    left(request, asked.answer - requests_[request].emitted, event.at + kHop);
    open_.erase(request);
    requests_[request].avoid = {};
    if (asked.batch && options_->batch == BatchMode::deferred) desk_.left(index);
  }
}

void RequestSim::schedule(NodeIndex index) {
  Node& node = node_states_[index];
  if (node.due) clock_.cancel(*node.due);
  node.due.reset();
  const double next = node.model.next_event();
  if (!std::isfinite(next)) return;
  node.due = clock_.at(instant_of(next), [this, index] {
    node_states_[index].due.reset();
    node_states_[index].changed = now();
    happened(index);
    schedule(index);
  });
}

void RequestSim::touch(NodeIndex index) {
  Node& node = node_states_[index];
  node.changed = now();
  if (std::exchange(node.beats, true)) return;
  const double phase = churn_.phase(index);
  at(std::floor(now() - phase) + 1.0 + phase, [this, index] { beat(index); });
}

void RequestSim::beat(NodeIndex index) {
  constexpr double kQuiet = 2.5;  // seconds behind which a beat says what the one before it said
  Node& node = node_states_[index];
  if (!node.model.is_up()) {
    node.beats = false;
    return;
  }
  happened(index);
  dispatch_.beat(index, node.model.load(), node.model.take_news(), now());
  node.beats = !node.model.is_idle() || now() - node.changed < kQuiet;
  if (node.beats) at(now() + 1.0, [this, index] { beat(index); });
}

void RequestSim::next_failure(NodeIndex index) {
  if (churn_.fails(index)) at(now() + churn_.up_for(index), [this, index] { fail(index); });
}

void RequestSim::fail(NodeIndex index) {
  Node& node = node_states_[index];
  happened(index);
  tally_.node_failed();
  const bool was_heard = !node.model.is_idle();  // frames of its answers, a moment ago
  const std::vector<StepNode::Lost> lost = node.model.fail();
  if (node.due) clock_.cancel(*node.due);
  node.due.reset();
  const double phase = churn_.phase(index);
  const double heard = was_heard ? now() : std::max(0.0, std::floor(now() - phase) + phase);
  node.back = now() + churn_.down_for(index);
  node.missed = std::min(heard + seconds_of(timing_.dead), node.back + kMissedByNode);
  const double suspect = std::max(now(), heard + seconds_of(timing_.suspect));
  if (suspect < node.back) {
    at(suspect, [this, index] {
      if (!node_states_[index].model.is_up()) dispatch_.set_usable(index, false);
    });
  }
  at(node.missed, [this, index] { dispatch_.forget_cache(index); });
  for (const StepNode::Lost& job : lost) {
    requests_[job.id].emitted += static_cast<std::int32_t>(job.emitted);
    at(std::max(now(), node.missed),
       [this, request = job.id, attempt = requests_[job.id].attempt] { move(request, attempt); });
  }
  at(node.back, [this, index] { repair(index); });
}

void RequestSim::repair(NodeIndex index) {
  Node& node = node_states_[index];
  node.model.advance(now(), events_);
  node.model.repair();
  dispatch_.set_usable(index, true);
  dispatch_.beat(index, node.model.load(), {}, now());
  touch(index);
  next_failure(index);
}

void RequestSim::quarter() {
  const UnixSeconds time = options_->start + UnixSeconds(now());
  for (std::size_t n = 0; n < node_states_.size(); ++n) {
    happened(static_cast<NodeIndex>(n));
    node_states_[n].model.meter().set_time(time + UnixSeconds(1e-3));  // rounding may not miss the hour's edge
  }
  dispatch_.set_prices(time + UnixSeconds(1e-3));
  if (tally_.open() > 0) at(now() + kQuarter, [this] { quarter(); });
}

}  // namespace millrace
