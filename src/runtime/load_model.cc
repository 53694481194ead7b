#include "runtime/load_model.h"

#include <algorithm>
#include <utility>

#include "backend/cpu/cpu_backend.h"
#include "backend/reference/reference_backend.h"
#include "core/memory.h"
#include "kv/page_layout.h"
#include "model/families/family.h"
#include "model/tensor_source.h"
#include "model/weight_loader.h"
#include "text/gguf_vocab.h"

namespace millrace {

namespace {

constexpr std::int32_t kPageTokens = 16;

Result<std::unique_ptr<Backend>> make_backend(const LoadOptions& options) {
  if (options.backend == "reference") return make_reference_backend();
  CpuBackendOptions cpu{.threads = options.threads};
  if (options.backend == "cpu:scalar") cpu.isa = IsaLevel::scalar;
  if (options.backend == "cpu:avx2") cpu.isa = IsaLevel::avx2;
  if (options.backend == "cpu:avx512") cpu.isa = IsaLevel::avx512;
  return make_cpu_backend(cpu);
}

}  // namespace

Result<LoadedModel> load_model(const LoadOptions& options) {
  MILLRACE_TRY(Checkpoint checkpoint,
               options.dummy ? Checkpoint::open_config_only(options.path) : Checkpoint::open(options.path));
  MILLRACE_TRY(ModelConfig config, parse_model_config(checkpoint.config(), checkpoint.text().generation_config));
  MILLRACE_TRY(const WeightPlan plan, plan_weights(checkpoint.config(), config));

  LoadedModel model;
  model.path = options.path.string();
  model.generation_config = checkpoint.text().generation_config;
  const PageLayout layout = make_page_layout(kv_shapes(config), kPageTokens, options.compute);
  MILLRACE_TRY(model.memory, plan_memory({.weights = options.dummy ? planned_bytes(plan, checkpoint.config())
                                                                   : checkpoint.weight_bytes(),
                                          .workspace = Decoder::workspace_bytes(config, options.limits),
                                          .kv_page_row = layout.bytes_per_page_row(),
                                          .page_tokens = kPageTokens,
                                          .max_position = config.max_position,
                                          .available = available_memory(),
                                          .kv_memory = options.kv_memory,
                                          .weight_memory = options.weight_memory,
                                          .max_model_len = options.max_model_len}));
  MILLRACE_TRY(model.tokenizer, load_tokenizer(checkpoint));
  MILLRACE_TRY(model.chat_template, load_chat_template(checkpoint));

  MILLRACE_TRY(std::unique_ptr<Backend> backend, make_backend(options));
  const std::unique_ptr<TensorSource> source =
      options.dummy ? make_dummy_source(checkpoint.config()) : make_checkpoint_source(checkpoint);
  MILLRACE_TRY(ModelWeights weights,
               load_weights(config, plan, *source, *backend, LinearFormat{options.compute}, options.progress));
  MILLRACE_TRY(std::unique_ptr<Decoder> decoder,
               Decoder::create(std::move(config), std::move(weights), *backend, options.limits));
  MILLRACE_TRY(std::unique_ptr<KvCache> cache, KvCache::create(layout, model.memory.kv_pages, *backend));
  model.runner = std::make_unique<ModelRunner>(std::move(backend), std::move(decoder), std::move(cache),
                                               model.memory.max_sequence_tokens);
  return model;
}

}  // namespace millrace
