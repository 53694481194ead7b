#include "convert/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>

#include "backend/matrix_source.h"
#include "convert/code_grid.h"
#include "convert/compressed_tensors.h"
#include "convert/linear_layers.h"
#include "convert/safetensors_writer.h"
#include "core/check.h"
#include "core/float16.h"
#include "model/checkpoint/checkpoint.h"
#include "model/weight_builder.h"
#include "quant/codec.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kBlockElements = std::int64_t{16} << 20;  // that are in memory as floats at once
constexpr std::size_t kCopyBytes = std::size_t{16} << 20;
constexpr std::string_view kWeight = ".weight";

/// One tensor of the source and what becomes of it.
struct Step {
  const StoredTensor* source = nullptr;
  std::string name;                  // in the result
  std::string layer;                 // of a matrix: the name without ".weight"
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

/// What the source's numbers mean, as floats.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const TensorNames& names) : checkpoint_(&checkpoint), names_(&names) {}

  /// Rows [first, first + count) of a matrix, or all of a vector as one row.
  void read(const StoredTensor& tensor, std::int64_t first, std::int64_t count, float* target, ThreadPool& pool) const {
    const std::int64_t rows = tensor.shape.size() < 2 ? 1 : tensor.shape.front(), cols = tensor.elements() / rows;
    SourceTensor source{tensor, {}};
    std::vector<float> ordered;
    if (tensor.shape.size() < 2 && tensor.unpermute_heads > 0) {  // a bias, whose rows are its elements
      source.stored.shape = {cols, 1};
      const MatrixSource column{{WeightBuilder::piece(source, cols, 1, {})}};
      for (std::int64_t i = 0; i < cols; ++i) read_row(column, i, target + i);
      return;
    }
    const MatrixSource matrix{{WeightBuilder::piece(source, rows, cols, {})}};
    pool.run(count, [&](std::int64_t row, int) { read_row(matrix, first + row, target + row * cols); });
    if (names_->norms_minus_one && checkpoint_->norms_include_one() && tensor.name.ends_with("norm.weight")) {
      for (std::int64_t i = 0; i < count * cols; ++i) target[i] -= 1.0f;
    }
  }

  /// Whether the bytes of the source can be taken as they are.
  [[nodiscard]] bool as_stored(const StoredTensor& tensor) const {
    const bool shifted =
        names_->norms_minus_one && checkpoint_->norms_include_one() && tensor.name.ends_with("norm.weight");
    return plain_dtype(tensor.format) && tensor.unpermute_heads == 0 && !shifted;
  }

 private:
  const Checkpoint* checkpoint_;
  const TensorNames* names_;
};

class Conversion {
 public:
  Conversion(const QuantizeOptions& options, Checkpoint checkpoint, LinearLayers layers, ThreadPool& pool)
      : options_(&options),
        checkpoint_(std::move(checkpoint)),
        layers_(std::move(layers)),
        reader_(checkpoint_, layers_.names()),
        pool_(&pool) {}

