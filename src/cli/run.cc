// `millrace run`: generates text and streams it to the terminal; with --chat a conversation, with --batch a file of
// requests.

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <vector>

#include "cli/chat.h"
#include "cli/generate.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/run_batch.h"

namespace millrace::cli {

namespace {

struct RunFlags {
  ModelFlags model;
  GenerationFlags generation;
  std::optional<std::string> prompt;
  std::string ids;
  std::string system;
  bool chat = false;
  BatchFlags batch;
};

Result<std::vector<std::int32_t>> prompt_ids(const RunFlags& flags, const LoadedModel& model) {
  if (!flags.ids.empty()) return parse_ids(flags.ids);
  if (model.tokenizer) return model.tokenizer->encode(*flags.prompt, true);
  // Without a tokenizer a text is a list of ids, as the answer then is.
  auto ids = parse_ids(*flags.prompt);
  if (!ids.ok()) return fail("{} has no tokenizer: give the prompt as token ids, such as 1,2,3", model.path);
  return ids;
}

void print_json(const LoadedModel& model, std::size_t prompt_tokens, const Generated& answer, std::uint64_t seed) {
  const nlohmann::ordered_json document{{"model", model.path},
                                        {"prompt_tokens", prompt_tokens},
                                        {"token_ids", answer.token_ids},
                                        {"text", answer.text},
                                        {"finish_reason", finish_reason_name(answer.finish)},
                                        {"ttft_s", answer.summary.ttft},
                                        {"tpot_s", answer.summary.tpot},
                                        {"seed", seed}};
  std::printf("%s\n", document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

Status run(const RunFlags& flags) {
  MILLRACE_TRY(LoadedModel model, load(flags.model, 1));
  const Interrupts interrupts;
  MILLRACE_TRY(const Request base, make_request(flags.generation, model));
  EngineCore engine(*model.runner, model.tokenizer ? &*model.tokenizer : nullptr);

  if (flags.chat) {
    MILLRACE_TRY(Conversation conversation, Conversation::open(model, engine, base, flags.system));
    if (!flags.model.json) return conversation.talk(flags.prompt.value_or(""));
    MILLRACE_TRY(const Generated answer, conversation.ask(*flags.prompt, [](const std::string&) {}));
    print_json(model, conversation.prompt_tokens(), answer, base.sampling.seed);
    return Ok{};
  }

  Request request = base;
  MILLRACE_TRY(request.prompt, prompt_ids(flags, model));
  const std::size_t prompt_tokens = request.prompt.size();
  const bool stream = !flags.model.json;
  bool in_line = stream && model.tokenizer && flags.prompt;
  if (in_line) print_now(*flags.prompt);
  const Result<Generated> generated = generate(engine, std::move(request), [&](const TokenEvent& event) {
    if (!stream) return;
    print_now(event.text);
    in_line = in_line || !event.text.empty();
  });
  if (!generated.ok() && in_line) print_now("\n");
  MILLRACE_TRY(const Generated answer, generated);
  if (stream) {
    print_now("\n");
    print_closing_line(prompt_tokens, answer);
  } else {
    print_json(model, prompt_tokens, answer, base.sampling.seed);
  }
  return Ok{};
}

}  // namespace

void add_run(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "Generate text, streaming");
  add_model_flags(*command, flags->model);
  const std::size_t shared = command->get_options().size();
  add_generation_flags(*command, flags->generation);
  CLI::Option* prompt = command->add_option("-p,--prompt", flags->prompt, "Prompt; with --chat the first message");
  CLI::Option* ids = command->add_option("--ids", flags->ids, "Prompt as token ids, separated by commas");
  CLI::Option* chat =
      command->add_flag("--chat", flags->chat, "Open a conversation; Ctrl-C stops an answer, Ctrl-D ends it");
  ids->excludes(prompt)->excludes(chat);
  command->add_option("--system", flags->system, "System message of a conversation");
  const std::vector<CLI::Option*> all = command->get_options();
  CLI::Option* batch = add_batch_flags(*command, flags->batch);
  // The lines of a batch say all that the flags of one generation say.
  for (std::size_t i = shared; i < all.size(); ++i) batch->excludes(all[i]);
  command->callback([flags, &chosen] {
    if (!flags->batch.input.empty()) {
      chosen = [flags] { return run_batch(flags->model, flags->batch); };
      return;
    }
    if (!flags->chat && !flags->prompt && flags->ids.empty()) {
      throw CLI::ValidationError("run", "give a prompt (-p), --ids, --chat, or --batch");
    }
    if (flags->chat && flags->model.json && !flags->prompt) {
      throw CLI::ValidationError("run", "--chat with --json answers one prompt: give -p");
    }
    chosen = [flags] { return run(*flags); };
  });
}

}  // namespace millrace::cli
