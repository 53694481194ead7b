// A node that lies: it registers the numeric class of the model without a recipe, and serves it with the recipe of
// --lies-with. For tests; in all else it is `millrace node`.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "cli/cluster_flags.h"
#include "cli/options.h"
#include "cli/served_model.h"
#include "cluster/engine_runner.h"
#include "cluster/nats_registry.h"
#include "cluster/node_agent.h"
#include "engine/engine.h"

namespace millrace {
namespace {

Status serve(const cli::ModelFlags& honest, const std::string& recipe, const NatsOptions& nats) {
  EventLoop loop;
  const auto warn = [](const std::string& message) { std::fprintf(stderr, "%s\n", message.c_str()); };
  cli::ModelFlags lie = honest;
  lie.recipe = recipe;
  MILLRACE_TRY(const LoadedModel model, cli::load(lie, 16, 16));
  MILLRACE_TRY(const ServedModel served, cli::make_served_model(lie, {}, model, warn));
  MILLRACE_TRY(const std::string numeric_class, cli::cluster_numeric_class(honest, model));
  Engine engine(*model.runner, served.tokenizer, {});
  MILLRACE_TRY(const std::unique_ptr<NatsTransport> transport, NatsTransport::connect(nats, loop, warn));
  NatsRegistry registry(*transport, loop, warn);
  EngineRunner runner(engine, {served.name(), numeric_class, nullptr}, loop);
  NodeAgent agent(
      *transport, registry, {nats.name, 16, {{served.name(), numeric_class, served.max_sequence_tokens}}}, runner,
      [&](Beat& beat) { beat.running = engine.snapshot().running; }, 1);
  std::printf("%s lies\n", nats.name.c_str());
  std::fflush(stdout);
  loop.run();
  return Ok{};
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  CLI::App app("A node that lies");
  millrace::cli::ModelFlags model;
  model.max_batch_tokens = 128;
  millrace::NatsOptions nats;
  std::string recipe;
  millrace::cli::add_model_flags(app, model);
  millrace::cli::add_nats_flags(app, nats);
  app.add_option("--lies-with", recipe, "Recipe that it serves")->required();
  CLI11_PARSE(app, argc, argv);
  const millrace::Status status = millrace::serve(model, recipe, nats);
  if (!status.ok()) std::fprintf(stderr, "audit_liar: %s\n", status.error().message.c_str());
  return status.ok() ? 0 : 1;
}
