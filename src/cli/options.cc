#include "cli/options.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "backend/cpu/isa_level.h"
#include "core/mapped_file.h"
#include "core/memory.h"
#include "runtime/neuron_file.h"

namespace millrace::cli {

namespace {

/// A bar on standard error, redrawn only when a percent is full; silent where standard error is no terminal.
class ProgressBar {
 public:
  ProgressBar(const char* label, std::string (*show)(std::uint64_t)) : label_(label), show_(show) {}

  void operator()(std::uint64_t done, std::uint64_t total) {
    if (::isatty(STDERR_FILENO) == 0 || total == 0) return;
    const auto percent = static_cast<int>(done * 100 / total);
    if (percent == shown_) return;
    shown_ = percent;
    constexpr int kWidth = 40;
    const int filled = percent * kWidth / 100;
    std::fprintf(stderr, "\r%s [%s%s] %3d%% of %s", label_, std::string(static_cast<std::size_t>(filled), '#').c_str(),
                 std::string(static_cast<std::size_t>(kWidth - filled), ' ').c_str(), percent, show_(total).c_str());
    if (done == total) std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }

 private:
  const char* label_;
  std::string (*show_)(std::uint64_t total);
  int shown_ = -1;
};

Result<std::optional<std::uint64_t>> optional_size(const std::string& text, const char* flag) {
  if (text.empty()) return std::optional<std::uint64_t>();
  auto size = parse_size(text);
  if (!size.ok()) return fail("{}: {}", flag, size.error().message);
  return std::optional<std::uint64_t>(*size);
}

/// The profile that a recipe in `folder` names: beside it, so that the two can be moved together.
Result<std::shared_ptr<const ActivationProfile>> read_profile(const std::filesystem::path& folder,
                                                              const std::string& name) {
  const std::filesystem::path file = folder / name;
  MILLRACE_TRY(const std::string text, read_text_file(file, std::size_t{256} << 20));
  MILLRACE_TRY(ActivationProfile profile, parse_activation_profile(text, file.string()));
  return std::make_shared<const ActivationProfile>(std::move(profile));
}

/// A recipe is a promise about how a model runs, so one that asks for what this build does not do is refused.
Result<Recipe> read_recipe(const std::string& path) {
  if (path.empty()) return Recipe();
  MILLRACE_TRY(const std::string text, read_text_file(path, std::size_t{1} << 20));
  MILLRACE_TRY(Recipe recipe, parse_recipe(text, path));
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (recipe.activations && !recipe.activations->profile_file.empty()) {
    MILLRACE_TRY(recipe.activations->profile, read_profile(folder, recipe.activations->profile_file));
  }
  if (PageBudgets& budgets = recipe.attention.budgets; !budgets.profile_file.empty()) {
    MILLRACE_TRY(budgets.profile, read_profile(folder, budgets.profile_file));
  }
  if (recipe.neurons && !recipe.neurons->profile_file.empty()) {
    MILLRACE_TRY(NeuronProfiles profiles, read_neuron_profiles(folder / recipe.neurons->profile_file));
    recipe.neurons->profiles = std::make_shared<const NeuronProfiles>(std::move(profiles));
  }
  return recipe;
}

/// As LoadOptions has it.
Result<std::string> backend_name(const ModelFlags& flags) {
  if (!flags.isa.empty()) {
    if (flags.device == "cuda" || flags.device == "reference") return fail("--isa is for --device cpu");
    return "cpu:" + flags.isa;
  }
  return resolve_backend(flags.device);
}

}  // namespace

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  command.add_option("model", flags.model, "Hugging Face directory or .gguf file; absent: the built-in model");
  command.add_option("--recipe", flags.recipe, "File with the lossy methods to use");
  command.add_option("--threads", flags.threads, "Threads; 0: one a core")->check(CLI::Range(0, 1024));
  command.add_option("--device", flags.device, "auto, cpu, cuda, or reference (scalar and slow: the oracle)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "reference"}));
  std::vector<std::string> levels(kIsaLevels.size());
  std::ranges::transform(kIsaLevels, levels.begin(), [](IsaLevel level) { return std::string(isa_level_name(level)); });
  command.add_option("--isa", flags.isa, "Force an instruction set of the cpu backend")->check(CLI::IsMember(levels));
  command.add_option("--kv-memory", flags.kv_memory, "KV memory, such as 512M or 2G");
  command.add_option("--swap-memory", flags.swap_memory,
                     "Part of the KV memory for sequences that wait, where the recipe keeps some of it; an eighth");
  command.add_option("--weight-memory", flags.weight_memory, "The most that weights may take");
  command.add_option("--weight-file", flags.weight_directory,
                     "Directory on a disk for the neurons that --weight-memory does not hold (recipes with hot_cold)");
  command.add_option("--max-model-len", flags.max_model_len, "The most tokens of a sequence, answer included")
      ->check(CLI::PositiveNumber);
  command.add_option("--max-batch-tokens", flags.max_batch_tokens, "Rows of a step: the chunk of a prefill")
      ->check(CLI::Range(1, 65536));
  command
      .add_option(
          "--compute-dtype", flags.compute_dtype,
          "What matrix products read and the KV memory holds; auto: f32 on the cpu, bf16 with cuda. With auto and bf16 "
          "products with GGUF's blocks read 8-bit inputs; f32: nothing is rounded")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}));
  command.add_flag("--dummy", flags.dummy, "Random weights from the config alone");
  command.add_flag("--json", flags.json, "Print one JSON document");
}

