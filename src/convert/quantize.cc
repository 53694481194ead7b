#include "convert/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "backend/matrix_source.h"
#include "convert/code_grid.h"
#include "convert/compressed_tensors.h"
#include "convert/conversion.h"
#include "convert/layer_rounding.h"
#include "convert/linear_layers.h"
#include "convert/safetensors_writer.h"
#include "convert/tensor_reader.h"
#include "core/check.h"
#include "core/float16.h"
#include "core/memory.h"
#include "model/checkpoint/checkpoint.h"
#include "model/weight_builder.h"
#include "quant/codec.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeight = ".weight";

/// One tensor of the source and what becomes of it.
struct Step {
  const StoredTensor* source = nullptr;
  std::string name;                  // in the result
  std::string layer;                 // of a matrix: the name without ".weight"
  std::string recipe_layer;          // of a linear layer: its name there
  std::optional<CodeFormat> format;  // nothing: it is copied
  ScaleType scales = ScaleType::f16;
  std::string_view dtype;  // of what is copied
};

std::optional<std::string_view> plain_dtype(QuantFormat format) {
  switch (format) {
    case QuantFormat::f32:
      return "F32";
    case QuantFormat::f16:
      return "F16";
    case QuantFormat::bf16:
      return "BF16";
    default:
      return std::nullopt;
  }
}

ScaleType scale_type(QuantFormat format) {
  return format == QuantFormat::f32 ? ScaleType::f32 : format == QuantFormat::bf16 ? ScaleType::bf16 : ScaleType::f16;
}

class Conversion {
 public:
  Conversion(const QuantizeOptions& options, Checkpoint checkpoint, LinearLayers layers, ThreadPool& pool)
      : options_(&options),
        checkpoint_(std::move(checkpoint)),
        layers_(std::move(layers)),
        reader_(checkpoint_, layers_.names(), pool),
        pool_(&pool) {}

