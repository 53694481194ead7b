#include "eval/cache_key.h"

#include <algorithm>
#include <vector>

#include "core/fnv.h"
#include "quant/integer_blocks.h"
#include "recipe/activation_profile.h"
#include "runtime/neuron_file.h"

namespace millrace {

namespace {

/// The files with tensors, all parts of a split one too, and beside them what says how they are used. A folder may
/// have many others, which nothing depends on.
std::vector<std::filesystem::path> files_of(const LoadOptions& options, const ModelPlan& plan) {
  std::vector<std::filesystem::path> files;
  for (const std::string& file : plan.checkpoint.files()) files.emplace_back(file);
  std::error_code error;
  if (!std::filesystem::is_directory(options.path, error)) {
    files.push_back(options.path);
    return files;
  }
  for (const char* name : {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
    if (std::filesystem::exists(options.path / name, error)) files.push_back(options.path / name);
  }
  return files;
}

Result<std::string> line_of(const std::filesystem::path& file) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(file, error);
  if (error) return fail("cannot read {}: {}", file.string(), error.message());
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return fail("cannot read {}: {}", file.string(), error.message());
  const auto time = std::filesystem::last_write_time(path, error).time_since_epoch().count();
  if (error) return fail("cannot read {}: {}", file.string(), error.message());
  return fmt::format("{} {} {}\n", path.string(), size, time);
}

}  // namespace

bool is_lossless(const LoadOptions& options, const ModelPlan& plan) {
  const auto in_codes = [](const auto& tensor) {
    return integer_blocks(tensor.second.format).has_value() ||
           (tensor.second.coded && tensor.second.coded->byte_inputs);
  };
  return options.recipe.lossless() && options.compute == DType::f32 &&
         !(options.integer_blocks && std::ranges::any_of(plan.checkpoint.tensors(), in_codes));
}

LoadOptions as_stored(LoadOptions options) {
  options.recipe = {};
  options.weight_memory = {};
  options.weight_directory = {};
  options.compute = DType::f32;
  options.integer_blocks = false;
  return options;
}

Result<std::string> stored_key(const LoadOptions& options, const ModelPlan& plan) {
  std::vector<std::string> lines;
  for (const std::filesystem::path& file : files_of(options, plan)) {
    MILLRACE_TRY(std::string line, line_of(file));
    lines.push_back(std::move(line));
  }
  std::ranges::sort(lines);
  lines.erase(std::unique(lines.begin(), lines.end()), lines.end());  // a single file is named twice
  std::string key = fmt::format("{} {}\n", plan.backend->numeric_class(), options.dummy ? "dummy" : "stored");
  for (const std::string& line : lines) key += line;
  return key;
}

Result<std::string> run_key(const LoadOptions& options, const ModelPlan& plan, std::string_view recipe) {
  MILLRACE_TRY(const std::string stored, stored_key(options, plan));
  Fnv1a profile;  // whose name alone is in the recipe
  if (options.recipe.activations && options.recipe.activations->profile != nullptr) {
    profile.add(activation_profile_text(*options.recipe.activations->profile));
  }
  if (options.recipe.attention.budgets.profile != nullptr) {
    profile.add(activation_profile_text(*options.recipe.attention.budgets.profile));
  }
  if (options.recipe.neurons && options.recipe.neurons->profiles != nullptr) {
    profile.add(neuron_profiles_bytes(*options.recipe.neurons->profiles));
  }
  return fmt::format("run\n{}compute {}, integer blocks {}, profile {:016x}\n{}", stored,
                     static_cast<int>(options.compute), options.integer_blocks, profile.value(), recipe);
}

std::filesystem::path cache_file(const std::filesystem::path& folder, std::string_view key, std::string_view ending) {
  Fnv1a name;
  name.add(key);
  return folder / fmt::format("{:016x}.{}", name.value(), ending);
}

}  // namespace millrace