Result<std::string> model_path(const ModelFlags& flags) {
  if (!flags.model.empty()) return flags.model;
  std::error_code error;
  const std::filesystem::path binary = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path installed = binary.parent_path().parent_path() / "share/millrace/models/millrace-tiny";
  for (const std::filesystem::path& candidate : {installed, std::filesystem::path(MILLRACE_BUILTIN_MODEL)}) {
    if (std::filesystem::exists(candidate / "config.json", error)) return candidate.string();
  }
  return fail("no built-in model at {} or {}; name a model", installed.string(), MILLRACE_BUILTIN_MODEL);
}

Result<LoadOptions> load_options(const ModelFlags& flags, std::int64_t max_logit_rows) {
  LoadOptions options;
  MILLRACE_TRY(options.recipe, read_recipe(flags.recipe));
  MILLRACE_TRY(options.path, model_path(flags));
  MILLRACE_TRY(options.backend, backend_name(flags));
  MILLRACE_TRY(options.kv_memory, optional_size(flags.kv_memory, "--kv-memory"));
  MILLRACE_TRY(options.swap_memory, optional_size(flags.swap_memory, "--swap-memory"));
  MILLRACE_TRY(options.weight_memory, optional_size(flags.weight_memory, "--weight-memory"));
  options.weight_directory = flags.weight_directory;
  if (flags.max_model_len > 0) options.max_model_len = flags.max_model_len;
  options.dummy = flags.dummy;
  options.threads = flags.threads;
  // Matrix units of GPUs have no f32: there bf16 is what a user expects.
  const bool bf16 = flags.compute_dtype == "bf16" || (flags.compute_dtype == "auto" && options.backend == "cuda");
  options.compute = bf16 ? DType::bf16 : DType::f32;
  options.integer_blocks = flags.compute_dtype != "f32";
  options.limits = {.max_rows = flags.max_batch_tokens, .max_logit_rows = max_logit_rows};
  return options;
}

Result<LoadedModel> load(const ModelFlags& flags, std::int64_t max_logit_rows, std::int64_t sequences) {
  MILLRACE_TRY(LoadOptions options, load_options(flags, max_logit_rows));
  options.sequences = sequences;
  return load(std::move(options));
}

Result<LoadedModel> load(LoadOptions options) {
  options.progress = ProgressBar("loading", format_size);
  return load_model(options);
}

std::function<void(std::int64_t, std::int64_t)> progress_bar(const char* label) {
  ProgressBar bar(label, [](std::uint64_t total) { return std::to_string(total); });
  return [bar](std::int64_t done, std::int64_t total) mutable {
    bar(static_cast<std::uint64_t>(done), static_cast<std::uint64_t>(total));
  };
}

Result<std::vector<std::int32_t>> parse_ids(const std::string& text) {
  std::vector<std::int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    while (at != end && (*at == ' ' || *at == ',')) ++at;
    if (at == end) break;
    std::int32_t id = 0;
    const auto [after, code] = std::from_chars(at, end, id);
    if (code != std::errc() || id < 0 || (after != end && *after != ',' && *after != ' ')) {
      return fail("--ids: \"{}\" is not a list of token ids such as 1,2,3", text);
    }
    ids.push_back(id);
    at = after;
  }
  return ids;
}

}  // namespace millrace::cli
