// A Hugging Face directory as a GGUF file: which tensor becomes which, and what is done to its rows on the way.
#include <algorithm>
#include <array>
#include <deque>
#include <filesystem>
#include <set>
#include <utility>

#include "convert/gguf_model_keys.h"
#include "convert/gguf_plan.h"
#include "convert/gguf_tokenizer.h"
#include "convert/linear_layers.h"
#include "convert/tensor_reader.h"
#include "model/checkpoint/gguf_architecture.h"
#include "model/tensor_source.h"

namespace millrace {

namespace {

// Names in GGUF. Where two stand for one name of Hugging Face's, the first that the architecture knows counts.
constexpr std::array kBlockStems = {
    "attn_norm",   "attn_q",        "attn_k",
    "attn_v",      "attn_qkv",      "attn_output",
    "attn_q_norm", "attn_k_norm",   "post_attention_norm",
    "ffn_norm",    "ffn_gate_inp",  "ffn_gate",
    "ffn_up",      "ffn_down",      "ffn_gate_exps",
    "ffn_up_exps", "ffn_down_exps", "post_ffw_norm",
};

/// What the steps of a plan read from.
struct Origin {
  Origin(const Checkpoint& checkpoint, LinearLayers of, ThreadPool& pool)
      : layers(std::move(of)), reader(checkpoint, layers.names(), pool) {}

  LinearLayers layers;
  TensorReader reader;
  std::deque<StoredTensor> slices;  // of tensors that hold several matrices
};

using Pieces = std::vector<const StoredTensor*>;  // rows one below the other

/// Of each head: row i of its first half, then row i of its second half, for all i, as llama.cpp wants the rows of
/// queries and keys of some architectures. rows [heads, head_dim, cols] in place.
void interleave_halves(float* rows, std::int64_t heads, std::int64_t head_dim, std::int64_t cols) {
  const std::int64_t half = head_dim / 2;
  std::vector<float> head(static_cast<std::size_t>(head_dim * cols));
  for (std::int64_t h = 0; h < heads; ++h) {
    float* at = rows + h * head_dim * cols;
    std::copy_n(at, head_dim * cols, head.data());
    for (std::int64_t r = 0; r < head_dim; ++r) {
      const std::int64_t from = r % 2 * half + r / 2;
      std::copy_n(head.data() + from * cols, cols, at + r * cols);
    }
  }
}

class HuggingFacePlan {
 public:
  HuggingFacePlan(const Checkpoint& source, QuantFormat format, std::shared_ptr<Origin> origin)
      : source_(&source), format_(format), origin_(std::move(origin)) {}

  Result<GgufPlan> make() {
    const ModelConfig& model = origin_->layers.config();
    MILLRACE_TRY(const std::string_view architecture, gguf_architecture_of(model));
    architecture_ = find_gguf_architecture(architecture);
    MILLRACE_CHECK_OK(set_metadata(model));
    add_divisors(model);
    add("token_embd.weight");
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
      for (const char* stem : kBlockStems) {
        for (const char* suffix : {".weight", ".bias"}) add(fmt::format("blk.{}.{}{}", layer, stem, suffix), layer);
      }
    }
    add("output_norm.weight");
    const TensorSource tensors = TensorSource::of_checkpoint(*source_);
    used_.insert("lm_head.weight");
    if (!model.tied_head || tensors.differ("lm_head.weight", "model.embed_tokens.weight")) {
      used_.erase("lm_head.weight");
      add("output.weight");
    }
    note_unused();
    plan_.owner = origin_;
    return std::move(plan_);
  }

 private:
  Status set_metadata(const ModelConfig& model) {
    GgufMetadataWriter& metadata = plan_.metadata;
    metadata.set_text("general.architecture", architecture_->name);
    metadata.set_text("general.type", "model");
    std::error_code error;
    const std::filesystem::path directory = std::filesystem::canonical(source_->path(), error);
    if (!error) metadata.set_text("general.name", directory.filename().string());
    set_file_type(metadata, format_);
    MILLRACE_CHECK_OK(set_model_keys(metadata, architecture_->name, model, source_->config()));
    note_what_others_miss(model);
    return set_text_keys(metadata, *source_, model, plan_.notes);
  }

