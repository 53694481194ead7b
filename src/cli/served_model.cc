#include "cli/served_model.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/fnv.h"
#include "model/checkpoint/checkpoint.h"
#include "model/families/family.h"
#include "runtime/model_fingerprint.h"
#include "text/answer_format.h"
#include "text/grammar.h"

namespace millrace::cli {

namespace {

/// The template that says most of how the model marks things: that for tools, where there are several.
Result<std::string> template_source(const ModelFlags& flags, const std::string& path) {
  MILLRACE_TRY(const Checkpoint checkpoint, flags.dummy ? Checkpoint::open_config_only(path) : Checkpoint::open(path));
  const auto& config = checkpoint.text().tokenizer_config;
  const auto named = config.find("chat_template");
  if (named != config.end() && named->is_array()) {
    for (const nlohmann::json& entry : *named) {
      if (!entry.is_object() || entry.value("name", nlohmann::json()) != "tool_use") continue;
      const auto text = entry.find("template");
      if (text != entry.end() && text->is_string()) return text->get<std::string>();
    }
  }
  return checkpoint.text().chat_template;
}

}  // namespace

namespace {

/// What both kinds of models have: all but lengths, and what a recipe says.
Result<ServedModel> describe(const ModelFlags& flags, const std::vector<std::string>& names,
                             const std::string& model_path, const ModelConfig& config,
                             const std::optional<Tokenizer>& tokenizer,
                             const std::optional<ChatTemplate>& chat_template, const nlohmann::json& generation_config,
                             const std::function<void(const std::string&)>& warn) {
  ServedModel served;
  served.ids = names;
  if (served.ids.empty()) {
    std::filesystem::path path = std::filesystem::path(model_path).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    served.ids.push_back(path.extension() == ".gguf" ? path.stem().string() : path.filename().string());
    if (!flags.model.empty()) served.ids.push_back(flags.model);
  }
  served.created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  served.tokenizer = tokenizer ? &*tokenizer : nullptr;
  served.chat_template = chat_template ? &*chat_template : nullptr;
  if (served.chat_template != nullptr) {
    MILLRACE_TRY(served.template_source, template_source(flags, model_path));
    served.format = AnswerFormat::detect(served.template_source, served.tokenizer);
  }
  served.eos_ids = config.eos_ids;
  served.vocab = config.vocab;
  served.hidden = config.hidden;
  served.defaults = SamplingDefaults::from(generation_config);
  if (served.tokenizer != nullptr && !served.eos_ids.empty()) {
    auto vocabulary = GrammarVocabulary::create(*served.tokenizer, served.eos_ids, served.vocab);
    if (vocabulary.ok()) {
      served.grammar_vocabulary = std::make_shared<const GrammarVocabulary>(std::move(*vocabulary));
    } else {
      warn("no constrained answers: " + vocabulary.error().message);
    }
  }
  return served;
}

}  // namespace

Result<ServedModel> make_served_model(const ModelFlags& flags, const std::vector<std::string>& names,
                                      const LoadedModel& model, const std::function<void(const std::string&)>& warn) {
  MILLRACE_TRY(ServedModel served, describe(flags, names, model.path, model.runner->config(), model.tokenizer,
                                            model.chat_template, model.generation_config, warn));
  served.fingerprint = system_fingerprint_of(model.runner->backend().numeric_class());
  const AttentionPolicy& policy = model.runner->policy();
  served.pins_system = policy.keep && policy.keep->pin_system;
  served.max_sequence_tokens = model.runner->max_sequence_tokens();
  if (model.runner->max_prompt_tokens() < served.max_sequence_tokens) {
    served.max_prompt_tokens = model.runner->max_prompt_tokens();
  }
  return served;
}

Result<ModelText> load_model_text(const ModelFlags& flags) {
  ModelText model;
  MILLRACE_TRY(model.path, model_path(flags));
  MILLRACE_TRY(const Checkpoint checkpoint, Checkpoint::open_config_only(model.path));
  MILLRACE_TRY(model.config, parse_model_config(checkpoint.config(), checkpoint.text().generation_config));
  model.generation_config = checkpoint.text().generation_config;
  MILLRACE_TRY(model.tokenizer, load_tokenizer(checkpoint));
  MILLRACE_TRY(model.chat_template, load_chat_template(checkpoint));
  return model;
}

Result<ServedModel> make_served_model(const ModelFlags& flags, const std::vector<std::string>& names,
                                      const ModelText& model, const std::function<void(const std::string&)>& warn) {
  MILLRACE_TRY(ServedModel served, describe(flags, names, model.path, model.config, model.tokenizer,
                                            model.chat_template, model.generation_config, warn));
  served.fingerprint = system_fingerprint_of("cluster");
  served.pins_system = true;  // some node's recipe may keep some tokens only
  served.max_sequence_tokens = flags.max_model_len > 0 ? flags.max_model_len : model.config.max_position;
  return served;
}

Result<std::string> cluster_numeric_class(const ModelFlags& flags, const LoadedModel& model) {
  MILLRACE_TRY(const Checkpoint checkpoint,
               flags.dummy ? Checkpoint::open_config_only(model.path) : Checkpoint::open(model.path));
  MILLRACE_TRY(const LoadOptions options, load_options(flags, 1));
  Fnv1a recipe;
  if (!flags.recipe.empty()) {
    std::ifstream file(flags.recipe, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    recipe.add(nlohmann::json::parse(text, nullptr, false).dump());
  }
  return fmt::format("{} {} {} {:016x}{}", model.runner->backend().numeric_class(), dtype_name(options.compute),
                     model_fingerprint(checkpoint), recipe.value(), flags.dummy ? " dummy" : "");
}

}  // namespace millrace::cli
