// The weights of a gated FFN whose neurons are computed one by one (PackedNeurons), as the CPU kernels read them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/neuron_store.h"
#include "backend/cpu/packed_matrix.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace {

/// A neuron's weights lie together: its row of gate, its row of up, its column of down, each padded to whole
/// kNeuronBlocks. Neurons stand in the order of neuron_order(); a neuron's number in it is its place.
///
/// Formats whose scales are shared by several neurons (all but plain elements and int8) cannot lie so. They keep
/// matrices as other layers have them: these are multiplied in full, and what is not chosen counts as zero.
class CpuNeurons final : public PackedNeurons {
 public:
  /// Where a neuron's parts lie in its bundle, in bytes.
  struct Form {
    NeuronElement gate_up = NeuronElement::f32, down = NeuronElement::f32;
    bool round_inputs = false, round_hidden = false;  // to bf16, before gate and up, before down
    std::int64_t cols = 0, outputs = 0;               // with padding
    std::int64_t up = 0, down_at = 0, bytes = 0;
  };

  /// `store`, which may be null where all neurons are resident, must outlive the weights. While they are packed all of
  /// them are in memory. Errors: no memory; a weight that cannot be rounded, or is not finite; a full disk.
  static Result<std::unique_ptr<CpuNeurons>> pack(const NeuronSource& source, CpuLayouts layouts, ThreadPool& pool,
                                                  DeviceArena& arena, NeuronStore* store);
  static std::size_t packed_bytes(const NeuronSource& source, CpuLayouts layouts);

  [[nodiscard]] std::int64_t neurons() const override { return neurons_; }
  [[nodiscard]] std::int64_t inputs() const override { return inputs_; }
  [[nodiscard]] std::int64_t outputs() const override { return outputs_; }
  [[nodiscard]] std::size_t bytes() const override { return bytes_; }
  [[nodiscard]] Arithmetic arithmetic() const override { return gate_up_->arithmetic(); }

  [[nodiscard]] const NeuronChoice& choice() const { return choice_; }
  /// Nothing where the weights are matrices.
  [[nodiscard]] const std::optional<Form>& form() const { return form_; }
  [[nodiscard]] const CpuMatrix& gate_up() const { return *gate_up_; }
  [[nodiscard]] const CpuMatrix& down() const { return *down_; }
  /// Where there is a form: how dense kernels see the weights, without memory. Gate and up; some columns of down.
  [[nodiscard]] const CpuMatrix& gate_up_shape() const { return *gate_up_; }
  [[nodiscard]] std::unique_ptr<CpuMatrix> down_shape(std::int64_t cols) const;

  /// order()[place]: the neuron. Its own order where the weights are matrices.
  [[nodiscard]] const std::vector<std::int32_t>& order() const { return order_; }
  /// places()[neuron]: its place. Where there is a form.
  [[nodiscard]] const std::vector<std::int32_t>& places() const { return places_; }
  /// Places before this are computed always.
  [[nodiscard]] std::int64_t hot() const { return hot_; }
  [[nodiscard]] const std::vector<std::uint8_t>& always() const { return always_; }

  /// Of codes: what they are multiplied with; empty: 1. gate_scales and up_scales by place, down_scales by
  /// output, to the end of whole panels.
  [[nodiscard]] const std::vector<float>& gate_scales() const { return gate_scales_; }
  [[nodiscard]] const std::vector<float>& up_scales() const { return up_scales_; }
  [[nodiscard]] const std::vector<float>& down_scales() const { return down_scales_; }

  /// Null but where neurons are predicted: in [rank, inputs], out [neurons, rank] and bias [neurons] by place.
  [[nodiscard]] const CpuMatrix* predictor_in() const { return predictor_in_.get(); }
  [[nodiscard]] const CpuMatrix* predictor_out() const { return predictor_out_.get(); }
  [[nodiscard]] const std::vector<float>& predictor_bias() const { return predictor_bias_; }

  /// How many neurons locate() takes at once.
  [[nodiscard]] std::int64_t most_at_once() const { return store_ == nullptr ? neurons_ : store_->slots(); }
  /// Where the bundles of the neurons at these places are, until the next call; bundles [places.size()]. What is not in
  /// memory is read.
  void locate(std::span<const std::int32_t> places, ThreadPool& pool, const std::byte** bundles) const;

 private:
  CpuNeurons() = default;

  Status pack_bundles(const NeuronSource& source, ThreadPool& pool, DeviceArena& arena);
  Status pack_rows(const NeuronSource& source, ThreadPool& pool);
  Status pack_columns(const NeuronSource& source, ThreadPool& pool);
  Status pack_predictor(CpuLayouts layouts, ThreadPool& pool, DeviceArena& arena);
  [[nodiscard]] std::byte* bundle(std::int64_t place) const;

  NeuronChoice choice_;
  std::int64_t neurons_ = 0, inputs_ = 0, outputs_ = 0, hot_ = 0;
  std::size_t bytes_ = 0;
  std::optional<Form> form_;
  CpuLayouts layouts_;
  std::vector<std::int32_t> order_, places_;
  std::vector<std::uint8_t> always_;  // by place: whether it is hot
  std::shared_ptr<void> memory_;      // of the bundles
  std::int64_t resident_ = 0;         // that are there
  NeuronStore* store_ = nullptr;      // of the others; null: there are none
  std::int64_t stored_at_ = 0;        // where the first of these lies in it
  mutable std::vector<std::int64_t> offsets_;
  mutable std::vector<std::size_t> wanted_;
  mutable std::vector<const std::byte*> fetched_;
  std::vector<float> gate_scales_, up_scales_, down_scales_, predictor_bias_;
  std::unique_ptr<CpuMatrix> gate_up_, down_, predictor_in_, predictor_out_;
};

}  // namespace millrace