  Result<QuantizeReport> run() {
    MILLRACE_CHECK_OK(plan());
    MILLRACE_CHECK_OK(prepare_output());
    MILLRACE_TRY(SafetensorsWriter writer,
                 SafetensorsWriter::open(options_->output / "model.safetensors", tensors_, fingerprint()));
    report_.resumed = writer.finished();
    std::uint64_t done = 0;
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      const std::string step = std::to_string(i);
      if (const std::string* note = writer.note(step)) {
        MILLRACE_CHECK_OK(remember(*note));
      } else {
        MILLRACE_TRY(const std::string written, write(writer, steps_[i]));
        MILLRACE_CHECK_OK(writer.finish(step, written));
        MILLRACE_CHECK_OK(remember(written));
        checkpoint_.release(*steps_[i].source);
      }
      done += steps_[i].source->bytes();
      if (options_->progress) options_->progress(done, report_.source_bytes);
    }
    // What says that this is a model comes last, so that half of one is never taken for a whole.
    MILLRACE_CHECK_OK(writer.commit());
    MILLRACE_CHECK_OK(write_texts());
    return std::move(report_);
  }

 private:
  Status plan() {
    std::vector<const StoredTensor*> sources;
    for (const auto& [name, tensor] : checkpoint_.tensors()) sources.push_back(&tensor);
    // As they lie in the file.
    std::ranges::sort(sources, std::less<>(), [](const StoredTensor* tensor) { return tensor->data.data(); });
    for (const StoredTensor* source : sources) {
      Step step;
      step.source = source;
      step.name = source->name_in_file.empty() ? source->name : source->name_in_file;
      if (source->shape.size() == 2 && step.name.ends_with(kWeight)) {
        step.layer = step.name.substr(0, step.name.size() - kWeight.size());
        if (const auto layer = layers_.of_tensor(source->name)) step.format = format_of(*layer);
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
    if (quantised_.empty()) return fail("the recipe leaves all layers of {} as they are", options_->model.string());
    return Ok{};
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
    for (const auto& entry : fs::directory_iterator(output, error)) {
      const std::string name = entry.path().filename().string();
      if (name != "model.safetensors.part" && name != "model.safetensors.journal") {
        return fail("{} is not empty ({}): name a new directory", output.string(), name);
      }
    }
    if (error) return fail("cannot read the directory {}: {}", output.string(), error.message());
    return Ok{};
  }

  /// What the result depends on.
  [[nodiscard]] std::string fingerprint() const {
    std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, 64 bits
    const auto mix = [&hash](std::string_view text) {
      for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    };
    for (const OutputTensor& tensor : tensors_)
      mix(fmt::format("{} {} {}\n", tensor.name, tensor.dtype, fmt::join(tensor.shape, " ")));
    for (const auto& [layer, format] : quantised_) mix(layer + ' ' + code_format_name(format) + '\n');
    std::error_code error;
    mix(fs::canonical(options_->model, error).string());
    for (const std::string& file : checkpoint_.files()) {
      mix(fmt::format("{} {} {}\n", file, fs::file_size(file, error),
                      fs::last_write_time(file, error).time_since_epoch().count()));
    }
    return fmt::format("millrace quantize 1 {:016x}", hash);
  }

  /// Returns the note for the journal.
  Result<std::string> write(SafetensorsWriter& writer, const Step& step) {
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
      reader_.read(source, first, count, values_.data(), *pool_);
      return write_plain(writer, step, static_cast<std::uint64_t>(first * cols));
    };
    MILLRACE_CHECK_OK(for_blocks(rows, cols, 1, copy));
    return std::string("{}");
  }

  Status write_plain(SafetensorsWriter& writer, const Step& step, std::uint64_t first) {
    if (step.dtype == "F32") {
      return writer.write(step.name, first * sizeof(float), std::as_bytes(std::span(values_)));
    }
    std::vector<std::uint16_t> halves(values_.size());
    std::ranges::transform(values_, halves.begin(), step.dtype == "BF16" ? float_to_bf16 : float_to_f16);
    return writer.write(step.name, first * sizeof(std::uint16_t), std::as_bytes(std::span(halves)));
  }

  Result<std::string> write_codes(SafetensorsWriter& writer, const Step& step) {
    const StoredTensor& source = *step.source;
    const std::int64_t rows = source.shape[0], cols = source.shape[1];
    float largest = 0.0f;
    const auto read = [&](std::int64_t first, std::int64_t count) -> Status {
      values_.resize(static_cast<std::size_t>(count * cols));
      reader_.read(source, first, count, values_.data(), *pool_);
      for (const float value : values_) {
        if (!std::isfinite(value)) return fail("{} holds a weight that is not finite: it is damaged", source.name);
        largest = std::max(largest, std::fabs(value));
      }
      return Ok{};
    };
    const bool needs_largest = step.format->kind == CodeKind::e2m1 && step.format->group == 16;
    if (needs_largest) MILLRACE_CHECK_OK(for_blocks(rows, cols, kPackedRows, read));
    const float unit = tensor_unit(*step.format, largest);
    double squares = 0.0, changes = 0.0, largest_change = 0.0;
    const auto round = [&](std::int64_t first, std::int64_t count) -> Status {
      MILLRACE_CHECK_OK(read(first, count));
      const CodedRows coded = round_to_nearest(*step.format, step.scales, unit, values_.data(), count, cols, *pool_);
      for (std::int64_t i = 0; i < count * cols; ++i) {
        const double value = values_[static_cast<std::size_t>(i)], change = value - coded.value(i / cols, i % cols);
        squares += value * value;
        changes += change * change;
        largest_change = std::max(largest_change, std::fabs(change));
      }
      return write_compressed(writer, step.layer, step.scales, coded, first, rows);
    };
    MILLRACE_CHECK_OK(for_blocks(rows, cols, kPackedRows, round));
    const nlohmann::json note{{"layer", step.layer},
                              {"format", code_format_name(*step.format)},
                              {"rows", rows},
                              {"cols", cols},
                              {"error", squares > 0.0 ? std::sqrt(changes / squares) : 0.0},
                              {"largest", largest_change}};
    return note.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  }

  /// fn(first, count) over blocks of rows, whole multiples of `multiple` but for the last.
  template <typename Function>
  static Status for_blocks(std::int64_t rows, std::int64_t cols, std::int64_t multiple, Function&& fn) {
    const std::int64_t step = std::max<std::int64_t>(1, kBlockElements / cols / multiple) * multiple;
    for (std::int64_t first = 0; first < rows; first += step) {
      MILLRACE_CHECK_OK(fn(first, std::min(step, rows - first)));
    }
    return Ok{};
  }

  Status remember(const std::string& note) {
    const nlohmann::json entry = nlohmann::json::parse(note, nullptr, false);
    if (!entry.is_object()) return fail("the journal in {} is damaged: remove it", options_->output.string());
    if (entry.empty()) return Ok{};
    report_.layers.push_back({.layer = entry.value("layer", ""),
                              .format = entry.value("format", ""),
                              .rows = entry.value("rows", std::int64_t{0}),
                              .cols = entry.value("cols", std::int64_t{0}),
                              .error = entry.value("error", 0.0),
                              .largest = entry.value("largest", 0.0)});
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

  /// Tokenizer and templates as they are beside the source, or as they were read from a GGUF file; config.json last.
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
  Reader reader_;
  ThreadPool* pool_;
  std::vector<Step> steps_;
  std::vector<OutputTensor> tensors_;
  std::vector<std::pair<std::string, CodeFormat>> quantised_;
  std::vector<std::string> ignored_;  // matrices that stay, whatever they are
  std::vector<float> values_;
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
  MILLRACE_TRY(const std::unique_ptr<ThreadPool> pool, ThreadPool::create(options.threads));
  return Conversion(options, std::move(checkpoint), std::move(layers), *pool).run();
}

}  // namespace millrace
