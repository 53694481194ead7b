// `millrace inspect`: architecture, tensors, formats, memory needed, path.

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "core/memory.h"
#include "kv/page_layout.h"

namespace millrace::cli {

namespace {

struct InspectFlags {
  ModelFlags model;
  bool tensors = false;
};

/// What is worth knowing of a checkpoint, as the JSON document of the contract.
Result<nlohmann::ordered_json> describe(const ModelFlags& flags) {
  MILLRACE_TRY(const LoadOptions options, load_options(flags, 1));
  MILLRACE_TRY(const ModelPlan plan, plan_model(options));
  const Checkpoint& checkpoint = plan.checkpoint;
  const ModelConfig& config = plan.config;
  const PageLayout& layout = plan.layout;

  std::map<std::string, std::pair<std::int64_t, std::uint64_t>> formats;  // name -> tensors, bytes
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  std::int64_t parameters = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const std::string format(format_info(tensor.format).name);
    formats[format].first += 1;
    formats[format].second += tensor.bytes();
    parameters += tensor.elements();
    tensors.push_back({{"name", name}, {"format", format}, {"shape", tensor.shape}, {"bytes", tensor.bytes()}});
  }
  nlohmann::ordered_json format_list = nlohmann::ordered_json::object();
  for (const auto& [name, entry] : formats) format_list[name] = {{"tensors", entry.first}, {"bytes", entry.second}};

  nlohmann::ordered_json groups = nlohmann::ordered_json::array();
  for (const CacheGroup& group : layout.groups) {
    groups.push_back({{"window", group.window},
                      {"bytes_per_token", group.page_bytes / static_cast<std::size_t>(layout.page_tokens)}});
  }
  const AttentionSpec& attention = config.layers.front().attention;
  const LayerSpec& layer = config.layers.back();
  return nlohmann::ordered_json{
      {"path", options.path.string()},
      {"architecture", config.architecture},
      {"family", config.family},
      {"parameters", parameters},
      {"layers", config.layers.size()},
      {"hidden_size", config.hidden},
      {"vocab_size", config.vocab},
      {"context", config.max_position},
      {"heads", attention.heads},
      {"kv_heads", attention.kv_heads},
      {"head_dim", attention.head_dim},
      {"intermediate_size", layer.intermediate},
      {"experts", layer.moe.experts},
      {"experts_per_token", layer.moe.top_k},
      {"tied_head", config.tied_head},
      {"formats", format_list},
      {"memory",
       {{"file_bytes", checkpoint.weight_bytes()},
        {"weights_bytes", plan.weight_bytes},
        {"workspace_bytes", plan.workspace_bytes},
        {"kv_bytes_per_token", layout.bytes_per_page_row() / static_cast<std::size_t>(layout.page_tokens)},
        {"kv_groups", groups},
        {"available_bytes", plan.backend->free_memory()}}},
      {"tokenizer", !checkpoint.text().tokenizer_json.empty()},
      {"chat_template", !checkpoint.text().chat_template.empty()},
      {"tensors", tensors}};
}

std::string scalar_text(const nlohmann::ordered_json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Status run(const InspectFlags& flags) {
  MILLRACE_TRY(const nlohmann::ordered_json document, describe(flags.model));
  if (flags.model.json) {
    std::printf("%s\n", document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return Ok{};
  }
  for (const auto& [key, value] : document.items()) {
    if (value.is_primitive()) std::printf("%-20s %s\n", key.c_str(), scalar_text(value).c_str());
  }
  for (const auto& [name, entry] : document["formats"].items()) {
    std::printf("%-20s %d tensors, %s\n", ("format " + name).c_str(), entry["tensors"].get<int>(),
                format_size(entry["bytes"].get<std::uint64_t>()).c_str());
  }
  const auto& memory = document["memory"];
  for (const char* key : {"file_bytes", "weights_bytes", "workspace_bytes", "kv_bytes_per_token", "available_bytes"}) {
    std::printf("%-20s %s\n", key, format_size(memory[key].get<std::uint64_t>()).c_str());
  }
  if (flags.tensors) {
    for (const auto& tensor : document["tensors"]) {
      std::printf("%-60s %-7s %s\n", tensor["name"].get<std::string>().c_str(),
                  tensor["format"].get<std::string>().c_str(), tensor["shape"].dump().c_str());
    }
  }
  return Ok{};
}

}  // namespace

void add_inspect(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand("inspect", "Show architecture, tensors, formats and memory needed");
  add_model_flags(*command, flags->model);
  command->add_flag("--tensors", flags->tensors, "List every tensor");
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