  Result<QuantizeReport> run() {
    MILLRACE_CHECK_OK(plan());
    MILLRACE_CHECK_OK(prepare_output());
    MILLRACE_TRY(StepFile writer, open_safetensors(options_->output / "model.safetensors", tensors_, fingerprint()));
    report_.resumed = writer.finished();
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      if (writer.note(std::to_string(i)) != nullptr) done_bytes_ += steps_[i].source->bytes();
    }
    for (const std::vector<std::size_t>& stage : stages()) MILLRACE_CHECK_OK(run_stage(writer, stage));
    for (std::size_t i = 0; i < steps_.size(); ++i) MILLRACE_CHECK_OK(remember(*writer.note(std::to_string(i))));
    // The weights get their name last: without them nothing takes the directory for a model, and until then the journal
    // is there to go on from.
    MILLRACE_CHECK_OK(write_texts());
    MILLRACE_CHECK_OK(writer.commit());
    return std::move(report_);
  }

 private:
  /// Steps in the order in which they are done, those of a stage after the text has been run for them once more.
  [[nodiscard]] std::vector<std::vector<std::size_t>> stages() const {
    std::vector<std::vector<std::size_t>> stages(1);
    if (options_->method != RoundingMethod::gptq) {
      for (std::size_t i = 0; i < steps_.size(); ++i) stages.front().push_back(i);
      return stages;
    }
    // As many layers at once as the products of their inputs have room for; one at least.
    const std::uint64_t room = options_->memory > 0 ? options_->memory : available_memory() / 2;
    std::map<std::string, std::vector<std::size_t>> blocks;  // "model.layers.3": what belongs together
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      const std::string& name = steps_[i].recipe_layer;
      const std::size_t dot = name.find('.', std::string_view("model.layers.").size());
      blocks[steps_[i].format ? name.substr(0, dot) : ""].push_back(i);
    }
    std::uint64_t taken = 0;
    for (const auto& [name, steps] : blocks) {
      const std::uint64_t needed = products_of(steps);
      if (taken > 0 && taken + needed > room) {
        stages.emplace_back();
        taken = 0;
      }
      taken += needed;
      stages.back().insert(stages.back().end(), steps.begin(), steps.end());
    }
    return stages;
  }

  /// Bytes of the products of the inputs of these steps; q, k and v share theirs, and gate and up.
  [[nodiscard]] std::uint64_t products_of(const std::vector<std::size_t>& steps) const {
    std::uint64_t bytes = 0;
    for (const std::size_t i : steps) {
      const Step& step = steps_[i];
      if (!step.format) continue;
      const auto ends = [&](std::string_view name) { return step.layer.ends_with(name); };
      if (ends("k_proj") || ends("v_proj") || ends("up_proj")) continue;
      const auto cols = static_cast<std::uint64_t>(step.source->shape[1]);
      bytes += cols * cols * sizeof(float);
    }
    return bytes;
  }

  Status run_stage(StepFile& writer, const std::vector<std::size_t>& stage) {
    std::set<std::string> wanted;
    for (const std::size_t i : stage) {
      const bool open = steps_[i].format && writer.note(std::to_string(i)) == nullptr;
      // Scales depend on all layers that share inputs, finished or not.
      if (open || (steps_[i].format && scales_inputs())) wanted.insert(steps_[i].recipe_layer);
    }
    if (!options_->text.file.empty() && !wanted.empty()) {
      MILLRACE_TRY(statistics_, look_at_inputs(options_->model, options_->threads, options_->text, wanted,
                                               options_->method == RoundingMethod::gptq, options_->text_progress));
    }
    if (scales_inputs()) {
      report_.scaled =
          scale_inputs(options_->method, layers_, checkpoint_, rounded_layers(), statistics_, reader_, *pool_);
    }
    for (const std::size_t i : stage) {
      const std::string step = std::to_string(i);
      if (writer.note(step) != nullptr) continue;
      MILLRACE_TRY(const std::string written, write(writer, steps_[i]));
      MILLRACE_CHECK_OK(writer.finish(step, written));
      checkpoint_.release(*steps_[i].source);
      done_bytes_ += steps_[i].source->bytes();
      if (options_->progress) options_->progress(done_bytes_, report_.source_bytes);
    }
    statistics_.clear();
    return Ok{};
  }

  [[nodiscard]] bool scales_inputs() const {
    return options_->method == RoundingMethod::awq || options_->method == RoundingMethod::smoothquant;
  }

  [[nodiscard]] std::vector<RoundedLayer> rounded_layers() const {
    std::vector<RoundedLayer> layers;
    for (const Step& step : steps_) {
      if (step.format) layers.push_back({step.source->name, step.recipe_layer, *step.format, step.scales});
    }
    return layers;
  }

  Status plan() {
    std::vector<const StoredTensor*> sources;
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (tensor.shape.size() == 3 && layers_.of_expert(name, 0)) {
        split_experts(tensor);
      } else {
        sources.push_back(&tensor);
      }
    }
    for (const StoredTensor& expert : experts_) sources.push_back(&expert);
    // As they lie in the file.
    std::ranges::sort(sources, std::less<>(), [](const StoredTensor* tensor) { return tensor->data.data(); });
    for (const StoredTensor* source : sources) {
      Step step;
      step.source = source;
      step.name = source->name_in_file.empty() ? source->name : source->name_in_file;
      if (source->shape.size() == 2 && step.name.ends_with(kWeight)) {
        step.layer = step.name.substr(0, step.name.size() - kWeight.size());
        if (const auto layer = layers_.of_tensor(source->name)) {
          step.format = format_of(*layer);
          step.recipe_layer = *layer;
        }
        if (!step.format && !step.layer.ends_with("embed_tokens")) ignored_.push_back(step.layer);
      }
      step.scales = scale_type(source->format);
      step.dtype = plain_dtype(source->format).value_or("F16");
      report_.source_bytes += source->bytes();
      if (step.format) {
        MILLRACE_TRY(const std::vector<OutputTensor> parts,
                     compressed_tensors(step.layer, *step.format, step.scales, source->shape[0], source->shape[1]));
        tensors_.insert(tensors_.end(), parts.begin(), parts.end());
        quantised_.emplace_back(step.layer, *step.format);
      } else {
        tensors_.push_back({step.name, step.dtype, source->shape});
      }
      steps_.push_back(std::move(step));
    }
    for (const OutputTensor& tensor : tensors_) report_.output_bytes += tensor.bytes();
    // A head that is the embedding is a layer of its own for others.
    if (checkpoint_.find("lm_head.weight") == nullptr) ignored_.emplace_back("lm_head");
    if (quantised_.empty()) return fail("the recipe leaves all layers of {} as they are", options_->model.string());
    return Ok{};
  }

  /// A tensor of all experts, as GGUF has them, becomes one for each, which is what others look for.
  void split_experts(const StoredTensor& all) {
    const auto share = all.data.size() / static_cast<std::size_t>(all.shape[0]);
    for (std::int64_t e = 0; e < all.shape[0]; ++e) {
      StoredTensor expert = all;
      expert.name = *layers_.of_expert(all.name, e);
      expert.shape = {all.shape[1], all.shape[2]};
      expert.data = all.data.subspan(static_cast<std::size_t>(e) * share, share);
      experts_.push_back(std::move(expert));
    }
  }

  /// The head stays unless it is named: others do not look for a quantised one, and it is the layer that loses most.
  [[nodiscard]] std::optional<CodeFormat> format_of(const std::string& layer) const {
    const bool named = std::ranges::any_of(options_->recipe.weights,
                                           [&](const WeightRule& rule) { return matches(rule.pattern, layer); });
    if (layer == "lm_head" && !named) return std::nullopt;
    return options_->recipe.weights_of(layer);
  }

  Status prepare_output() {
    std::error_code error;
    const fs::path& output = options_->output;
    fs::create_directories(output, error);
    if (error) return fail("cannot make the directory {}: {}", output.string(), error.message());
    const bool unfinished =
        fs::exists(output / "model.safetensors.journal", error) && !fs::exists(output / "model.safetensors", error);
    for (const auto& entry : fs::directory_iterator(output, error)) {
      const std::string name = entry.path().filename().string();
      if (!unfinished && name != "model.safetensors.part") {
        return fail("{} is not empty ({}): name a new directory", output.string(), name);
      }
    }
    if (error) return fail("cannot read the directory {}: {}", output.string(), error.message());
    return Ok{};
  }

  /// What the result depends on.
  [[nodiscard]] std::string fingerprint() const {
    Fingerprint all;
    for (const OutputTensor& tensor : tensors_)
      all.add(fmt::format("{} {} {}\n", tensor.name, tensor.dtype, fmt::join(tensor.shape, " ")));
    for (const auto& [layer, format] : quantised_) all.add(layer + ' ' + code_format_name(format) + '\n');
    std::error_code error;
    all.add(fs::canonical(options_->model, error).string());
    for (const std::string& file : checkpoint_.files()) all.add_file(file);
    const CalibrationText& text = options_->text;
    all.add(fmt::format("{} {} {} {}", static_cast<int>(options_->method), text.file.string(), text.tokens,
                        text.file.empty() ? 0 : fs::last_write_time(text.file, error).time_since_epoch().count()));
    return fmt::format("quantize 1 {:016x}", all.value());
  }

  /// Returns the note for the journal.
  Result<std::string> write(StepFile& writer, const Step& step) {
    if (step.format) return write_codes(writer, step);
    const StoredTensor& source = *step.source;
    if (reader_.as_stored(source)) {
      for (std::size_t done = 0; done < source.data.size(); done += kCopyBytes) {
        MILLRACE_CHECK_OK(
            writer.write(step.name, done, source.data.subspan(done, std::min(kCopyBytes, source.data.size() - done))));
      }
      return std::string("{}");
    }
    const std::int64_t rows = source.shape.size() < 2 ? 1 : source.shape.front(), cols = source.elements() / rows;
    const auto copy = [&](std::int64_t first, std::int64_t count) -> Status {
      values_.resize(static_cast<std::size_t>(count * cols));
      reader_.read(source, first, count, values_.data());
      return write_plain(writer, step, static_cast<std::uint64_t>(first * cols));
    };
    MILLRACE_CHECK_OK(for_blocks(rows, cols, 1, copy));
    return std::string("{}");
  }

  Status write_plain(StepFile& writer, const Step& step, std::uint64_t first) {
    if (step.dtype == "F32") {
      return writer.write(step.name, first * sizeof(float), std::as_bytes(std::span(values_)));
    }
    std::vector<std::uint16_t> halves(values_.size());
    std::ranges::transform(values_, halves.begin(), step.dtype == "BF16" ? float_to_bf16 : float_to_f16);
    return writer.write(step.name, first * sizeof(std::uint16_t), std::as_bytes(std::span(halves)));
  }

  Result<std::string> write_codes(StepFile& writer, const Step& step) {
    const StoredTensor& source = *step.source;
    const std::int64_t rows = source.shape[0], cols = source.shape[1];
    float largest = 0.0f;
    const auto read = [&](std::int64_t first, std::int64_t count) -> Status {
      values_.resize(static_cast<std::size_t>(count * cols));
      reader_.read(source, first, count, values_.data());
      for (const float value : values_) {
        if (!std::isfinite(value)) return fail("{} holds a weight that is not finite: it is damaged", source.name);
        largest = std::max(largest, std::fabs(value));
      }
      return Ok{};
    };
    const bool needs_largest = step.format->kind == CodeKind::e2m1 && step.format->group == 16;
    if (needs_largest) MILLRACE_CHECK_OK(for_blocks(rows, cols, kPackedRows, read));
    const float unit = tensor_unit(*step.format, largest);
    // Of experts nothing was seen: they are rounded to nearest.
    const auto seen = statistics_.find(step.recipe_layer);
    MILLRACE_TRY(LayerRounding rounding, LayerRounding::create(options_->method, *step.format, step.scales, unit,
                                                               seen == statistics_.end() ? nullptr : seen->second.get(),
                                                               reader_.column_factors(source.name), *pool_));
    const auto round = [&](std::int64_t first, std::int64_t count) -> Status {
      MILLRACE_CHECK_OK(read(first, count));
      return write_compressed(writer, step.layer, step.scales, rounding.round(values_.data(), count, cols, *pool_),
                              first, rows);
    };
    MILLRACE_CHECK_OK(for_blocks(rows, cols, kPackedRows, round));
    return journal_note({.layer = step.layer,
                         .format = code_format_name(*step.format),
                         .rows = rows,
                         .cols = cols,
                         .error = rounding.error(),
                         .largest = rounding.largest_change(),
                         .output_error = rounding.output_error()});
  }

  Status remember(const std::string& note) {
    MILLRACE_TRY(std::optional<LayerReport> layer, layer_of_note(note, options_->output / "model.safetensors.journal"));
    if (layer) report_.layers.push_back(std::move(*layer));
    return Ok{};
  }

  Status write_file(const std::string& name, const std::string& content) {
    const fs::path path = options_->output / name;
    std::ofstream file(path, std::ios::binary);
    file << content;
    file.close();
    if (!file) return fail("cannot write {}", path.string());
    return Ok{};
  }

  /// Tokenizer and templates as they are beside the source, or as they were read from a GGUF file; config.json.
  Status write_texts() {
    constexpr const char* kTexts[] = {"tokenizer.json",
                                      "tokenizer_config.json",
                                      "generation_config.json",
                                      "chat_template.jinja",
                                      "special_tokens_map.json",
                                      "added_tokens.json",
                                      "tokenizer.model",
                                      "vocab.json",
                                      "merges.txt",
                                      "chat_template.json"};
    std::error_code error;
    const bool directory = fs::is_directory(options_->model, error);
    for (const char* name : kTexts) {
      const fs::path from = options_->model / name;
      if (!directory || !fs::exists(from, error)) continue;
      fs::copy_file(from, options_->output / name, fs::copy_options::overwrite_existing, error);
      if (error) return fail("cannot copy {}: {}", from.string(), error.message());
    }
    const TextAssets& text = checkpoint_.text();
    const auto dump = [](const nlohmann::json& json) {
      return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    };
    if (!directory) {
      if (!text.tokenizer_json.empty()) MILLRACE_CHECK_OK(write_file("tokenizer.json", text.tokenizer_json));
      if (!text.chat_template.empty()) MILLRACE_CHECK_OK(write_file("chat_template.jinja", text.chat_template));
      MILLRACE_CHECK_OK(write_file("tokenizer_config.json", dump(text.tokenizer_config)));
      MILLRACE_CHECK_OK(write_file("generation_config.json", dump(text.generation_config)));
    }
    nlohmann::json config = checkpoint_.config();
    config["quantization_config"] = quantization_config(quantised_, ignored_);
    return write_file("config.json", dump(config));
  }

  const QuantizeOptions* options_;
  Checkpoint checkpoint_;
  LinearLayers layers_;
  TensorReader reader_;
  ThreadPool* pool_;
  std::deque<StoredTensor> experts_;  // parts of tensors that hold all of a layer's
  std::vector<Step> steps_;
  std::vector<OutputTensor> tensors_;
  std::vector<std::pair<std::string, CodeFormat>> quantised_;
  std::vector<std::string> ignored_;  // matrices that stay, whatever they are
  std::vector<float> values_;
  StatisticsOfLayers statistics_;  // of the stage
  std::uint64_t done_bytes_ = 0;
  QuantizeReport report_;
};

}  // namespace

