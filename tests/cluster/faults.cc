#include "faults.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace millrace::test {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::array<int, kFaultNames.size()> kWeights{20, 16, 16, 8, 6, 6, 3, 6, 6, 9, 4};

Fault draw(SimDice& dice) {
  int all = 0;
  for (const int weight : kWeights) all += weight;
  auto at = static_cast<int>(dice.below(static_cast<std::uint64_t>(all)));
  std::size_t fault = 0;
  while (at >= kWeights[fault]) at -= kWeights[fault++];
  return static_cast<Fault>(fault);
}

const std::string& any(SimDice& dice, const std::vector<std::string>& names) {
  return names[dice.below(names.size())];
}

void later(SimCloud& cloud, Duration delay, std::function<void()> call) {
  cloud.clock.at(cloud.clock.now() + delay, std::move(call));
}

/// Something happens, and some time later it is over.
void strike(SimCloud& cloud, Fault fault) {
  SimDice& dice = cloud.dice;
  const Duration lasts = milliseconds(100 + dice.below(14900));
  const std::string node = any(dice, cloud.node_names());
  const std::string gateway = any(dice, cloud.gateway_names());
  switch (fault) {
    case Fault::node_crash:
      cloud.kill_node(node);
      later(cloud, lasts, [&cloud, node] {
        if (!cloud.has_node(node)) cloud.start_node(node);
      });
      return;
    case Fault::node_drain:
      if (!cloud.network.is_frozen(node)) cloud.drain_node(node);
      later(cloud, lasts, [&cloud, node] {
        cloud.kill_node(node);
        cloud.start_node(node);
      });
      return;
    case Fault::node_replaced:
      cloud.kill_node(node);
      cloud.start_node(node);
      return;
    case Fault::clock_jump:
      cloud.network.jump(dice.chance(0.8) ? node : gateway, milliseconds(dice.below(60000)));
      return;
    case Fault::gateway_crash:
      cloud.kill_gateway(gateway);
      later(cloud, lasts, [&cloud, gateway] {
        if (!cloud.has_gateway(gateway)) cloud.start_gateway(gateway);
      });
      return;
    case Fault::node_freeze:
    case Fault::gateway_freeze: {
      const std::string name = fault == Fault::node_freeze ? node : gateway;
      cloud.network.freeze(name);
      later(cloud, lasts, [&cloud, name] { cloud.network.thaw(name); });
      return;
    }
    case Fault::node_cut:
    case Fault::gateway_cut: {
      const std::string name = fault == Fault::node_cut ? node : gateway;
      cloud.network.cut(name, dice.chance(0.5));
      later(cloud, lasts, [&cloud, name] { cloud.network.mend(name); });
      return;
    }
    case Fault::storm:
      cloud.network.weather = {.delay = milliseconds(dice.below(50)),
                               .jitter = milliseconds(1 + dice.below(100)),
                               .lost = 0.3 * dice.uniform(),
                               .doubled = 0.3 * dice.uniform(),
                               .late = 0.2 * dice.uniform(),
                               .late_by = milliseconds(1 + dice.below(10000))};
      later(cloud, lasts, [&cloud] { cloud.network.weather = {}; });
      return;
    case Fault::server_restart:
      cloud.network.stop_server();
      later(cloud, lasts / 3, [&cloud] { cloud.network.start_server(); });
      return;
  }
}

void mend_all(SimCloud& cloud) {
  cloud.network.weather = {};
  cloud.network.start_server();
  for (const std::vector<std::string>* names : {&cloud.node_names(), &cloud.gateway_names()}) {
    for (const std::string& name : *names) {
      cloud.network.mend(name);
      cloud.network.thaw(name);
    }
  }
}

std::string what_is_left(SimCloud& cloud) {
  for (const std::string& name : cloud.gateway_names()) {
    if (cloud.gateway(name).count() > 0)
      return fmt::format("{} has {} streams left", name, cloud.gateway(name).count());
  }
  for (const std::string& name : cloud.node_names()) {
    if (cloud.runner(name).held() > 0)
      return fmt::format("{} holds memory of {} streams", name, cloud.runner(name).held());
    if (cloud.node(name).streams().count() > 0) return fmt::format("{} has streams left", name);
  }
  return {};
}

}  // namespace

FaultRun run_faults(std::uint64_t seed, int faults, int streams) {
  SimCloud cloud({.seed = seed});
  FaultRun run;
  cloud.run_for(seconds(2));
  // Both are spread over the same time; a fault now and then comes on the heels of the last.
  int struck = 0, begun = 0;
  while (struck < faults || begun < streams) {
    cloud.run_for(cloud.dice.chance(0.2) ? milliseconds(1) : milliseconds(cloud.dice.below(3000)));
    if (struck < faults) {
      const Fault fault = draw(cloud.dice);
      ++run.faults[static_cast<std::size_t>(fault)];
      strike(cloud, fault);
      ++struck;
    }
    const int due = faults == 0 ? streams : static_cast<int>(std::int64_t{streams} * struck / faults);
    for (; begun < due; ++begun) cloud.begin_stream();
  }
  cloud.run_for(seconds(16));  // the last faults are over
  mend_all(cloud);
  cloud.run_for(seconds(300));
  for (const auto& stream : cloud.seen()) {
    ++run.streams;
    run.lost += stream->lost ? 1 : 0;
    run.cancelled += stream->cancelled ? 1 : 0;
    for (const std::vector<std::int32_t>& tokens : stream->tokens)
      run.tokens += static_cast<std::int64_t>(tokens.size());
    if (stream->done) {
      run.identical += stream->done->identical ? 1 : 0;
      run.moved += stream->done->migrations > 0 ? 1 : 0;
    }
    if (const std::string wrong = cloud.verdict(*stream); !wrong.empty() && run.wrong.empty()) {
      run.wrong = fmt::format("stream {:x} of {}: {}", stream->id, stream->gateway, wrong);
    }
  }
  if (run.wrong.empty()) run.wrong = what_is_left(cloud);
  cloud.count();
  run.gateway = cloud.gateway_counters;
  run.node = cloud.node_counters;
  return run;
}

}  // namespace millrace::test
