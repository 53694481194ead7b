// `millrace gateway`: the OpenAI-compatible server, with the nodes of a cluster behind it.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <thread>

#include "cli/cluster_flags.h"
#include "cli/cluster_metrics.h"
#include "cli/gateway_audits.h"
#include "cli/gateway_batches.h"
#include "cli/http_flags.h"
#include "cli/options.h"
#include "cli/route_log.h"
#include "cli/served_model.h"
#include "cluster/gateway_beats.h"
#include "cluster/gateway_engine.h"
#include "cluster/nats_registry.h"
#include "cluster/route_picker.h"
#include "core/memory.h"
#include "server/access_log.h"
#include "server/api_id.h"
#include "server/engine_routes.h"
#include "server/metrics.h"
#include "tenants/gateway_tenants.h"

namespace millrace::cli {

namespace {

struct GatewayFlags {
  ModelFlags model;
  HttpFlags http;
  NatsOptions nats;
  std::vector<std::string> names;
  std::string policy = "cheapest_in_slo";
  std::optional<double> ttft_slo_ms, tpot_slo_ms, hedge_ms;
  std::string route_log;
  int replicas = 1;
  AuditFlags audits;
  GatewayBatchFlags batches;
};

const std::map<std::string, RoutePolicy> kPolicies{{"round_robin", RoutePolicy::round_robin},
                                                   {"least_loaded", RoutePolicy::least_loaded},
                                                   {"prefix_aware", RoutePolicy::prefix_aware},
                                                   {"cheapest_in_slo", RoutePolicy::cheapest_in_slo}};

/// Runs the loop on a thread of its own, from construction on.
class LoopThread {
 public:
  explicit LoopThread(EventLoop& loop) : loop_(&loop), thread_([&loop] { loop.run(); }) {}
  ~LoopThread() {
    loop_->stop();
    thread_.join();
  }
  LoopThread(const LoopThread&) = delete;
  LoopThread& operator=(const LoopThread&) = delete;

