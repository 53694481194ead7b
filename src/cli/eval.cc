// `millrace eval`: how well a model predicts a text, with the uncertainty, and what a recipe has changed.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "core/mapped_file.h"
#include "core/memory.h"
#include "eval/reference_file.h"
#include "eval/text_quality.h"
#include "quant/integer_blocks.h"
#include "runtime/text_windows.h"

namespace millrace::cli {

namespace {

constexpr int kLogitRows = 64;          // of a step, all of which want logits
constexpr std::int64_t kWindow = 2048;  // tokens, where the model can have as many

struct EvalFlags {
  ModelFlags model;
  std::string text;
  std::int64_t window = 0;
  std::string reference, reference_cache;
  bool no_reference = false;
};

/// The text as the model reads it.
struct EvalText {
  std::vector<TokenWindow> windows;
  std::uint64_t hash = 0;  // of the windows' tokens
};

std::uint64_t hash_of(std::span<const TokenWindow> windows) {  // FNV-1a, 64 bits
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&hash](std::uint64_t value) { hash = (hash ^ value) * 0x100000001b3u; };
  for (const TokenWindow& window : windows) {
    mix(window.size());
    for (const std::int32_t id : window) mix(static_cast<std::uint32_t>(id));
  }
  return hash;
}

Result<EvalText> read_text(const EvalFlags& flags, const ModelPlan& plan) {
  MILLRACE_TRY(const std::string content, read_text_file(flags.text));
  MILLRACE_TRY(const std::optional<Tokenizer> tokenizer, load_tokenizer(plan.checkpoint));
  if (!tokenizer) return fail("{} has no tokenizer", plan.checkpoint.path());
  // Every window begins as a text does: with what the tokenizer puts before one, if that is a single token.
  MILLRACE_TRY(const std::vector<std::int32_t> start, tokenizer->encode("", true));
  MILLRACE_TRY(const std::vector<std::int32_t> ids, tokenizer->encode(content, false));
  std::int64_t longest = plan.config.max_position;
  if (flags.model.max_model_len > 0) longest = std::min(longest, flags.model.max_model_len);
  EvalText text;
  MILLRACE_TRY(text.windows, cut_windows(ids, flags.window > 0 ? flags.window : std::min(longest, kWindow),
                                         start.size() == 1 ? std::optional(start.front()) : std::nullopt));
  text.hash = hash_of(text.windows);
  return text;
}

/// What the reference's figures depend on: the model's files, how they are computed, the text. Files are told apart by
/// size and time, as reading them all would take as long as evaluating.
Result<std::string> reference_key(const LoadOptions& options, const ModelPlan& plan, const EvalText& text) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(options.path, error);
  std::vector<std::string> files;
  const auto add = [&](const std::filesystem::path& file) {
    const auto time = std::filesystem::last_write_time(file, error).time_since_epoch().count();
    files.push_back(fmt::format("{} {} {}", file.string(), std::filesystem::file_size(file, error), time));
  };
  if (std::filesystem::is_directory(path, error)) {
    for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
      if (entry.path().extension() == ".safetensors" || entry.path().filename() == "config.json") add(entry.path());
    }
  } else {
    add(path);
  }
  if (error) return fail("cannot read {}: {}", options.path.string(), error.message());
  std::ranges::sort(files);
  std::string key = fmt::format("{} {}\n{} windows {:016x}\n", plan.backend->numeric_class(),
                                options.dummy ? "dummy" : "stored", text.windows.size(), text.hash);
  for (const std::string& file : files) key += file + "\n";
  return key;
}

Result<std::filesystem::path> cache_folder(const EvalFlags& flags) {
  if (!flags.reference_cache.empty()) return std::filesystem::path(flags.reference_cache);
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/') {
    return std::filesystem::path(cache) / "millrace" / "eval";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return std::filesystem::path(home) / ".cache" / "millrace" / "eval";
  }
  return fail("no folder for the reference: HOME is not set; name one with --reference-cache");
}

