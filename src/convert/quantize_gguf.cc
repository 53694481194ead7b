#include "convert/quantize_gguf.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>

#include "convert/block_encoder.h"
#include "convert/gguf_model_keys.h"
#include "convert/gguf_plan.h"
#include "convert/linear_layers.h"
#include "convert/step_file.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/json.h"
#include "model/families/family.h"
#include "quant/codec.h"
#include "text/tokenizer.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeight = ".weight";

/// What the rounding of some rows changes.
struct Changes {
  double squares = 0.0, changes = 0.0, largest = 0.0;
  bool finite = true;
};

/// Texts that show how a tokenizer splits: case, digits, contractions, lines, other scripts, symbols. Without runs of
/// spaces, which some shorten: that is noted elsewhere.
constexpr std::string_view kSamples[] = {
    "The quick brown fox's 12345 jumps: 3.14 it's they'll HELLO World camelCase",
    "def f(x):\n\treturn x # tab\there\n\n\nnew paragraph",
    "na\u00efve caf\u00e9 \u4f60\u597d\u4e16\u754c \u043f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 "
    "\U0001f600 \u00bd \u20ac100 <tag> [INST] {\"k\": 1}",
};

/// The tokens that a tokenizer.json finds in a text before all else, without runs of spaces as well.
std::vector<std::string> added_tokens(const std::string& tokenizer_json) {
  std::vector<std::string> tokens;
  const nlohmann::json tokenizer = nlohmann::json::parse(tokenizer_json, nullptr, false);
  const auto added = tokenizer.is_object() ? tokenizer.find("added_tokens") : tokenizer.end();
  if (!tokenizer.is_object() || added == tokenizer.end() || !added->is_array()) return tokens;
  for (const nlohmann::json& token : *added) {
    const auto content = token.is_object() ? token.find("content") : token.end();
    if (!token.is_object() || content == token.end() || !content->is_string()) continue;
    std::string text = content->get<std::string>();
    if (text.find("  ") == std::string::npos) tokens.push_back(std::move(text));
  }
  return tokens;
}

/// Encodes a tensor block by block and adds up what that changes.
class TensorWriter {
 public:
  TensorWriter(StepFile& file, const GgufStep& step, ThreadPool& pool) : file_(&file), step_(&step), pool_(&pool) {}

  /// The step's note.
  Result<std::string> write() {
    const GgufOutputTensor& output = step_->output;
    if (!step_->stored.empty() && step_->source_format == output.format) {
      MILLRACE_CHECK_OK(for_blocks(step_->rows(), step_->cols(), 1,
                                   [&](std::int64_t first, std::int64_t count) { return copy(first, count); }));
    } else {
      MILLRACE_CHECK_OK(for_blocks(step_->rows(), step_->cols(), step_->multiple,
                                   [&](std::int64_t first, std::int64_t count) { return round(first, count); }));
    }
    if (!is_quantised(output.name, output.shape.size())) return std::string("{}");
    return journal_note({.layer = output.name.substr(0, output.name.size() - kWeight.size()),
                         .format = std::string(format_info(output.format).name),
                         .rows = step_->rows(),
                         .cols = step_->cols(),
                         .error = all_.squares > 0.0 ? std::sqrt(all_.changes / all_.squares) : 0.0,
                         .largest = all_.largest,
                         .output_error = {}});
  }

 private:
  /// What becomes of the bytes is known, but not whether they are weights.
  Status copy(std::int64_t first, std::int64_t count) {
    MILLRACE_CHECK_OK(read(first, count));
    const std::uint64_t row_bytes = format_bytes(step_->output.format, static_cast<std::size_t>(step_->cols()));
    const std::uint64_t offset = static_cast<std::uint64_t>(first) * row_bytes;
    return file_->write(step_->output.name, offset,
                        step_->stored.subspan(offset, static_cast<std::uint64_t>(count) * row_bytes));
  }

  Status read(std::int64_t first, std::int64_t count) {
    values_.resize(static_cast<std::size_t>(count * step_->cols()));
    step_->read(first, count, values_.data());
    if (std::ranges::all_of(values_, [](float value) { return std::isfinite(value); })) return Ok{};
    return fail("{} holds a weight that is not finite: it is damaged", shown(std::string_view(step_->output.name)));
  }