  /// What the file says and llama.cpp does not look at, or not in the same way.
  void note_what_others_miss(const ModelConfig& model) {
    constexpr std::array<std::string_view, 3> kWithoutWindows = {"llama", "mistral3", "phi3"};
    const std::int64_t window = model.layers.front().attention.window;
    if (window > 0 && window < model.max_position &&
        std::ranges::find(kWithoutWindows, architecture_->name) != kWithoutWindows.end()) {
      plan_.notes.push_back(fmt::format(
          "llama.cpp knows no attention window of this family: beyond {} tokens it computes something else", window));
    }
    if (std::ranges::any_of(model.ropes, [](const RopeSpec& rope) { return rope.attention_factor != 0.0; })) {
      plan_.notes.emplace_back("llama.cpp multiplies the rope's attention_factor with a factor of its own");
    }
  }

  void add_divisors(const ModelConfig& model) {
    auto divisors = std::make_shared<std::vector<float>>(rope_divisors(model));
    if (divisors->empty()) return;
    GgufStep step;
    step.output = {.name = "rope_freqs.weight", .shape = {static_cast<std::int64_t>(divisors->size())}};
    step.early = true;
    step.read = [divisors](std::int64_t, std::int64_t, float* target) { std::ranges::copy(*divisors, target); };
    plan_.steps.push_back(std::move(step));
  }

  /// The tensor by this name, where the source has it.
  void add(const std::string& name, std::size_t layer = 0) {
    const std::string original = gguf_tensor_name(*architecture_, name);
    if (original == name) return;  // the architecture has none by this name
    const Pieces pieces = pieces_of(original, layer);
    if (pieces.empty()) return;
    GgufStep step;
    const StoredTensor& first = *pieces.front();
    step.output = {.name = name, .shape = first.shape};
    if (name.find("_exps.") != std::string::npos) {
      step.output.shape.insert(step.output.shape.begin(), static_cast<std::int64_t>(pieces.size()));
    }
    step.output.format = format_for(format_, name, step.output.shape, plan_.notes);
    step.source_format = first.format;
    for (const StoredTensor* piece : pieces) step.source_bytes += piece->bytes();
    const std::int64_t heads = heads_of(name);
    const bool shifted = architecture_->norms_include_one && origin_->reader.norms_minus_one() &&
                         !source_->norms_include_one() && name.ends_with("norm.weight");
    if (heads == 0 && !shifted && pieces.size() == 1 && origin_->reader.as_stored(first)) step.stored = first.data;
    if (heads > 0 && first.shape.size() == 2) step.multiple = first.shape.front() / heads;
    step.read = reading(pieces, heads, shifted);
    step.release = [source = source_, pieces] {
      for (const StoredTensor* piece : pieces) source->release(*piece);
    };
    plan_.steps.push_back(std::move(step));
  }

  /// Heads whose rows have to be reordered; 0: none.
  [[nodiscard]] std::int64_t heads_of(const std::string& name) const {
    const AttentionSpec& attention = origin_->layers.config().layers.front().attention;
    if (!architecture_->permuted) return 0;
    if (name.find(".attn_q.") != std::string::npos) return attention.heads;
    return name.find(".attn_k.") != std::string::npos ? attention.kv_heads : 0;
  }

  std::function<void(std::int64_t, std::int64_t, float*)> reading(const Pieces& pieces, std::int64_t heads,
                                                                  bool shifted) const {
    return [origin = origin_, pieces, heads, shifted](std::int64_t first, std::int64_t count, float* target) {
      const bool vector = pieces.front()->shape.size() == 1;
      const std::int64_t rows = vector ? 1 : pieces.front()->shape.front();  // of a piece
      const std::int64_t cols = pieces.front()->shape.back();
      for (std::int64_t done = 0; done < count;) {
        const std::int64_t row = (first + done) % rows, part = std::min(count - done, rows - row);
        origin->reader.read(*pieces[static_cast<std::size_t>((first + done) / rows)], row, part, target + done * cols);
        done += part;
      }
      if (heads > 0 && vector) interleave_halves(target, heads, cols / heads, 1);
      if (heads > 0 && !vector) interleave_halves(target, count * heads / rows, rows / heads, cols);
      if (!shifted) return;
      for (std::int64_t i = 0; i < count * cols; ++i) target[i] += 1.0f;
    };
  }

