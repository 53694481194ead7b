// A node without a model: it answers every stream with a token each `--step-ms`, so that what a gateway holds can be
// measured on a machine that could not compute as much. Outside the default build; bench/cloud/gateway_load runs it.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <random>

#include "cluster/nats_registry.h"
#include "cluster/nats_transport.h"
#include "cluster/node_agent.h"
#include "core/fnv.h"

namespace millrace {
namespace {

class MockRunner : public StreamRunner {
 public:
  MockRunner(Transport& transport, Duration step, std::int32_t first, std::int32_t end)
      : transport_(&transport), step_(step), first_(first), end_(end) {}

  void start(RunId id, Placement placement, Sink sink) override {
    transport_->after(Duration{0}, [this, id] {
      if (const auto run = runs_.find(id); run != runs_.end()) {
        const Sink tell = run->second.sink;
        tell({Accepted{}});
        next(id);
      }
    });
    runs_[id] = {std::move(placement), std::move(sink)};
  }
  void pause(RunId id) override {
    if (const auto run = runs_.find(id); run != runs_.end()) run->second.paused = true;
  }
  void resume(RunId id) override {
    if (const auto run = runs_.find(id); run != runs_.end()) run->second.paused = false;
  }
  void cancel(RunId id) override { runs_.erase(id); }

  [[nodiscard]] std::int64_t running() const { return static_cast<std::int64_t>(runs_.size()); }

 private:
  struct Run {
    Placement placement;
    Sink sink;
    bool paused = false;
  };

  // Each stream has a clock of its own: on a real node, too, those of other steps come in between.
  void next(RunId id) {
    transport_->after(step_, [this, id] {
      const auto found = runs_.find(id);
      if (found == runs_.end()) return;
      Run& run = found->second;
      if (run.paused) return next(id);
      std::vector<StreamEvent> events;
      bool left = false;
      for (std::size_t c = 0; c < run.placement.choices.size(); ++c) {
        PlacedChoice& choice = run.placement.choices[c];
        if (choice.ended) continue;
        Fnv1a hash;
        hash.add(run.placement.sampling.seed + c);
        hash.add(choice.tokens.size());
        const auto token =
            first_ + static_cast<std::int32_t>((hash.value() >> 16) % static_cast<std::uint64_t>(end_ - first_));
        choice.tokens.push_back(token);
        events.emplace_back(TokenCame{.choice = static_cast<std::int32_t>(c), .token = token});
        choice.ended = static_cast<std::int64_t>(choice.tokens.size()) >= run.placement.max_new_tokens;
        if (choice.ended) {
          events.emplace_back(ChoiceEnd{.choice = static_cast<std::int32_t>(c), .reason = FinishReason::length});
        }
        left = left || !choice.ended;
      }
      const Sink tell = run.sink;
      if (!left) runs_.erase(found);
      tell(std::move(events));
      if (left) next(id);
    });
  }

  Transport* transport_;
  Duration step_;
  std::int32_t first_, end_;
  std::map<RunId, Run> runs_;
};

int run(int argc, char** argv) {
  CLI::App app{"A node without a model"};
  NatsOptions nats;
  std::string model = "millrace-tiny";
  double step_ms = 50.0;
  std::int64_t places = 1024;
  std::int32_t first = 300, end = 400;
  app.add_option("--nats", nats.url)->capture_default_str();
  app.add_option("--name", nats.name)->required();
  app.add_option("--model", model, "Name of the model in the cluster")->capture_default_str();
  app.add_option("--step-ms", step_ms, "Between the tokens of an answer")->capture_default_str();
  app.add_option("--places", places, "Streams that run at once")->capture_default_str();
  app.add_option("--first-token", first, "Tokens are drawn from here")->capture_default_str();
  app.add_option("--end-token", end, "… up to here, without it")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (first < 0 || end <= first) {
    std::fprintf(stderr, "mock_node: no tokens from %d to %d\n", first, end);
    return 2;
  }

  EventLoop loop;
  const auto say = [](const std::string& message) { fmt::print(stderr, "{}\n", message); };
  const auto transport = NatsTransport::connect(nats, loop, say);
  if (!transport.ok()) {
    say(transport.error().message);
    return 1;
  }
  NatsRegistry registry(**transport, loop, say);
  const auto step = std::chrono::duration_cast<Duration>(std::chrono::duration<double, std::milli>(step_ms));
  MockRunner runner(**transport, step, first, end);
  constexpr double kMsPerSecond = 1000.0;
  const NodeSpeed speed{.prefill = 1e5, .step = step_ms / kMsPerSecond, .step_per_sequence = 0.0};
  NodeAgent agent(
      **transport, registry, {nats.name, places, {{model, "mock", 1 << 20, "mock", speed}}}, runner,
      [&](Beat& beat) { beat.running = runner.running(); }, std::random_device{}());
  fmt::print("{}\n", nats.name);
  std::fflush(stdout);
  loop.run();
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  return millrace::run(argc, argv);
}