 private:
  EventLoop* loop_;
  std::thread thread_;
};

Status serve_cluster(const GatewayFlags& flags, const std::string& version) {
  MILLRACE_CHECK_OK(check_nats_flags(flags.nats));
  const Log log = make_log();
  const auto say = [&](const std::string& message) { log->info("{}", message); };
  const auto warn = [&](const std::string& message) { log->warn("{}", message); };
  MILLRACE_TRY(ServerOptions options, server_options(flags.http));
  MILLRACE_TRY(const std::uint64_t stream_buffer, parse_size(flags.http.stream_buffer));
  MILLRACE_TRY(const ModelText model, load_model_text(flags.model));
  MILLRACE_TRY(const ServedModel served, make_served_model(flags.model, flags.names, model, warn));
  allow_descriptors(options.max_connections, log);

  ServerMetrics metrics(served.name(), served.max_sequence_tokens);
  EventLoop loop;
  MILLRACE_TRY(const std::unique_ptr<NatsTransport> transport, NatsTransport::connect(flags.nats, loop, say));
  NatsRegistry registry(*transport, loop, warn, RegistryRole::gateway, flags.replicas);
  const auto ms = [](std::optional<double> objective) {
    return objective ? *objective / 1e3 : std::numeric_limits<double>::infinity();
  };
  RoutePicker picker({.model = served.name(),
                      .policy = kPolicies.at(flags.policy),
                      .ttft_slo = ms(flags.ttft_slo_ms),
                      .tpot_slo = ms(flags.tpot_slo_ms)});
  const auto now_s = [&] { return std::chrono::duration<double>(loop.now()).count(); };
  const auto pick = [&](const PickQuery& query, const NodeTable& nodes) { return picker.pick(query, nodes, now_s()); };
  GatewayStreams streams(*transport, registry, flags.nats.name, pick, std::random_device{}());
  MILLRACE_TRY(const auto audits,
               GatewayAudits::create(flags.audits, served.name(), served.vocab, streams, *transport, registry, log));
  GatewayEngine engine(streams, loop, served.name(), served.tokenizer, static_cast<std::int32_t>(served.vocab),
                       served.hidden);
  engine.hedge_after = ms(flags.hedge_ms);
  transport->subscribe(kept_subject("*"), [&](std::string_view subject, std::span<const std::byte> message) {
    const std::string_view node = kept_sender(subject);
    const auto news = decode_prefix_news(message);
    if (!node.empty() && news.ok()) picker.kept(std::string(node), *news);
  });
  MILLRACE_TRY(const RouteLog routes_seen, RouteLog::open(flags.route_log));
  streams.on_beat = [&] { picker.hear(streams.nodes(), now_s()); };
  streams.on_work = [&](WorkStage stage, NodeWork& work) {
    picker.observe(stage, work, now_s());
    if (stage == WorkStage::left) routes_seen.write(work);
  };
  engine.cost = [&](const NodeWork& work) {
    const RoutePicker::Cost cost = picker.cost(work);
    return std::pair{cost.usd, cost.joules};
  };
  GatewayTenants tenants(*transport, loop, flags.nats.name, warn, flags.replicas);
  options.who = [&](std::string_view authorization) { return tenants.admission().who(authorization); };
  engine.on_request = [&](const RequestReport& request, const StreamDone& done) {
    metrics.take_tokens(request.summary.prompt_tokens, request.summary.cached_tokens, 0);
    metrics.take(request);
    if (done.migrations > 0) {
      log->info("a stream moved {} times, ended on {}, {}", done.migrations, done.node,
                done.identical ? "identical" : "valid");
    }
  };
  struct Figures {
    std::int64_t running = 0, waiting = 0;
    std::vector<MetricFamily> families;
  };
  LoopCopy<Figures> figures(loop, [&, tokens = std::int64_t{0}]() mutable -> Figures {
    const std::int64_t came = streams.counters().tokens, running = streams.running();
    metrics.take_tokens(0, 0, came - std::exchange(tokens, came));
    Figures now{running, static_cast<std::int64_t>(streams.count()) - running, gateway_metrics(streams, *transport)};
    add_hedges(now.families, engine.counters());
    add_tenants(now.families, tenants.admission().figures());
    if (audits != nullptr) add_audits(now.families, audits->auditor().counters(), audits->auditor().open());
    return now;
  });
  const EngineAccess access{
      [&](Request request, Sink sink) { return engine.submit(std::move(request), std::move(sink)); },
      [&](RequestId id) { engine.cancel(id); }, [&](RequestId id, std::int32_t choice) { engine.resume(id, choice); },
      true};

  const bool access_log = flags.http.access_log == "on";
  options.on_second_signal = [&] {
    log->warn("second signal: ending now");
    std::_Exit(EXIT_FAILURE);  // nothing on disk is open
  };
  options.on_exchange = [&](const HttpRecord& record) {
    metrics.take(record);
    if (access_log) log->info("{}", access_line(record));
  };
  options.on_message = say;

  GatewayBatches batches(flags.batches, *transport, flags.nats.name, served, access, tenants.admission(), warn,
                         flags.replicas);
  batches.watch(streams, picker, loop);
  options.on_drain = [&] { batches.end(); };
  std::unique_ptr<Server> server;
  ApiRoutesOptions routes{
      .version = version,
      .queue_bytes = stream_buffer,
      .state = [&]() -> std::string_view {
        if (server->draining()) return "draining";
        return tenants.known() ? "ready" : "does not know yet who may ask";
      },
      .metrics =
          [&] {
            Figures now = figures.get();
            add_batches(now.families, batches.figures());
            return metrics.text(
                {.running = now.running, .waiting = now.waiting, .kv = {}, .draining = server->draining()},
                server->connections(), now.families);
          },
      .admit = [&](const HttpRequest& request, ApiCall call,
                   const MakeAnswer& make) { return tenants.admission().admit(request, std::move(call), make); }};
  std::vector<HttpRoute> all_routes = api_routes(served, access, std::move(routes));
  batches.add_to(all_routes);
  MILLRACE_TRY(server, Server::listen(std::move(options), std::move(all_routes)));
  Status ended = Ok{};
  transport->when_given_up([&](const std::string& why) {
    ended = fail("NATS at {} refuses {}: {}", flags.nats.url, flags.nats.name, why);
    server->stop();
  });
  const GatewayBeats beats(*transport, flags.nats.name, std::random_device{}(), [&](GateBeat& beat) {
    beat.draining = server->draining();
    beat.running = streams.running();
    beat.waiting = static_cast<std::int64_t>(streams.count()) - beat.running;
    beat.generated = streams.counters().tokens;
    beat.connections = server->connections();
    beat.ready_nodes =
        std::ranges::count_if(streams.nodes().nodes(), [](const auto& entry) { return entry.second.usable(); });
  });
  const LoopThread thread(loop);                 // behind all that it calls, before what calls it has ended
  constexpr std::chrono::seconds kPatience{15};  // then requests are told that it is not known yet
  if (!tenants.wait_known(kPatience)) log->warn("not known yet who may ask: {} could not be read", kTenantsBucket);
  if (flags.model.json) {
    std::printf("%s\n", nlohmann::json{{"listening", server->url()}}.dump().c_str());
  } else {
    std::printf("%s serves %s at %s\n", flags.nats.name.c_str(), served.name().c_str(), server->url().c_str());
  }
  std::fflush(stdout);
  const std::int64_t cut = server->run();
  tenants.end();
  if (cut > 0) log->warn("{} requests did not end in time and were cut", cut);
  return ended;
}

}  // namespace

void add_gateway(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<GatewayFlags>();
  CLI::App* command =
      app.add_subcommand("gateway", "Serve the OpenAI API over HTTP, with the nodes of a cluster behind it");
  add_model_flags(*command, flags->model);
  add_http_flags(*command, flags->http);
  add_nats_flags(*command, flags->nats);
  command->add_option("--served-model-name", flags->names,
                      "Name of the model in the API and the cluster, then aliases");
  std::vector<std::string> policies;
  for (const auto& [name, policy] : kPolicies) policies.push_back(name);
  command->add_option("--policy", flags->policy, "How nodes are picked")
      ->check(CLI::IsMember(policies))
      ->capture_default_str();
  command
      ->add_option("--slo-ttft-ms", flags->ttft_slo_ms,
                   "Time to first token, of requests that name none (x-slo-ttft-ms)")
      ->check(CLI::PositiveNumber);
  command->add_option("--slo-tpot-ms", flags->tpot_slo_ms, "Time per output token, the same (x-slo-tpot-ms)")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--hedge-ms", flags->hedge_ms,
                   "Ask a second node for what has no token after so long; the first to answer goes on alone")
      ->check(CLI::PositiveNumber);
  command->add_option("--route-log", flags->route_log,
                      "File that gets a JSON line for each node that a stream was on: what was predicted, what came");
  command
      ->add_option("--replicas", flags->replicas,
                   "Servers of a NATS cluster that keep what is registered, of buckets that this gateway makes")
      ->check(CLI::IsMember({1, 3, 5}))
      ->capture_default_str();
  add_gateway_batch_flags(*command, flags->batches);
  add_audit_flags(*command, flags->audits);
  command->callback(
      [flags, &app, &chosen] { chosen = [flags, version = app.version()] { return serve_cluster(*flags, version); }; });
}

}  // namespace millrace::cli
