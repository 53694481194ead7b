// `millrace node`: serves a model to the gateways of a cluster.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <thread>

#include "cli/cluster_flags.h"
#include "cli/cluster_metrics.h"
#include "cli/log.h"
#include "cli/options.h"
#include "cli/served_model.h"
#include "cluster/engine_runner.h"
#include "cluster/nats_registry.h"
#include "cluster/node_agent.h"
#include "cluster/prefix_news.h"
#include "cluster/self_measure.h"
#include "engine/engine.h"
#include "server/engine_routes.h"
#include "server/metrics.h"
#include "server/server.h"

namespace millrace::cli {

namespace {

struct NodeFlags {
  ModelFlags model;
  NatsOptions nats;
  std::vector<std::string> names;
  std::int64_t max_sequences = 16;
  std::vector<double> pace;  // tokens a second, ms, ms
  double drain_timeout = 60.0;
  std::string metrics_host = "127.0.0.1";
  std::optional<std::uint16_t> metrics_port;
};

/// A server of its own, on a thread of its own, for what operators ask; null where there is no --metrics-port.
class OperationServer {
 public:
  static Result<std::unique_ptr<OperationServer>> start(const NodeFlags& flags, std::vector<HttpRoute> routes) {
    if (!flags.metrics_port) return std::unique_ptr<OperationServer>();
    ServerOptions options;
    options.host = flags.metrics_host;
    options.port = *flags.metrics_port;
    MILLRACE_TRY(auto server, Server::listen(std::move(options), std::move(routes)));
    return std::unique_ptr<OperationServer>(new OperationServer(std::move(server)));
  }
  ~OperationServer() {
    server_->stop();
    thread_.join();
  }
  OperationServer(const OperationServer&) = delete;
  OperationServer& operator=(const OperationServer&) = delete;

  [[nodiscard]] std::string url() const { return server_->url(); }

 private:
  explicit OperationServer(std::unique_ptr<Server> server)
      : server_(std::move(server)), thread_([this] { server_->run(); }) {}

