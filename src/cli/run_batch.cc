#include "cli/run_batch.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/served_model.h"
#include "engine/engine_core.h"
#include "server/batch_input.h"
#include "server/batch_output.h"
#include "server/batch_run.h"

namespace millrace::cli {

namespace {

// A signal handler can reach nothing but a global of this type.
volatile std::sig_atomic_t stop_signal = 0;

void on_stop(int signal) {
  stop_signal = signal;
}

/// While one lives, SIGINT and SIGTERM end the batch after the step that runs; a second one ends the process at once,
/// which costs no answer either.
class StopSignals {
 public:
  StopSignals() {
    struct sigaction action {};
    action.sa_handler = on_stop;
    action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
    std::signal(SIGXFSZ, SIG_IGN);  // a file beyond the limit of the shell is then an error of write(2)
  }
  ~StopSignals() {
    for (const int signal : {SIGINT, SIGTERM, SIGXFSZ}) std::signal(signal, SIG_DFL);
  }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// Name of the signal that came, or null.
  static const char* taken() { return stop_signal == 0 ? nullptr : stop_signal == SIGINT ? "SIGINT" : "SIGTERM"; }
};

void print_summary(const BatchSummary& summary, bool json) {
  if (json) {
    const nlohmann::ordered_json document{{"requests", summary.requests},
                                          {"answered", summary.answered},
                                          {"failed", summary.failed},
                                          {"skipped", summary.skipped},
                                          {"prompt_tokens", summary.prompt_tokens},
                                          {"cached_tokens", summary.cached_tokens},
                                          {"output_tokens", summary.output_tokens},
                                          {"seconds", summary.seconds},
                                          {"output_tokens_per_second", summary.output_tokens_per_second()}};
    std::printf("%s\n", document.dump().c_str());
    return;
  }
  const std::string line = fmt::format(
      "[{} requests: {} answered, {} failed, {} answered before; {} prompt tokens ({} cached), {} generated; {:.1f} s, "
      "{:.1f} tokens/s]",
      summary.requests, summary.answered, summary.failed, summary.skipped, summary.prompt_tokens, summary.cached_tokens,
      summary.output_tokens, summary.seconds, summary.output_tokens_per_second());
  std::fprintf(stderr, "%s\n", line.c_str());
}

Result<BatchSummary> answer(const ModelFlags& flags, const BatchFlags& batch, BatchInput& input, BatchOutput& output) {
  if (output.records() == input.requests()) {  // no need of a model
    return BatchSummary{.requests = input.requests(), .skipped = output.records()};
  }
  MILLRACE_TRY(const LoadedModel model, load(flags, batch.max_sequences));
  MILLRACE_TRY(const ServedModel served, make_served_model(flags, batch.names, model, [](const std::string& message) {
                 std::fprintf(stderr, "millrace: %s\n", message.c_str());
               }));
  EngineCore engine(*model.runner, served.tokenizer, {.prefix_cache = !batch.no_prefix_cache});
  const StopSignals signals;
  constexpr std::int64_t kReadAhead = 4;  // so that whoever ends is replaced in the next step
  const std::int64_t before = output.records();
  auto summary = millrace::run_batch(engine, served, input, output,
                                     {.max_open = kReadAhead * batch.max_sequences,
                                      .stop = [] { return StopSignals::taken() != nullptr; },
                                      .progress = progress_bar("answering")});
  if (summary.ok() && !summary->stopped) return summary;
  if (::isatty(STDERR_FILENO) != 0 && output.records() > before) std::fputs("\n", stderr);  // the bar's line
  const std::string why = summary.ok() ? fmt::format("stopped by {}", StopSignals::taken()) : summary.error().message;
  return fail("{}; {} of {} requests are answered, and the same command goes on from there", why, output.records(),
              input.requests());
}

}  // namespace

CLI::Option* add_batch_flags(CLI::App& command, BatchFlags& flags) {
  CLI::Option* batch = command.add_option(
      "--batch", flags.input,
      "Answer a file of requests in the format of OpenAI's batches, one JSON object a line. A run that was cut off, by "
      "whatever, goes on where it stopped when it is started again. A request without a seed gets one that is made of "
      "its custom_id, so that its answer does not depend on that");
  CLI::Option* output = command.add_option("-o,--output", flags.output, "Where the answers of a batch are appended to");
  CLI::Option* sequences = command.add_option("--max-sequences", flags.max_sequences, "Answers of a batch at once")
                               ->check(CLI::Range(1, 65536))
                               ->capture_default_str();
  CLI::Option* names =
      command
          .add_option("--served-model-name", flags.names,
                      "What a batch calls the model; may be repeated for aliases; absent: the name of its file "
                      "or folder")
          ->allow_extra_args(false);
  CLI::Option* no_cache = command.add_flag("--no-prefix-cache", flags.no_prefix_cache,
                                           "Compute every prompt of a batch from its beginning");
  batch->needs(output);
  for (CLI::Option* option : {output, sequences, names, no_cache}) option->needs(batch);
  return batch;
}

Status run_batch(const ModelFlags& model, const BatchFlags& flags) {
  MILLRACE_TRY(BatchInput input, BatchInput::open(flags.input));
  MILLRACE_TRY(BatchOutput output, BatchOutput::open(flags.output, input));
  if (output.cut_bytes() > 0) {
    std::fprintf(stderr, "%s: cut off %llu bytes that an earlier run left unfinished\n", flags.output.c_str(),
                 static_cast<unsigned long long>(output.cut_bytes()));
  }
  MILLRACE_TRY(const BatchSummary summary, answer(model, flags, input, output));
  print_summary(summary, model.json);
  return Ok{};
}

}  // namespace millrace::cli
