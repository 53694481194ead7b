// The command line: picks a subcommand. Exit codes: 0 done, 1 failed (one line says why), 2 wrong usage.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>

#include "cli/options.h"

namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

int run_command(int argc, char** argv) {
  CLI::App app{"Millrace: cheap tokens from the hardware that you have."};
  app.require_subcommand(1);
  app.set_version_flag("--version", MILLRACE_VERSION);
  millrace::cli::Command chosen;
  millrace::cli::add_run(app, chosen);
  millrace::cli::add_logits(app, chosen);
  millrace::cli::add_tokenize(app, chosen);
  millrace::cli::add_inspect(app, chosen);
  millrace::cli::add_bench(app, chosen);
  millrace::cli::add_eval(app, chosen);
  millrace::cli::add_quantize(app, chosen);
  millrace::cli::add_calibrate(app, chosen);
  millrace::cli::add_serve(app, chosen);
  millrace::cli::add_bench_serve(app, chosen);
  millrace::cli::add_node(app, chosen);
  millrace::cli::add_gateway(app, chosen);
  millrace::cli::add_simulate(app, chosen);
  millrace::cli::add_terms(app, chosen);
  millrace::cli::add_tenant(app, chosen);
  millrace::cli::add_status(app, chosen);
  millrace::cli::add_cost(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kWrongUsage;
  }
  const millrace::Status status = chosen();
  std::cout.flush();
  if (status.ok() && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout)) {
    std::fprintf(stderr, "millrace: standard output could not be written\n");
    return kFailed;
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "millrace: %s\n", status.error().message.c_str());
  return kFailed;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run_command(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "millrace: out of memory\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "millrace: %s\n", error.what());
  }
  return kFailed;
}
