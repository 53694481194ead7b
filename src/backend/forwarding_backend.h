// A backend that another one stands behind: what is not overridden is passed on.
#pragma once

#include <memory>
#include <utility>

#include "backend/backend.h"

namespace millrace {

/// Packed matrices and buffers are the inner backend's own.
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  [[nodiscard]] std::string numeric_class() const override { return inner_->numeric_class(); }
  Result<DeviceLimits> measure_limits() override { return inner_->measure_limits(); }
  [[nodiscard]] bool host_memory() const override { return inner_->host_memory(); }
  [[nodiscard]] std::uint64_t free_memory() const override { return inner_->free_memory(); }
  Result<Buffer> allocate(std::size_t bytes) override { return inner_->allocate(bytes); }
  Result<Buffer> allocate_host(std::size_t bytes) override { return inner_->allocate_host(bytes); }
  void write(const Buffer& target, std::size_t offset, std::span<const std::byte> source) override {
    inner_->write(target, offset, source);
  }
  void read(const Buffer& source, std::size_t offset, std::span<std::byte> target) override {
    inner_->read(source, offset, target);
  }
  void copy(const Buffer& target, std::size_t target_offset, const Buffer& source, std::size_t source_offset,
            std::size_t bytes) override {
    inner_->copy(target, target_offset, source, source_offset, bytes);
  }
  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) override {
    return inner_->pack(source, format);
  }
  [[nodiscard]] std::size_t packed_bytes(const MatrixSource& source, LinearFormat format) const override {
    return inner_->packed_bytes(source, format);
  }
  [[nodiscard]] bool chooses_neurons() const override { return inner_->chooses_neurons(); }
  Result<std::unique_ptr<PackedNeurons>> pack_neurons(const NeuronSource& source) override {
    return inner_->pack_neurons(source);
  }
  [[nodiscard]] std::size_t packed_neuron_bytes(const NeuronSource& source) const override {
    return inner_->packed_neuron_bytes(source);
  }
  Status open_neuron_store(const NeuronStoreOptions& options) override { return inner_->open_neuron_store(options); }
  [[nodiscard]] bool activates(Activation activation) const override { return inner_->activates(activation); }
  [[nodiscard]] std::span<const KvFormat> kv_formats() const override { return inner_->kv_formats(); }
  [[nodiscard]] bool selects_pages() const override { return inner_->selects_pages(); }
  [[nodiscard]] bool skips_inputs() const override { return inner_->skips_inputs(); }
  [[nodiscard]] SkipCounts skip_counts() const override { return inner_->skip_counts(); }
  [[nodiscard]] AttendCounts attend_counts() const override { return inner_->attend_counts(); }
  [[nodiscard]] Arithmetic attend_arithmetic(KvFormat format) const override {
    return inner_->attend_arithmetic(format);
  }
  void wait() override { inner_->wait(); }
  Status take_failure() override { return inner_->take_failure(); }
  void begin(const ForwardBatch& batch) override { inner_->begin(batch); }
  void embed(const ForwardBatch& batch, const PackedMatrix& table, float scale, float* out) override {
    inner_->embed(batch, table, scale, out);
  }
  void residual_norm(const ResidualNormArgs& args) override { inner_->residual_norm(args); }
  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override {
    inner_->linear(linear, x, rows, out, out_stride);
  }
  void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) override { inner_->rope_store(batch, args); }
  void attend(const ForwardBatch& batch, const AttendArgs& args) override { inner_->attend(batch, args); }
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override {
    inner_->gated_ffn(ffn, x, rows, scratch, out);
  }
  void moe(const MoeArgs& args) override { inner_->moe(args); }
  void activate_multiply(Activation activation, float* gate, const float* other, std::int64_t other_stride,
                         std::int64_t rows, std::int64_t width) override {
    inner_->activate_multiply(activation, gate, other, other_stride, rows, width);
  }
  void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) override {
    inner_->combine(a, x, b, y, out, count);
  }
  void gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width, float* out) override {
    inner_->gather_rows(x, indices, width, out);
  }
  void scale_softcap(float* x, std::int64_t count, float scale, float softcap) override {
    inner_->scale_softcap(x, count, scale, softcap);
  }
  [[nodiscard]] bool draws(const TokenDraw& draw, std::int64_t vocab) const override {
    return inner_->draws(draw, vocab);
  }
  void draw_tokens(const float* logits, std::int64_t vocab, std::span<const TokenDraw> draws,
                   std::span<std::int32_t> tokens) override {
    inner_->draw_tokens(logits, vocab, draws, tokens);
  }

 protected:
  [[nodiscard]] Backend& inner() { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace millrace
