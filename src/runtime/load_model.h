// From a path to a model that runs: opens the checkpoint, budgets memory, packs the weights, makes the tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "core/dtype.h"
#include "core/result.h"
#include "kv/page_layout.h"
#include "model/checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/tensor_names.h"
#include "recipe/recipe.h"
#include "runtime/memory_plan.h"
#include "runtime/model_runner.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace millrace {

struct LoadOptions {
  std::filesystem::path path;   // a Hugging Face directory, a .gguf file; with `dummy` a config.json will do
  bool dummy = false;           // random weights from the config alone (model/tensor_source.h)
  std::string backend = "cpu";  // "cpu", "cpu:" and an ISA level, "cuda" or "reference"
  int threads = 0;              // 0: one a core
  DType compute = DType::f32;   // what matrix products read and the KV memory holds (backend/matrix_source.h)
  bool integer_blocks = false;  // products with GGUF's blocks of integer codes round their inputs (same header)
  Recipe recipe;                // lossy methods
  std::optional<std::uint64_t> kv_memory;      // bytes
  std::optional<std::uint64_t> weight_memory;  // bytes that weights may take
  // Bytes of the KV memory for sequences that wait, where the recipe keeps some of what they have: an eighth without
  // it.
  std::optional<std::uint64_t> swap_memory;
  std::string weight_directory;  // for a file of neurons that weight_memory does not hold; empty: there is none
  std::optional<std::int64_t> max_model_len;  // tokens of a sequence
  std::int64_t sequences = 1;                 // that run at once: KV memory for them, where there is room
  Decoder::Limits limits;
  std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)> wrap_backend;  // may be empty
  std::function<void(std::uint64_t done, std::uint64_t total)> progress;  // bytes of weights packed; may be empty
};

/// "auto" becomes "cuda" where the build has it and the machine a device, else "cpu"; other names stay.
std::string resolve_backend(const std::string& name);

/// What a model will be, before anything of it is read: its files are open, its weights counted, nothing is packed.
struct ModelPlan {
  Checkpoint checkpoint;
  ModelConfig config;
  TensorNames names;
  std::unique_ptr<Backend> backend;
  AttentionPolicy attention;  // the recipe's, with budgets of layers where it names a profile
  PageLayout layout;
  std::uint64_t weight_bytes = 0;     // as the backend will pack them
  std::uint64_t workspace_bytes = 0;  // activations
  // Where weights are on disk: how many neurons of each layer are not, and where the others are; else empty.
  std::vector<std::int64_t> resident_neurons;
  NeuronStoreOptions neuron_store = {};
};

struct LoadedModel {
  std::string path;
  std::unique_ptr<ModelRunner> runner;
  std::optional<Tokenizer> tokenizer;  // none where the checkpoint has none
  std::optional<ChatTemplate> chat_template;
  nlohmann::json generation_config;
  MemoryPlan memory;
};

/// Errors: whatever is wrong with the files, an unsupported architecture, a tensor that is missing or misshapen, a
/// recipe that speaks of layers which the model does not have.
Result<ModelPlan> plan_model(const LoadOptions& options);

/// plan_model, then everything else. Errors: those, and too little memory (with the figures).
Result<LoadedModel> load_model(const LoadOptions& options);

/// The tokenizer and chat template of a checkpoint, without its weights. A checkpoint without a tokenizer is no error.
Result<std::optional<Tokenizer>> load_tokenizer(const Checkpoint& checkpoint);
Result<std::optional<ChatTemplate>> load_chat_template(const Checkpoint& checkpoint);

}  // namespace millrace