  /// The tensors of the source that make up the one that its reader would call `original`.
  Pieces pieces_of(const std::string& original, std::size_t layer) {
    if (original.find(".experts.") != std::string::npos) return experts_of(original, layer);
    if (const StoredTensor* found = take(original)) return {found};
    if (original.find("gate.weight") == std::string::npos) return {};
    for (const std::string& router : origin_->layers.names().experts.router) {
      if (const StoredTensor* found = take(fmt::format("model.layers.{}.{}.weight", layer, router))) return {found};
    }
    return {};
  }

  /// One projection of all experts, which are one tensor each, or all of them in one, gate and up below each other.
  Pieces experts_of(const std::string& original, std::size_t layer) {
    const LinearLayers& layers = origin_->layers;
    const auto count = static_cast<std::int64_t>(layers.config().layers[layer].moe.experts);
    Pieces pieces;
    for (std::int64_t expert = 0; expert < count; ++expert) {
      const auto name = layers.of_expert(original, expert);
      if (const StoredTensor* found = name ? take(*name) : nullptr) pieces.push_back(found);
    }
    if (!pieces.empty()) return pieces;
    const ExpertNames& names = layers.names().experts;
    const bool down = original.find("down_proj") != std::string::npos;
    const std::string stacked = fmt::format("model.layers.{}.{}", layer, down ? names.down : names.gate_up);
    const StoredTensor* all = source_->find(stacked);
    if (all == nullptr || all->shape.size() != 3) return {};
    used_.insert(stacked);
    const std::int64_t rows = all->shape[1] / (down ? 1 : 2);
    const std::int64_t from = original.find("up_proj") != std::string::npos ? rows : 0;
    for (std::int64_t expert = 0; expert < all->shape[0]; ++expert) {
      pieces.push_back(&slice(*all, expert * all->shape[1] + from, rows));
    }
    return pieces;
  }

  /// Rows of a tensor of three dimensions, counted over all of its matrices.
  const StoredTensor& slice(const StoredTensor& all, std::int64_t first, std::int64_t rows) {
    const std::size_t row_bytes = all.data.size() / static_cast<std::size_t>(all.shape[0] * all.shape[1]);
    StoredTensor part = all;
    part.shape = {rows, all.shape[2]};
    part.data =
        all.data.subspan(static_cast<std::size_t>(first) * row_bytes, static_cast<std::size_t>(rows) * row_bytes);
    origin_->slices.push_back(std::move(part));
    return origin_->slices.back();
  }

  const StoredTensor* take(const std::string& name) {
    const StoredTensor* found = source_->find(name);
    return found != nullptr && used_.insert(name).second ? found : nullptr;
  }

  void note_unused() {
    std::size_t unused = 0;
    std::string example;
    for (const auto& [name, tensor] : source_->tensors()) {
      if (used_.contains(name) || name.ends_with("rotary_emb.inv_freq")) continue;
      if (unused++ == 0) example = name;
    }
    if (unused > 0) {
      plan_.notes.push_back(
          fmt::format("{} tensors that the language model does not use are left out, such as {}", unused, example));
    }
  }

  const Checkpoint* source_;
  QuantFormat format_;
  std::shared_ptr<Origin> origin_;
  const GgufArchitecture* architecture_ = nullptr;
  std::set<std::string> used_;
  GgufPlan plan_;
};

}  // namespace

Result<GgufPlan> plan_from_huggingface(const Checkpoint& source, QuantFormat format, ThreadPool& pool) {
  MILLRACE_TRY(LinearLayers layers, LinearLayers::of(source));
  return HuggingFacePlan(source, format, std::make_shared<Origin>(source, std::move(layers), pool)).make();
}

}  // namespace millrace
