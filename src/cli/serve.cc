// `millrace serve`: the OpenAI-compatible server.

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/options.h"
#include "cli/served_model.h"
#include "core/memory.h"
#include "engine/engine.h"
#include "server/access_log.h"
#include "server/engine_routes.h"
#include "server/metrics.h"
#include "server/server.h"

namespace millrace::cli {

namespace {

struct ServeFlags {
  ModelFlags model;
  ServerOptions server;
  double write_timeout = 60.0, drain_timeout = 60.0, idle_timeout = 75.0, header_timeout = 15.0;
  std::string max_body = "32M", stream_buffer = "256K";
  std::string access_log = "on";
  std::vector<std::string> names;
  std::int64_t max_sequences = 64;
  std::int32_t max_waiting = 1024;
  bool no_prefix_cache = false;
};

using Log = std::shared_ptr<spdlog::logger>;

Log make_log() {
  auto log = std::make_shared<spdlog::logger>("millrace", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  log->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  return log;
}

/// A connection is a descriptor; the usual soft limit of 1024 is less than the connections that are allowed.
void allow_descriptors(std::int64_t connections, const Log& log) {
  constexpr std::int64_t kOthers = 256;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const auto wanted = static_cast<rlim_t>(connections + kOthers);
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = std::min(wanted, limit.rlim_max);
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (limit.rlim_cur < wanted) {
    log->warn("{} files may be open, fewer than --max-connections {} needs", limit.rlim_cur, connections);
  }
}

Result<ServerOptions> server_options(const ServeFlags& flags) {
  using Seconds = HttpLimits::Seconds;
  ServerOptions options = flags.server;
  MILLRACE_TRY(options.limits.body_bytes, parse_size(flags.max_body));
  options.limits.all_bodies_bytes = std::max<std::uint64_t>(8 * options.limits.body_bytes, 64 << 20);
  options.limits.write_timeout = Seconds(flags.write_timeout);
  options.limits.idle_timeout = Seconds(flags.idle_timeout);
  options.limits.header_timeout = Seconds(flags.header_timeout);
  options.drain_timeout = Seconds(flags.drain_timeout);
  options.signals = true;
  return options;
}

Status serve(const ServeFlags& flags, const std::string& version) {
  const Log log = make_log();
  MILLRACE_TRY(ServerOptions options, server_options(flags));
  MILLRACE_TRY(const std::uint64_t stream_buffer, parse_size(flags.stream_buffer));
  ModelFlags model_flags = flags.model;
  model_flags.max_batch_tokens = std::max(model_flags.max_batch_tokens, static_cast<int>(flags.max_sequences));
  MILLRACE_TRY(const LoadedModel model, load(model_flags, flags.max_sequences, flags.max_sequences));
  MILLRACE_TRY(const ServedModel served,
               make_served_model(flags.model, flags.names, model,
                                 [&](const std::string& message) { log->warn("{}", message); }));
  allow_descriptors(options.max_connections, log);

  ServerMetrics metrics(served.name(), served.max_sequence_tokens);
  Engine engine(*model.runner, served.tokenizer,
                {.prefix_cache = !flags.no_prefix_cache,
                 .max_waiting = flags.max_waiting,
                 .on_step =
                     [&](const StepReport& step) {
                       metrics.take(step);
                       if (!step.failure.empty())
                         log->error("a step of {} sequences failed: {}", step.sequences, step.failure);
                     },
                 .on_request = [&](const RequestReport& request) { metrics.take(request); }});
  const EngineAccess access{
      [&](Request request, Sink sink) { return engine.submit(std::move(request), std::move(sink)); },
      [&](RequestId id) { engine.cancel(id); }, [&](RequestId id, std::int32_t choice) { engine.resume(id, choice); }};

  const bool access_log = flags.access_log == "on";
  options.on_drain = [&] { engine.drain(); };
  options.on_second_signal = [&] {
    log->warn("second signal: ending now");
    std::_Exit(EXIT_FAILURE);  // nothing on disk is open; waiting for a step in the middle could take seconds
  };
  options.on_exchange = [&](const HttpRecord& record) {
    metrics.take(record);
    if (access_log) log->info("{}", access_line(record));
  };
  options.on_message = [&](const std::string& message) { log->info("{}", message); };

  std::unique_ptr<Server> server;  // last: what it calls outlives it
  ApiRoutesOptions routes{.version = version,
                          .queue_bytes = stream_buffer,
                          .ready = [&] { return !server->draining(); },
                          .metrics = [&] { return metrics.text(engine.snapshot(), server->connections()); }};
  MILLRACE_TRY(server, Server::listen(std::move(options), api_routes(served, access, std::move(routes))));
  if (flags.model.json) {
    std::printf("%s\n", nlohmann::json{{"listening", server->url()}}.dump().c_str());
  } else {
    std::printf("%s serves at %s\n", served.name().c_str(), server->url().c_str());
  }
  std::fflush(stdout);
  const std::int64_t cut = server->run();
  if (cut > 0) log->warn("{} requests did not end in time and were cut", cut);
  return Ok{};
}

}  // namespace

void add_serve(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ServeFlags>();
  ServerOptions& server = flags->server;
  CLI::App* command = app.add_subcommand("serve", "Serve the OpenAI API over HTTP");
  // Small chunks: the streams that run wait for one at most (docs/performance.md, 2026-11-25).
  flags->model.max_batch_tokens = 128;
  add_model_flags(*command, flags->model);
  command->add_option("--host", server.host, "Address to listen on")->capture_default_str();
  command->add_option("--port", server.port, "Port; 0: any free one")->capture_default_str();
  command->add_option("--served-model-name", flags->names, "Name of the model in the API, then aliases of it");
  command->add_option(
      "--api-key-file", server.api_key_file,
      "Keys of which each request needs one (Authorization: Bearer KEY), one a line, # for comments; read "
      "again on SIGHUP. Each key has shared context of its own. /health, /ready, /version and /metrics "
      "stay open");
  CLI::Option* certificate = command->add_option("--tls-cert", server.tls_cert, "Certificate chain (PEM): serve TLS");
  CLI::Option* key = command->add_option("--tls-key", server.tls_key, "Key of the certificate (PEM)");
  certificate->needs(key);
  key->needs(certificate);
  command->add_option("--cors", server.cors, "Origin that browsers may call from, or *; may be repeated");
  command->add_option("--max-sequences", flags->max_sequences, "Sequences that run at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--max-waiting", flags->max_waiting, "Requests that may wait; more get 429")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_flag("--no-prefix-cache", flags->no_prefix_cache, "Compute every prompt from its beginning");
  command
      ->add_option("--http-threads", server.threads, "Threads that serve connections; the rest of the machine computes")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--max-connections", server.max_connections, "Open connections; more get 503")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-body", flags->max_body, "The largest request body; more gets 413")->capture_default_str();
  command
      ->add_option("--stream-buffer", flags->stream_buffer, "What may wait for a slow reader before its answer pauses")
      ->capture_default_str();
  for (const auto& [name, value, text] :
       {std::tuple("--header-timeout", &flags->header_timeout, "Seconds for a request's head"),
        std::tuple("--idle-timeout", &flags->idle_timeout, "Seconds between two requests of a connection"),
        std::tuple("--write-timeout", &flags->write_timeout,
                   "Seconds without a reader taking anything, then it is cut"),
        std::tuple("--drain-timeout", &flags->drain_timeout, "Seconds for running requests to finish after SIGTERM")}) {
    command->add_option(name, *value, text)->check(CLI::Range(0.01, 1e6))->capture_default_str();
  }
  command->add_option("--access-log", flags->access_log, "A line on standard error for each request: on or off")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  command->callback(
      [flags, &app, &chosen] { chosen = [flags, version = app.version()] { return serve(*flags, version); }; });
}

}  // namespace millrace::cli
