#include "convert/calibration.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "convert/input_scaling.h"
#include "core/float16.h"
#include "core/mapped_file.h"
#include "runtime/load_model.h"
#include "runtime/run_tokens.h"
#include "runtime/text_windows.h"

namespace millrace {

namespace {

constexpr std::int64_t kStepRows = 128;  // of a step
constexpr std::int64_t kSampleRows = 256;

/// Layers that read the same inputs, and what makes these.
struct SharedInputs {
  std::vector<const RoundedLayer*> readers;
  std::string norm;   // a norm's weight, or
  std::string maker;  // the matrix whose rows from `maker_row` on make them, with its bias
  std::int64_t maker_row = 0;
};

/// What of a model's layers can be scaled without a change of what it computes.
class ScalableInputs {
 public:
  ScalableInputs(const LinearLayers& model, const Checkpoint& checkpoint, const std::vector<RoundedLayer>& layers)
      : model_(&model), checkpoint_(&checkpoint), layers_(&layers) {}

  std::vector<SharedInputs> all() {
    std::vector<SharedInputs> result;
    for (std::size_t l = 0; l < model_->config().layers.size(); ++l) {
      const LayerSpec& spec = model_->config().layers[l];
      const std::string prefix = fmt::format("model.layers.{}.", l);
      const TensorNames& names = model_->names();
      add(result, prefix, {"self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
          {{}, norm(prefix, names.attention_norm), {}, 0});
      if (spec.moe.experts > 0 || spec.intermediate == 0) continue;
      add(result, prefix, {"mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj"},
          {{}, norm(prefix, names.ffn_norm), {}, 0});
      if (spec.activation == Activation::swiglu_clamp) continue;
      add(result, prefix, {"mlp.down_proj"},
          {{},
           {},
           prefix + (names.fused_gate_up ? "mlp.gate_up_proj" : "mlp.up_proj"),
           names.fused_gate_up ? spec.intermediate : 0});
    }
    return result;
  }

 private:
  static std::string norm(const std::string& prefix, const std::string& name) {
    return name.empty() ? name : prefix + name;
  }

  /// Unless one of the layers stays as it is, or what makes the inputs is not there.
  void add(std::vector<SharedInputs>& result, const std::string& prefix, const std::vector<std::string>& names,
           SharedInputs inputs) const {
    if (inputs.norm.empty() && inputs.maker.empty()) return;
    if (checkpoint_->find(inputs.norm.empty() ? inputs.maker + ".weight" : inputs.norm) == nullptr) return;
    for (const std::string& name : names) {
      const std::string tensor = prefix + name + ".weight";
      if (checkpoint_->find(tensor) == nullptr) continue;
      const auto found = std::ranges::find(*layers_, tensor, &RoundedLayer::tensor);
      if (found == layers_->end()) return;
      inputs.readers.push_back(&*found);
    }
    if (!inputs.readers.empty()) result.push_back(std::move(inputs));
  }

  const LinearLayers* model_;
  const Checkpoint* checkpoint_;
  const std::vector<RoundedLayer>* layers_;
};

/// The scales that a norm can be divided by: its weight is stored in a type of few digits, so what is stored decides.
void fit_to_norm(const TensorReader& reader, const StoredTensor& norm, std::vector<float>& scales) {
  const float one = reader.norms_minus_one() ? 1.0f : 0.0f;
  const std::vector<float> stored = reader.read(norm);
  for (std::size_t k = 0; k < scales.size(); ++k) {
    const float weight = stored[k] + one, wanted = weight / scales[k] - one;
    float held = wanted;
    if (norm.format == QuantFormat::bf16) held = round_to_bf16(wanted);
    if (norm.format == QuantFormat::f16) held = f16_to_float(float_to_f16(wanted));
    const float scale = weight / (held + one);
    scales[k] = std::isfinite(scale) && scale > 0.0f ? scale : 1.0f;
  }
}

std::vector<float> inverse_of(std::vector<float> scales) {
  for (float& scale : scales) scale = 1.0f / scale;
  return scales;
}

}  // namespace

Result<std::vector<TokenWindow>> calibration_windows(const LoadedModel& model, const CalibrationText& text) {
  MILLRACE_TRY(const std::string content, read_text_file(text.file));
  if (!model.tokenizer) return fail("{} has no tokenizer to read a text with", model.path);
  MILLRACE_TRY(const std::vector<std::int32_t> start, model.tokenizer->encode("", true));
  MILLRACE_TRY(std::vector<std::int32_t> ids, model.tokenizer->encode(content, false));
  if (static_cast<std::int64_t>(ids.size()) > text.tokens) ids.resize(static_cast<std::size_t>(text.tokens));
  const std::int64_t window = std::min(kCalibrationWindow, model.runner->max_sequence_tokens());
  return cut_windows(ids, window, start.size() == 1 ? std::optional(start.front()) : std::nullopt);
}

Result<StatisticsOfLayers> look_at_inputs(const std::filesystem::path& model, int threads, const CalibrationText& text,
                                          const std::set<std::string>& layers, bool products,
                                          const std::function<void(std::int64_t, std::int64_t)>& progress) {
  WatchingBackend* watching = nullptr;
  LoadOptions options;
  options.path = model;
  options.threads = threads;
  options.limits = {.max_rows = kStepRows, .max_logit_rows = kStepRows};
  options.max_model_len = kCalibrationWindow + 1;
  options.wrap_backend = [&](std::unique_ptr<Backend> inner) -> std::unique_ptr<Backend> {
    auto wrapped = std::make_unique<WatchingBackend>(
        std::move(inner), [layers](const std::string& layer) { return layers.contains(layer); }, products, kSampleRows);
    watching = wrapped.get();
    return wrapped;
  };
  MILLRACE_TRY(const LoadedModel loaded, load_model(options));
  MILLRACE_TRY(const std::vector<TokenWindow> windows, calibration_windows(loaded, text));
  for (std::size_t w = 0; w < windows.size(); ++w) {
    MILLRACE_CHECK_OK(check_tokens(*loaded.runner, windows[w]));
    MILLRACE_CHECK_OK(
        run_tokens(*loaded.runner, windows[w], RowsAre::prompt, [](std::int64_t, std::span<const float>) {}));
    if (progress) progress(static_cast<std::int64_t>(w) + 1, static_cast<std::int64_t>(windows.size()));
  }
  return watching->statistics();
}

int scale_inputs(RoundingMethod method, const LinearLayers& model, const Checkpoint& checkpoint,
                 const std::vector<RoundedLayer>& layers, const StatisticsOfLayers& statistics, TensorReader& reader,
                 ThreadPool& pool) {
  int scaled = 0;
  for (const SharedInputs& inputs : ScalableInputs(model, checkpoint, layers).all()) {
    const auto seen = statistics.find(inputs.readers.front()->layer);
    if (seen == statistics.end()) continue;
    std::vector<std::vector<float>> weights;
    std::vector<ScaledLayer> readers;
    for (const RoundedLayer* layer : inputs.readers) {
      const StoredTensor& tensor = *checkpoint.find(layer->tensor);
      weights.push_back(reader.read(tensor));
      readers.push_back({layer->format, layer->scales, tensor.shape[0], weights.back().data()});
    }
    InputScaling scaling =
        find_input_scaling(method == RoundingMethod::awq ? ScalingMethod::awq : ScalingMethod::smoothquant, readers,
                           seen->second->cols, *seen->second, pool);
    if (scaling.scales.empty()) continue;
    if (!inputs.norm.empty()) {
      fit_to_norm(reader, *checkpoint.find(inputs.norm), scaling.scales);
      reader.scale_columns(inputs.norm, inverse_of(scaling.scales));
    } else {
      const std::vector<float> inverse = inverse_of(scaling.scales);
      reader.scale_rows(inputs.maker + ".weight", inputs.maker_row, inverse);
      reader.scale_rows(inputs.maker + ".bias", inputs.maker_row, inverse);
    }
    for (const RoundedLayer* layer : inputs.readers) reader.scale_columns(layer->tensor, scaling.scales);
    ++scaled;
  }
  return scaled;
}

}  // namespace millrace
