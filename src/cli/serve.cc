// `millrace serve`: the OpenAI-compatible server.

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/http_flags.h"
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
  HttpFlags http;
  std::vector<std::string> names;
  std::int64_t max_sequences = 64;
  std::int32_t max_waiting = 1024;
  bool no_prefix_cache = false;
};

Status serve(const ServeFlags& flags, const std::string& version) {
  const Log log = make_log();
  MILLRACE_TRY(ServerOptions options, server_options(flags.http));
  MILLRACE_TRY(const std::uint64_t stream_buffer, parse_size(flags.http.stream_buffer));
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

  const bool access_log = flags.http.access_log == "on";
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
                          .state = [&] { return server->draining() ? "draining" : "ready"; },
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
  CLI::App* command = app.add_subcommand("serve", "Serve the OpenAI API over HTTP");
  // Small chunks: the streams that run wait for one at most (docs/performance.md, 2026-11-25).
  flags->model.max_batch_tokens = 128;
  add_model_flags(*command, flags->model);
  add_http_flags(*command, flags->http);
  command->add_option("--served-model-name", flags->names, "Name of the model in the API, then aliases of it");
  command->add_option("--max-sequences", flags->max_sequences, "Sequences that run at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--max-waiting", flags->max_waiting, "Requests that may wait; more get 429")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_flag("--no-prefix-cache", flags->no_prefix_cache, "Compute every prompt from its beginning");
  command->callback(
      [flags, &app, &chosen] { chosen = [flags, version = app.version()] { return serve(*flags, version); }; });
}

}  // namespace millrace::cli
