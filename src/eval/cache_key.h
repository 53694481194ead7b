// The names of what `millrace eval` keeps on disk: whatever the figures of a model depend on, beside what it reads.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "core/result.h"
#include "runtime/load_model.h"

namespace millrace {

/// Nothing is rounded that the model's file has.
bool is_lossless(const LoadOptions& options, const ModelPlan& plan);

/// The options for the same model as it is stored, with nothing rounded.
LoadOptions as_stored(LoadOptions options);

/// Of the model as stored: the numeric class and each file that it is read from. Files are told apart by size and time,
/// as reading them all would take as long as evaluating. Error: one cannot be looked at.
Result<std::string> stored_key(const LoadOptions& options, const ModelPlan& plan);

/// Of a run with a recipe, whose text is given: the same, and what it rounds. Error: as above.
Result<std::string> run_key(const LoadOptions& options, const ModelPlan& plan, std::string_view recipe);

/// The file of a key in the folder: its hash, with an ending.
std::filesystem::path cache_file(const std::filesystem::path& folder, std::string_view key, std::string_view ending);

}  // namespace millrace