  Status round(std::int64_t first, std::int64_t count) {
    const auto cols = static_cast<std::size_t>(step_->cols());
    const std::size_t row_bytes = format_bytes(step_->output.format, cols);
    bytes_.resize(static_cast<std::size_t>(count) * row_bytes);
    MILLRACE_CHECK_OK(read(first, count));
    std::vector<Changes> rows(static_cast<std::size_t>(count));
    pool_->run(count, [&](std::int64_t r, int) {
      const auto row = static_cast<std::size_t>(r);
      rows[row] = round_row(values_.data() + row * cols, bytes_.data() + row * row_bytes, cols);
    });
    for (const Changes& row : rows) {  // in order, so that the number of threads does not show
      if (!row.finite) {
        return fail("{} holds weights that are too large for {}", shown(std::string_view(step_->output.name)),
                    format_info(step_->output.format).name);
      }
      all_.squares += row.squares;
      all_.changes += row.changes;
      all_.largest = std::max(all_.largest, row.largest);
    }
    return file_->write(step_->output.name, static_cast<std::uint64_t>(first) * row_bytes, bytes_);
  }

  [[nodiscard]] Changes round_row(const float* weights, std::byte* target, std::size_t cols) const {
    encode(step_->output.format, weights, target, cols);
    std::vector<float> decoded(cols);
    dequantize(step_->output.format, target, decoded.data(), cols);
    Changes row;
    for (std::size_t k = 0; k < cols; ++k) {
      const double change = static_cast<double>(weights[k]) - decoded[k];
      row.finite = row.finite && std::isfinite(decoded[k]);
      row.squares += static_cast<double>(weights[k]) * weights[k];
      row.changes += change * change;
      row.largest = std::max(row.largest, std::fabs(change));
    }
    return row;
  }

  StepFile* file_;
  const GgufStep* step_;
  ThreadPool* pool_;
  std::vector<float> values_;
  std::vector<std::byte> bytes_;
  Changes all_;
};

class GgufConversion {
 public:
  GgufConversion(const GgufOptions& options, const Checkpoint& source, GgufPlan plan, ThreadPool& pool)
      : options_(&options), source_(&source), plan_(std::move(plan)), pool_(&pool) {}