/// Nothing is rounded that the file has.
bool is_lossless(const LoadOptions& options, const ModelPlan& plan) {
  const auto in_codes = [](const auto& tensor) {
    return integer_blocks(tensor.second.format).has_value() ||
           (tensor.second.coded && tensor.second.coded->byte_inputs);
  };
  return options.recipe.lossless() && options.compute == DType::f32 &&
         !(options.integer_blocks && std::ranges::any_of(plan.checkpoint.tensors(), in_codes));
}

/// Says what is about to be written. Error: the disk has no room for it.
Status announce(const std::filesystem::path& folder, const EvalText& text, std::size_t there, std::int64_t vocab) {
  std::uint64_t positions = 0;
  for (std::size_t w = there; w < text.windows.size(); ++w) positions += text.windows[w].size() - 1;
  const std::uint64_t most = positions * 2 * static_cast<std::uint64_t>(vocab);
  std::error_code error;
  const auto space = std::filesystem::space(folder, error);
  if (!error && space.available < most) {
    return fail(
        "what the model as stored says of this text takes up to {}, and {} has {} left: name another folder with "
        "--reference-cache, take a shorter text, or do without (--no-reference)",
        format_size(most), folder.string(), format_size(space.available));
  }
  fmt::print(stderr, "running the model as stored first; what it says takes up to {} in {} (--no-reference: without)\n",
             format_size(most), folder.string());
  return Ok{};
}

