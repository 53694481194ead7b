// `millrace tokenize`: the token ids of a text.

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"

namespace millrace::cli {

namespace {

struct TokenizeFlags {
  ModelFlags model;
  std::string prompt;
  bool no_special = false;
};

Status run(const TokenizeFlags& flags) {
  MILLRACE_TRY(const std::string path, model_path(flags.model));
  MILLRACE_TRY(const Checkpoint checkpoint, Checkpoint::open_config_only(path));
  MILLRACE_TRY(const std::optional<Tokenizer> tokenizer, load_tokenizer(checkpoint));
  if (!tokenizer) return fail("{} has no tokenizer", path);
  std::string text = flags.prompt;
  if (text == "-") text.assign(std::istreambuf_iterator<char>(std::cin), {});
  MILLRACE_TRY(const std::vector<std::int32_t> ids, tokenizer->encode(text, !flags.no_special));
  if (flags.model.json) {
    std::cout << nlohmann::json{{"ids", ids}}.dump() << '\n';
    return Ok{};
  }
  for (const std::int32_t id : ids) {
    std::cout << id << '\t' << nlohmann::json(tokenizer->id_to_token(id).value_or("")).dump() << '\n';
  }
  return Ok{};
}

}  // namespace

void add_tokenize(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command = app.add_subcommand("tokenize", "Print the token ids of a text");
  add_model_flags(*command, flags->model);
  command->add_option("-p,--prompt", flags->prompt, "Text; - reads standard input")->required();
  command->add_flag("--no-special", flags->no_special, "Leave out the special tokens that the tokenizer adds");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
