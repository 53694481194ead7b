// `millrace quantize`: a checkpoint with its linear layers rounded, for this program and others.

#include "convert/quantize.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/options.h"
#include "convert/block_encoder.h"
#include "convert/quantize_gguf.h"
#include "core/mapped_file.h"
#include "core/memory.h"

namespace millrace::cli {

namespace {

struct QuantizeFlags {
  ModelFlags model;  // model, recipe, threads and json alone
  std::string output, format, method = "rtn", text;
  std::int64_t tokens = 65536;
};

constexpr const char* kGgufFormats = "q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k, f16, bf16 and f32";

bool is_gguf_output(const QuantizeFlags& flags) {
  return std::filesystem::path(flags.output).extension() == ".gguf";
}

std::optional<QuantFormat> gguf_format(const std::string& name) {
  const std::optional<QuantFormat> format = format_from_name(name);
  return format && can_encode(*format) ? format : std::nullopt;
}

Result<Recipe> recipe_of(const QuantizeFlags& flags) {
  if (flags.format.empty() == flags.model.recipe.empty()) {
    return fail("say what to round to: either --format or --recipe");
  }
  if (flags.format.empty()) {
    MILLRACE_TRY(const std::string text, read_text_file(flags.model.recipe));
    MILLRACE_TRY(Recipe recipe, parse_recipe(text, flags.model.recipe));
    if (recipe.kv_format || recipe.byte_inputs || !recipe.attention.reads_all() || recipe.activations) {
      return fail("{}: \"{}\" is not of a checkpoint; give it where the model runs", flags.model.recipe,
                  recipe.kv_format                ? "kv"
                  : recipe.byte_inputs            ? "inputs"
                  : !recipe.attention.reads_all() ? "attention"
                                                  : "activations");
    }
    return recipe;
  }
  Recipe recipe;
  recipe.default_weights = code_format_from_name(flags.format);
  if (!recipe.default_weights && gguf_format(flags.format)) {
    return fail("--format {} is one of GGUF's: the output's name has to end in .gguf", flags.format);
  }
  if (!recipe.default_weights) {
    return fail(
        "--format {} is not known; there are int8, int4, int4.g32, int4.g64, int4.g128, each int4 with .sym, "
        "nvfp4, mxfp4 and fp8_e4m3, and all of these with .a16",
        flags.format);
  }
  return recipe;
}

nlohmann::ordered_json as_json(const QuantizeReport& report) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const LayerReport& layer : report.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"format", layer.format},
                      {"rows", layer.rows},
                      {"cols", layer.cols},
                      {"relative_error", layer.error},
                      {"largest_change", layer.largest},
                      {"output_error", layer.output_error ? nlohmann::ordered_json(*layer.output_error) : nullptr}});
  }
  return {{"layers", layers},
          {"source_bytes", report.source_bytes},
          {"output_bytes", report.output_bytes},
          {"scaled_groups", report.scaled},
          {"resumed_steps", report.resumed},
          {"notes", report.notes}};
}

RoundingMethod method_of(const std::string& name) {
  if (name == "gptq") return RoundingMethod::gptq;
  if (name == "awq") return RoundingMethod::awq;
  if (name == "smoothquant") return RoundingMethod::smoothquant;
  return RoundingMethod::nearest;
}

std::function<void(std::uint64_t, std::uint64_t)> quantizing_bar() {
  return [bar = progress_bar("quantizing")](std::uint64_t done, std::uint64_t total) {
    bar(static_cast<std::int64_t>(done), static_cast<std::int64_t>(total));
  };
}

Result<QuantizeReport> write_directory(const QuantizeFlags& flags) {
  QuantizeOptions options{.output = flags.output, .threads = flags.model.threads};
  MILLRACE_TRY(options.model, model_path(flags.model));
  MILLRACE_TRY(options.recipe, recipe_of(flags));
  options.method = method_of(flags.method);
  options.text = {.file = flags.text, .tokens = flags.tokens};
  options.text_progress = progress_bar("calibrating");
  options.progress = quantizing_bar();
  return quantize_checkpoint(options);
}

Result<QuantizeReport> write_gguf(const QuantizeFlags& flags) {
  if (!flags.model.recipe.empty()) {
    return fail("--recipe names formats that GGUF does not have; with a .gguf output give --format");
  }
  if (flags.method != "rtn" || !flags.text.empty()) {
    return fail("a GGUF file is written by rounding to nearest alone: --method and --text are for a directory");
  }
  const std::optional<QuantFormat> format = gguf_format(flags.format);
  if (!format) return fail("--format {} is none that is written as GGUF; there are {}", flags.format, kGgufFormats);
  GgufOptions options{.output = flags.output, .format = *format, .threads = flags.model.threads};
  MILLRACE_TRY(options.model, model_path(flags.model));
  options.progress = quantizing_bar();
  return quantize_to_gguf(options);
}

Status run(const QuantizeFlags& flags) {
  MILLRACE_TRY(const QuantizeReport report, is_gguf_output(flags) ? write_gguf(flags) : write_directory(flags));
  if (flags.model.json) {
    std::printf("%s\n", as_json(report).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return Ok{};
  }
  std::printf("%-50s %-14s %14s %10s %10s %12s\n", "layer", "format", "size", "error", "outputs", "largest");
  for (const LayerReport& layer : report.layers) {
    const std::string outputs = layer.output_error ? fmt::format("{:.3f} %", 100.0 * *layer.output_error) : "";
    std::printf("%-50s %-14s %6lld x %5lld %8.3f %% %10s %12.3g\n", layer.layer.c_str(), layer.format.c_str(),
                static_cast<long long>(layer.rows), static_cast<long long>(layer.cols), 100.0 * layer.error,
                outputs.c_str(), layer.largest);
  }
  for (const std::string& note : report.notes) std::printf("%s\n", note.c_str());
  if (report.resumed > 0) std::printf("%zu steps were there from an earlier call\n", report.resumed);
  std::printf("%s became %s in %s\n", format_size(report.source_bytes).c_str(),
              format_size(report.output_bytes).c_str(), flags.output.c_str());
  return Ok{};
}

}  // namespace

void add_quantize(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* command =
      app.add_subcommand("quantize", "Write a model with its linear layers rounded, as safetensors or GGUF");
  command->add_option("model", flags->model.model, "Hugging Face directory or .gguf file; absent: the built-in model");
  command
      ->add_option(
          "-o,--output", flags->output,
          "Directory to write: new, empty, or of a call that was stopped; or a new file whose name ends in .gguf")
      ->required();
  command->add_option("--format", flags->format,
                      "Of all linear layers but the head, such as int8 or int4.g64; in a .gguf file of all matrices, "
                      "such as q8_0 or q4_k");
  command->add_option("--recipe", flags->model.recipe, "File that says the formats layer by layer");
  command->add_option("--method", flags->method, "rtn rounds to nearest; gptq, awq and smoothquant go by a text")
      ->check(CLI::IsMember({"rtn", "gptq", "awq", "smoothquant"}));
  command->add_option("--text", flags->text, "Text that the method goes by; with rtn for the report alone");
  command->add_option("--tokens", flags->tokens, "Of it that are read at most")->check(CLI::PositiveNumber);
  command->add_option("--threads", flags->model.threads, "Threads; 0: one a core")->check(CLI::Range(0, 1024));
  command->add_flag("--json", flags->model.json, "Print one JSON document");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
