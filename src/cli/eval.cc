// `millrace eval`: perplexity of a model on a text, with its uncertainty.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "core/mapped_file.h"
#include "eval/perplexity.h"

namespace millrace::cli {

namespace {

constexpr int kLogitRows = 64;  // of a step, all of which want logits

struct EvalFlags {
  ModelFlags model;
  std::string text;
  std::int64_t window = 0;
};

Status run(const EvalFlags& flags) {
  MILLRACE_TRY(const std::string text, read_text_file(flags.text));
  MILLRACE_TRY(LoadedModel model, load(flags.model, std::min(kLogitRows, flags.model.max_batch_tokens)));
  if (!model.tokenizer) return fail("{} has no tokenizer", model.path);
  // Every window begins as a text does: with what the tokenizer puts before one, if that is a single token.
  MILLRACE_TRY(const std::vector<std::int32_t> start, model.tokenizer->encode("", true));
  MILLRACE_TRY(const std::vector<std::int32_t> ids, model.tokenizer->encode(text, false));
  PerplexityOptions options{.window = flags.window};
  if (start.size() == 1) options.bos = start.front();
  MILLRACE_TRY(const Perplexity result, measure_perplexity(*model.runner, ids, options, progress_bar("evaluating")));
  const auto [low, high] = result.interval();
  const bool known = result.windows > 1;
  if (flags.model.json) {
    const nlohmann::ordered_json document{
        {"tokens", result.tokens},
        {"perplexity", result.perplexity()},
        {"mean_nll", result.mean_nll},
        {"ci95", {{"perplexity", known ? nlohmann::ordered_json{low, high} : nlohmann::ordered_json(nullptr)}}}};
    std::printf("%s\n", document.dump().c_str());
  } else {
    const std::string interval =
        known ? fmt::format("95 % interval {:.4f} to {:.4f}", low, high) : "no interval: the text is one window";
    std::printf("perplexity %.4f (%s) over %lld tokens\n", result.perplexity(), interval.c_str(),
                static_cast<long long>(result.tokens));
  }
  return Ok{};
}

}  // namespace

void add_eval(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "Measure perplexity on a text");
  add_model_flags(*command, flags->model);
  command->add_option("--text", flags->text, "Text file")->required();
  command->add_option("--window", flags->window, "Tokens of a window; absent: the longest possible")
      ->check(CLI::PositiveNumber);
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
