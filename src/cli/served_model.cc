#include "cli/served_model.h"

#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "model/checkpoint/checkpoint.h"
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

Result<ServedModel> make_served_model(const ModelFlags& flags, const std::vector<std::string>& names,
                                      const LoadedModel& model, const std::function<void(const std::string&)>& warn) {
  ServedModel served;
  served.ids = names;
  if (served.ids.empty()) {
    std::filesystem::path path = std::filesystem::path(model.path).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    served.ids.push_back(path.extension() == ".gguf" ? path.stem().string() : path.filename().string());
    if (!flags.model.empty()) served.ids.push_back(flags.model);
  }
  served.created =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  served.fingerprint = system_fingerprint_of(model.runner->backend().numeric_class());
  const ModelConfig& config = model.runner->config();
  served.tokenizer = model.tokenizer ? &*model.tokenizer : nullptr;
  const AttentionPolicy& policy = model.runner->policy();
  served.pins_system = policy.keep && policy.keep->pin_system;
  served.chat_template = model.chat_template ? &*model.chat_template : nullptr;
  if (served.chat_template != nullptr) {
    MILLRACE_TRY(served.template_source, template_source(flags, model.path));
    served.format = AnswerFormat::detect(served.template_source, served.tokenizer);
  }
  served.eos_ids = config.eos_ids;
  served.vocab = config.vocab;
  served.hidden = config.hidden;
  served.max_sequence_tokens = model.runner->max_sequence_tokens();
  if (model.runner->max_prompt_tokens() < served.max_sequence_tokens) {
    served.max_prompt_tokens = model.runner->max_prompt_tokens();
  }
  served.defaults = SamplingDefaults::from(model.generation_config);
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

}  // namespace millrace::cli
