// What the API has to know of a loaded model: for those who answer OpenAI's requests.
#pragma once

#include <functional>
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

}  // namespace millrace::cli