/// The file with what the model as stored says of the text, computed as far as it is not there.
Result<ReferenceFile> reference_of(const EvalFlags& flags, const LoadOptions& tested, const ModelPlan& plan,
                                   const EvalText& text) {
  MILLRACE_TRY(const std::filesystem::path folder, cache_folder(flags));
  MILLRACE_TRY(const std::string key, reference_key(tested, plan, text));
  std::uint64_t name = 0xcbf29ce484222325u;
  for (const char c : key) name = (name ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  MILLRACE_TRY(ReferenceFile file, ReferenceFile::open(folder / fmt::format("{:016x}.reference", name), key,
                                                       static_cast<std::int32_t>(plan.config.vocab)));
  if (file.windows() < text.windows.size()) {
    MILLRACE_CHECK_OK(announce(folder, text, file.windows(), plan.config.vocab));
    LoadOptions stored = tested;
    stored.recipe = {};
    stored.weight_memory = {};
    stored.compute = DType::f32;
    stored.integer_blocks = false;
    MILLRACE_TRY(const LoadedModel model, load(std::move(stored)));
    MILLRACE_CHECK_OK(write_reference(*model.runner, text.windows, file, progress_bar("reference")));
  }
  file.finish();
  return file;
}

/// The same of another model, which must read the text as this one does.
Result<ReferenceFile> reference_of_other(const EvalFlags& flags, const LoadOptions& tested, const ModelPlan& plan,
                                         const EvalText& text) {
  LoadOptions other = tested;
  other.path = flags.reference;
  other.recipe = {};
  MILLRACE_TRY(const ModelPlan other_plan, plan_model(other));
  MILLRACE_TRY(const EvalText other_text, read_text(flags, other_plan));
  if (other_plan.config.vocab != plan.config.vocab || other_text.hash != text.hash) {
    return fail("{} reads the text as other tokens than {}: they cannot be compared", flags.reference,
                tested.path.string());
  }
  return reference_of(flags, other, other_plan, text);
}

nlohmann::ordered_json interval_json(const Estimate& estimate) {
  if (!estimate.interval) return nullptr;
  return {estimate.interval->first, estimate.interval->second};
}

/// A model as stored is its own reference; a recipe without one is compared with nothing.
void print_json(const TextQuality& quality, bool lossless) {
  nlohmann::ordered_json document{{"tokens", quality.tokens},
                                  {"windows", quality.windows},
                                  {"perplexity", quality.perplexity.value},
                                  {"mean_nll", quality.mean_nll}};
  nlohmann::ordered_json intervals{{"perplexity", interval_json(quality.perplexity)}};
  const Comparison itself{.reference_perplexity = quality.perplexity,
                          .perplexity_ratio = {1.0},
                          .kl_mean = {0.0},
                          .kl_p99 = {0.0},
                          .top1_agreement = {1.0}};
  const bool compared = quality.comparison.has_value() || lossless;
  const Comparison comparison = quality.comparison.value_or(itself);
  const auto add = [&](const char* name, const Estimate& estimate) {
    if (!compared) return;
    document[name] = estimate.value;
    intervals[name] = interval_json(estimate);
  };
  add("reference_perplexity", comparison.reference_perplexity);
  add("perplexity_ratio", comparison.perplexity_ratio);
  add("kl_mean", comparison.kl_mean);
  add("kl_p99", comparison.kl_p99);
  add("top1_agreement", comparison.top1_agreement);
  document["ci95"] = intervals;
  std::printf("%s\n", document.dump().c_str());
}

std::string interval_text(const Estimate& estimate, double unit = 1.0) {
  if (!estimate.interval) return "no interval: the text is one window";
  return fmt::format("95 % interval {:.6g} to {:.6g}", unit * estimate.interval->first,
                     unit * estimate.interval->second);
}

void print_text(const TextQuality& quality) {
  fmt::print("perplexity             {:.4f} ({}) over {} tokens\n", quality.perplexity.value,
             interval_text(quality.perplexity), quality.tokens);
  if (!quality.comparison) return;
  const Comparison& c = *quality.comparison;
  fmt::print("as stored              {:.4f} ({})\n", c.reference_perplexity.value,
             interval_text(c.reference_perplexity));
  fmt::print("ratio                  {:.5f} ({})\n", c.perplexity_ratio.value, interval_text(c.perplexity_ratio));
  fmt::print("KL divergence, mean    {:.3e} nats ({})\n", c.kl_mean.value, interval_text(c.kl_mean));
  fmt::print("KL divergence, p99     {:.3e} nats ({})\n", c.kl_p99.value, interval_text(c.kl_p99));
  fmt::print("same most likely token {:.2f} % ({})\n", 100 * c.top1_agreement.value,
             interval_text(c.top1_agreement, 100.0));
}

Status run(const EvalFlags& flags) {
  MILLRACE_TRY(LoadOptions options, load_options(flags.model, std::min(kLogitRows, flags.model.max_batch_tokens)));
  EvalText text;
  std::optional<ReferenceFile> reference;
  bool lossless = false;
  {
    MILLRACE_TRY(const ModelPlan plan, plan_model(options));
    MILLRACE_TRY(text, read_text(flags, plan));
    lossless = is_lossless(options, plan) && flags.reference.empty();
    if (!flags.reference.empty()) {
      MILLRACE_TRY(reference, reference_of_other(flags, options, plan, text));
    } else if (!lossless && !flags.no_reference) {
      MILLRACE_TRY(reference, reference_of(flags, options, plan, text));
    }
  }
  MILLRACE_TRY(const LoadedModel model, load(std::move(options)));
  MILLRACE_TRY(
      const std::vector<WindowQuality> windows,
      judge_windows(*model.runner, text.windows, reference ? &*reference : nullptr, progress_bar("evaluating")));
  const TextQuality quality = summarize(windows, reference.has_value());
  if (flags.model.json) {
    print_json(quality, lossless);
  } else {
    print_text(quality);
  }
  return Ok{};
}

}  // namespace

void add_eval(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "Measure how well a model predicts a text, and what a recipe loses");
  add_model_flags(*command, flags->model);
  command->add_option("--text", flags->text, "Text file")->required();
  command->add_option("--window", flags->window, "Tokens of a window; absent: 2,048, or what the model can")
      ->check(CLI::PositiveNumber);
  command->add_option("--reference-cache", flags->reference_cache,
                      "Folder for what the model as stored says; absent: in the user's cache");
  command->add_option("--reference", flags->reference,
                      "Model to compare with, run as it is stored; absent: the same model as stored");
  command->add_flag("--no-reference", flags->no_reference, "Perplexity only: do not run the model as stored");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