  std::unique_ptr<Server> server_;
  std::thread thread_;
};

/// Waits after each step until it has taken what a slower machine would need.
std::function<void(const StepReport&)> pacer(const std::vector<double>& pace) {
  using clock = std::chrono::steady_clock;
  using seconds = std::chrono::duration<double>;
  constexpr double kMsPerSecond = 1000.0;
  static constexpr seconds kBetween{0.005};  // that may pass between two steps of an engine that has something to do
  if (pace.empty()) return {};
  return [prefill = pace[0], step = pace[1] / kMsPerSecond, each = pace[2] / kMsPerSecond,
          end = clock::time_point{}](const StepReport& report) mutable {
    // Weights are read once in a step, whatever it is for.
    const seconds due{std::max(step, static_cast<double>(report.prefill_rows) / prefill) +
                      each * static_cast<double>(std::max<std::int64_t>(0, report.decode_rows - 1))};
    // From the end of the step before it, so that what follows a step, and a sleep that was too long, make none longer.
    const seconds own{report.schedule + report.prepare + report.forward + report.sample};
    const auto began = clock::now() - std::chrono::duration_cast<clock::duration>(own);
    if (began - end > kBetween) end = began;
    end += std::chrono::duration_cast<clock::duration>(due);
    std::this_thread::sleep_until(end);
    if (clock::now() - end > kBetween) end = clock::now();
  };
}

std::string recipe_name(const ModelFlags& flags) {
  return flags.recipe.empty() ? "default" : std::filesystem::path(flags.recipe).stem().string();
}

Status run_node(const NodeFlags& flags) {
  MILLRACE_CHECK_OK(check_nats_flags(flags.nats));
  EventLoop loop;  // the engine's sinks and the signals' thread post to it until they have ended
  Signals signals;
  const Log log = make_log();
  const auto say = [&](const std::string& message) { log->info("{}", message); };
  ModelFlags model_flags = flags.model;
  model_flags.max_batch_tokens = std::max(model_flags.max_batch_tokens, static_cast<int>(flags.max_sequences));
  MILLRACE_TRY(const LoadedModel model, load(model_flags, flags.max_sequences, flags.max_sequences));
  MILLRACE_TRY(const ServedModel served,
               make_served_model(flags.model, flags.names, model,
                                 [&](const std::string& message) { log->warn("{}", message); }));
  MILLRACE_TRY(const std::string numeric_class, cluster_numeric_class(flags.model, model));

  ServerMetrics metrics(served.name(), served.max_sequence_tokens);
  std::atomic<std::int64_t> generated{0};
  bool measured = false;  // on the stepping thread: what the node asks itself is nobody's request
  Engine engine(*model.runner, served.tokenizer,
                {.on_computed = pacer(flags.pace),
                 .on_step =
                     [&](const StepReport& step) {
                       if (!measured) return;
                       metrics.take(step);
                       generated += step.generated_tokens;
                       if (!step.failure.empty())
                         log->error("a step of {} sequences failed: {}", step.sequences, step.failure);
                     },
                 .on_request =
                     [&](const RequestReport& request) {
                       if (measured) metrics.take(request);
                     }});
  MILLRACE_TRY(const NodeSpeed speed,
               measure_speed(engine, served.vocab, served.max_sequence_tokens, flags.max_sequences));
  engine.inspect([&](const EngineCore&) { measured = true; });
  log->info("measured: {:.0f} tokens of prompts a second, a step {:.2f} ms and {:.2f} ms for each further sequence",
            speed.prefill, speed.step * 1e3, speed.step_per_sequence * 1e3);
  MILLRACE_TRY(const std::unique_ptr<NatsTransport> transport, NatsTransport::connect(flags.nats, loop, say));
  NatsRegistry registry(*transport, loop, [&](const std::string& message) { log->warn("{}", message); });
  EngineRunner runner(engine, {served.name(), numeric_class, served.grammar_vocabulary}, loop);
  const std::int64_t kv_tokens = model.runner->cache().token_capacity();
  const std::int32_t page_tokens = model.runner->cache().layout().page_tokens;
  NodeAgent agent(
      *transport, registry,
      {flags.nats.name,
       flags.max_sequences,
       {{served.name(), numeric_class, served.max_sequence_tokens, recipe_name(flags.model), speed}}},
      runner,
      [&](Beat& beat) {
        const EngineSnapshot now = engine.snapshot();
        beat.running = now.running;
        beat.waiting = now.waiting;
        beat.waiting_tokens = now.prompt_tokens_left;
        beat.generated = generated;
        beat.kv_tokens = kv_tokens;
        beat.kv_free = std::max<std::int64_t>(0, kv_tokens - now.kv.used_pages * page_tokens);
      },
      std::random_device{}());

  PrefixTeller teller;
  constexpr auto kTellEvery = std::chrono::seconds(1);
  constexpr std::uint64_t kAnewEvery = 60;  // what was lost is put right then
  std::uint64_t told = 0;
  agent.streams().on_new_gateway = [&] { told = 0; };
  std::function<void()> tell_prefixes = [&] {
    engine.inspect([&](const EngineCore& core) {
      loop.post([&, pages = pages_held(core.scheduler().prefix_cache())]() mutable {
        if (agent.incarnation() != 0) {
          for (const PrefixNews& news : teller.tell(std::move(pages), agent.incarnation(), told++ % kAnewEvery == 0)) {
            transport->publish(kept_subject(flags.nats.name), encode(news));
          }
        }
        loop.after(kTellEvery, tell_prefixes);
      });
    });
  };
  tell_prefixes();

  std::atomic<bool> ready{true};
  LoopCopy<std::vector<MetricFamily>> families(loop, [&] { return node_metrics(agent.streams(), *transport); });
  const auto metrics_text = [&] { return metrics.text(engine.snapshot(), 0, families.get()); };
  MILLRACE_TRY(
      const std::unique_ptr<OperationServer> operations,
      OperationServer::start(flags, operation_routes([&] { return ready ? "ready" : "draining"; }, metrics_text)));

  Status ended = Ok{};
  transport->when_given_up([&](const std::string& why) {
    ended = fail("NATS at {} refuses {}: {}", flags.nats.url, flags.nats.name, why);
    loop.stop();
  });
  bool draining = false;
  std::function<void()> look = [&] {
    if (agent.streams().count() == 0) {
      loop.stop();
    } else {
      loop.after(std::chrono::milliseconds(50), look);
    }
  };
  signals.watch([&] {
    loop.post([&] {
      if (std::exchange(draining, true)) {
        log->warn("second signal: ending now");
        loop.stop();
        return;
      }
      ready = false;
      log->info("draining: {} streams", agent.streams().count());
      agent.drain();
      loop.after(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(flags.drain_timeout)), [&] {
        log->warn("{} streams did not move in time", agent.streams().count());
        loop.stop();
      });
      loop.after(std::chrono::milliseconds(50), look);
    });
  });
  if (flags.model.json) {
    nlohmann::json line{{"node", flags.nats.name}, {"model", served.name()}};
    if (operations) line["metrics"] = operations->url();
    std::printf("%s\n", line.dump().c_str());
  } else {
    std::printf("%s serves %s%s%s\n", flags.nats.name.c_str(), served.name().c_str(), operations ? ", metrics at " : "",
                operations ? operations->url().c_str() : "");
  }
  std::fflush(stdout);
  loop.run();
  return ended;
}

}  // namespace

void add_node(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<NodeFlags>();
  CLI::App* command = app.add_subcommand("node", "Serve a model to the gateways of a cluster");
  flags->model.max_batch_tokens = 128;
  add_model_flags(*command, flags->model);
  add_nats_flags(*command, flags->nats);
  command->add_option("--served-model-name", flags->names, "Name of the model in the cluster");
  command->add_option("--max-sequences", flags->max_sequences, "Sequences that run at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      ->add_option(
          "--pace", flags->pace,
          "No faster than that, so that the machine is free for others: tokens of prompts a second, ms of a step, "
          "and ms for each further sequence in it")
      ->delimiter(',')
      ->expected(3)
      ->check(CLI::Range(1e-3, 1e9));
  command->add_option("--drain-timeout", flags->drain_timeout, "Seconds for streams to move elsewhere after SIGTERM")
      ->check(CLI::Range(0.01, 1e6))
      ->capture_default_str();
  command->add_option("--metrics-port", flags->metrics_port,
                      "Serve /metrics, /health and /ready there over HTTP; 0: any free port; absent: nowhere");
  command->add_option("--metrics-host", flags->metrics_host, "Address of --metrics-port")->capture_default_str();
  command->callback([flags, &chosen] { chosen = [flags] { return run_node(*flags); }; });
}

}  // namespace millrace::cli