  Result<QuantizeReport> run() {
    MILLRACE_CHECK_OK(prepare());
    MILLRACE_TRY(StepFile file, StepFile::open(options_->output, layout_, fingerprint_));
    report_.resumed = file.finished();
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      if (file.note(std::to_string(i)) != nullptr) done_bytes_ += plan_.steps[i].source_bytes;
    }
    MILLRACE_CHECK_OK(write_steps(file, true));
    MILLRACE_TRY(const std::string unsaid, unsaid_in(file.part()));
    if (!unsaid.empty()) {
      // Not what an earlier call has done: that passed here once, and may be hours of work.
      if (report_.resumed == 0) file.abandon();
      return fail("{}", unsaid);
    }
    MILLRACE_CHECK_OK(write_steps(file, false));
    const fs::path journal = options_->output.string() + ".journal";
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      MILLRACE_TRY(std::optional<LayerReport> layer, layer_of_note(*file.note(std::to_string(i)), journal));
      if (layer) report_.layers.push_back(std::move(*layer));
    }
    MILLRACE_CHECK_OK(file.commit());
    report_.notes = std::move(plan_.notes);
    return std::move(report_);
  }

 private:
  Status prepare() {
    std::error_code error;
    if (fs::exists(options_->output, error)) {
      return fail("{} is there already: name a new file", options_->output.string());
    }
    std::vector<GgufOutputTensor> tensors;
    std::size_t wanted = 0;
    for (const GgufStep& step : plan_.steps) {
      tensors.push_back(step.output);
      report_.source_bytes += step.source_bytes;
      const bool matrix = is_quantised(step.output.name, step.output.shape.size());
      wanted += matrix && step.output.format == options_->format ? 1 : 0;
    }
    if (wanted == 0) {
      const QuantFormatInfo& info = format_info(options_->format);
      return fail("no matrix of {} has rows of a multiple of {}: {} does not fit it", options_->model.string(),
                  info.block_elements, info.name);
    }
    layout_ = gguf_layout(plan_.metadata, tensors);
    report_.output_bytes = layout_.bytes;
    Fingerprint all;
    all.add(layout_.header);
    for (const std::string& file : source_->files()) all.add_file(file);
    fingerprint_ = fmt::format("gguf 1 {:016x}", all.value());
    return Ok{};
  }

  Status write_steps(StepFile& file, bool early) {
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      const GgufStep& step = plan_.steps[i];
      const std::string name = std::to_string(i);  // a tensor's own may hold what ends a line
      if (step.early != early || file.note(name) != nullptr) continue;
      Result<std::string> note = TensorWriter(file, step, *pool_).write();
      if (!note.ok()) {
        // A full disk can be helped; a damaged model will be so the next time too.
        if (!file.failed()) file.abandon();
        return std::move(note).error();
      }
      MILLRACE_CHECK_OK(file.finish(name, *note));
      if (step.release) step.release();
      done_bytes_ += step.source_bytes;
      if (options_->progress) options_->progress(done_bytes_, report_.source_bytes);
    }
    return Ok{};
  }

  /// What the reader does not find in the file, a message; empty: nothing. The data is not there yet, all else is.
  /// Error: that could not be seen.
  Result<std::string> unsaid_in(const fs::path& part) const {
    MILLRACE_TRY(const Checkpoint read, Checkpoint::open(part));
    MILLRACE_TRY(const ModelConfig written, parse_model_config(source_->config(), source_->text().generation_config));
    const auto found = parse_model_config(read.config(), read.text().generation_config);
    if (!found.ok()) return found.error().message;
    if (const std::string what = difference(written, *found); !what.empty()) {
      return fmt::format("GGUF cannot say all of this model's configuration: {} would be read differently", what);
    }
    if (const auto layers = LinearLayers::of(read); !layers.ok()) return layers.error().message;
    if (source_->text().tokenizer_json.empty()) return std::string();
    MILLRACE_TRY(const Tokenizer before, Tokenizer::from_json(source_->text().tokenizer_json));
    const auto after = Tokenizer::from_json(read.text().tokenizer_json);
    if (!after.ok()) return after.error().message;
    std::vector<std::string> samples(std::begin(kSamples), std::end(kSamples));
    for (std::string& token : added_tokens(source_->text().tokenizer_json)) samples.push_back(std::move(token));
    for (const std::string& sample : samples) {
      MILLRACE_TRY(const std::vector<std::int32_t> a, before.encode(sample, true));
      MILLRACE_TRY(const std::vector<std::int32_t> b, after->encode(sample, true));
      if (a != b)
        return fmt::format("GGUF cannot say this tokenizer: {} would become other tokens",
                           shown(std::string_view(sample)));
    }
    return std::string();
  }

  const GgufOptions* options_;
  const Checkpoint* source_;
  GgufPlan plan_;
  ThreadPool* pool_;
  StepFileLayout layout_;
  std::string fingerprint_;
  std::uint64_t done_bytes_ = 0;
  QuantizeReport report_;
};

}  // namespace

Result<QuantizeReport> quantize_to_gguf(const GgufOptions& options) {
  MILLRACE_CHECK(can_encode(options.format), "{}", format_info(options.format).name);
  MILLRACE_TRY(const Checkpoint source, Checkpoint::open(options.model));
  for (const auto& [name, tensor] : source.tensors()) {
    if (tensor.coded) {
      return fail("{} is quantised already: start from the model that it was made of", options.model.string());
    }
  }
  MILLRACE_TRY(const std::unique_ptr<ThreadPool> pool, ThreadPool::create(options.threads));
  std::error_code error;
  const bool directory = fs::is_directory(options.model, error);
  MILLRACE_TRY(GgufPlan plan, directory ? plan_from_huggingface(source, options.format, *pool)
                                        : plan_from_gguf(source, options.format, *pool));
  return GgufConversion(options, source, std::move(plan), *pool).run();
}

}  // namespace millrace
