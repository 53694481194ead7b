// What the API has to know of a loaded model: for those who answer OpenAI's requests.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "core/result.h"
#include "runtime/load_model.h"
#include "server/api_model.h"

namespace millrace::cli {

/// `names`: of the model in the API; where there are none, the name of its file or folder, and the path that was given.
/// `warn` is told what will not work. `model` must outlive what is returned. Error: the chat template cannot be read.
Result<ServedModel> make_served_model(const ModelFlags& flags, const std::vector<std::string>& names,
                                      const LoadedModel& model, const std::function<void(const std::string&)>& warn);

/// What a model says and understands, without its weights: for those who have it run elsewhere.
struct ModelText {
  std::string path;
  ModelConfig config;
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  nlohmann::json generation_config;
};
Result<ModelText> load_model_text(const ModelFlags& flags);

/// The same of such a model. Prompts and answers have the model's context together, or `--max-model-len`.
Result<ServedModel> make_served_model(const ModelFlags& flags, const std::vector<std::string>& names,
                                      const ModelText& model, const std::function<void(const std::string&)>& warn);

/// What nodes of a cluster must have in common to give the same tokens: how they compute, the model's files, the
/// recipe. Error: files that cannot be read.
Result<std::string> cluster_numeric_class(const ModelFlags& flags, const LoadedModel& model);

}  // namespace millrace::cli
