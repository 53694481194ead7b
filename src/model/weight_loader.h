// From a checkpoint's tensors to the packed weights of a decoder.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "backend/backend.h"
#include "core/result.h"
#include "model/config.h"
#include "model/tensor_names.h"
#include "model/tensor_source.h"
#include "model/weight_builder.h"
#include "model/weights.h"

namespace millrace {

/// How rows of answers choose the neurons of the dense feed-forward network of a layer; nothing: they compute all.
using NeuronChoices = std::function<std::optional<NeuronChoice>(std::size_t layer)>;

class WeightLoader {
 public:
  /// All must outlive the loader.
  WeightLoader(const ModelConfig& config, const TensorNames& names, const TensorSource& source, Backend& backend,
               LinearFormat format, LinearFormats formats = {}, NeuronChoices choices = {})
      : config_(&config),
        names_(&names),
        builder_(source, backend, format, std::move(formats)),
        choices_(std::move(choices)) {}

  /// Bytes that the packed weights will take; nothing is read or allocated. Errors: a tensor that is missing, or has a
  /// shape or format that the model cannot have.
  Result<std::uint64_t> measure();

  /// Packs everything; file pages are given back as soon as their values are packed. `total` is measure()'s answer, for
  /// `progress`, which may be empty. Error: no memory.
  Result<ModelWeights> load(std::uint64_t total,
                            const std::function<void(std::uint64_t done, std::uint64_t total)>& progress);

 private:
  struct Part {
    std::string name;  // without ".weight"
    std::int64_t rows = 0;
    std::vector<std::int32_t> row_order;
  };

  /// What a linear layer is put together from.
  struct Gathered {
    std::vector<std::string> names;
    std::vector<SourceTensor> tensors;
    MatrixSource source;
    std::vector<float> biases;
  };

  Result<ModelWeights> build();
  /// Whether the head is a matrix of its own. Where the config ties it to the embedding and the file has another one
  /// all the same, the file is right, as for transformers.
  bool has_own_head();
  Result<LayerWeights> layer(std::size_t index);
  Status attention(std::size_t index, LayerWeights& weights);
  Status feed_forward(std::size_t index, LayerWeights& weights);
  Status experts(std::size_t index, LayerWeights& weights);
  Status gemma4_parts(std::size_t index, LayerWeights& weights);
  Status per_layer_inputs(ModelWeights& weights);

  /// "model.layers.INDEX.name".
  [[nodiscard]] static std::string in_layer(std::size_t index, const std::string& name);
  /// A norm's weight; none for an empty name.
  Result<Vector> norm(const std::string& name, std::int64_t size);
  /// A norm's weight in a layer; none for an empty name.
  Result<Vector> layer_norm(std::size_t index, const std::string& name, std::int64_t size);
  /// A whole tensor; `linear`: the name of the linear layer that it is, empty where it is none that may be rounded.
  Result<Matrix> plain_matrix(const std::string& name, std::int64_t rows, std::int64_t cols,
                              const std::string& linear = {});
  Result<Gathered> gather(std::size_t index, const std::vector<Part>& parts, std::int64_t cols, bool bias,
                          bool may_round) const;
  /// The parts' rows one below the other, and their biases.
  Result<LinearWeights> linear(std::size_t index, const std::vector<Part>& parts, std::int64_t cols, bool bias,
                               bool may_round = true);

  const ModelConfig* config_;
  const TensorNames* names_;
  WeightBuilder builder_;
  NeuronChoices choices_;
  std::optional<bool> own_head_;  // once it is known
};

/// The experts of layer `prefix` ("model.layers.N."), in whichever of the forms of ExpertNames the source has them.
Result<std::vector<FfnWeights>> load_experts(WeightBuilder& builder, const ModelConfig& config, const LayerSpec& layer,
                                             const ExpertNames& names, const std::string& prefix);

}  // namespace millrace