Result<QuantizeReport> quantize_checkpoint(const QuantizeOptions& options) {
  MILLRACE_TRY(Checkpoint checkpoint, Checkpoint::open(options.model));
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (tensor.coded) {
      return fail("{} is quantised already: start from the model that it was made of", options.model.string());
    }
  }
  MILLRACE_TRY(LinearLayers layers, LinearLayers::of(checkpoint));
  for (const WeightRule& rule : options.recipe.weights) {
    if (std::ranges::none_of(layers.all(), [&](const std::string& layer) { return matches(rule.pattern, layer); })) {
      return fail("the recipe's pattern \"{}\" matches no linear layer of {}", rule.pattern, options.model.string());
    }
  }
  if (options.method != RoundingMethod::nearest && options.text.file.empty()) {
    return fail("this method goes by what a text does to the model: name one");
  }
  if (options.method == RoundingMethod::smoothquant) {
    const WeightFormat& format = options.recipe.default_weights;
    if (format && (format->four_bits() || format->float_inputs)) {
      return fail("SmoothQuant is for formats that round inputs: int8 or fp8_e4m3");
    }
  }
  MILLRACE_TRY(const std::unique_ptr<ThreadPool> pool, ThreadPool::create(options.threads));
  return Conversion(options, std::move(checkpoint), std::move(layers), *pool).run();
}

}  // namespace millrace
