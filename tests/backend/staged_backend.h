// A backend whose memory is the device's, for callers whose arrays are the host's: each operation copies in what it
// reads and out what it writes, so that the tests of host backends serve for devices too. Outputs are poisoned by their
// callers, and the poison travels.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "backend/forwarding_backend.h"
#include "core/check.h"

namespace millrace {

class StagedBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  /// Keys and values of the operations that follow lie in `pages`.
  void set_pages(std::span<std::byte> pages) { pages_ = pages; }

  void embed(const ForwardBatch& batch, const PackedMatrix& table, float scale, float* out) override {
    const Buffer target = floats(out, batch.rows() * table.cols());
    inner().begin(batch);
    inner().embed(batch, table, scale, target.floats());
    back(target, out);
  }

  void residual_norm(const ResidualNormArgs& args) override {
    ResidualNormArgs staged = args;
    const std::int64_t count = args.rows * args.width;
    const Buffer h = floats(args.h, count), delta = floats(args.delta, count), norm = floats(args.norm, args.width),
                 delta_norm = floats(args.delta_norm, args.width), out = floats(args.out, count);
    staged.h = h.floats();
    staged.delta = delta.floats();
    staged.norm = norm.floats();
    staged.delta_norm = delta_norm.floats();
    staged.out = args.out == args.h ? h.floats() : out.floats();
    inner().residual_norm(staged);
    back(h, args.h);
    if (args.out != args.h) back(out, args.out);
  }

  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override {
    const Buffer in = floats(x, rows * linear.weight->cols()), bias = floats(linear.bias, linear.weight->rows()),
                 target = floats(out, rows * out_stride);
    inner().linear({linear.weight, bias.floats()}, in.floats(), rows, target.floats(), out_stride);
    back(target, out);
  }

  void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) override {
    RopeStoreArgs staged = args;
    const std::int64_t rows = batch.rows(), half = args.rotary_dim / 2;
    const std::int64_t q_norms =
        args.norm == NormScope::all_heads ? std::int64_t{args.heads} * args.head_dim : args.head_dim;
    const std::int64_t k_norms =
        args.norm == NormScope::all_heads ? std::int64_t{args.kv_heads} * args.head_dim : args.head_dim;
    const Buffer qkv = floats(args.qkv, rows * args.qkv_width), cos = floats(args.cos, rows * half),
                 sin = floats(args.sin, rows * half), q_norm = floats(args.q_norm, q_norms),
                 k_norm = floats(args.k_norm, k_norms), q_scale = floats(args.q_scale, rows),
                 pages = in(pages_.data(), pages_.size());
    staged.qkv = qkv.floats();
    staged.cos = cos.floats();
    staged.sin = sin.floats();
    staged.q_norm = q_norm.floats();
    staged.k_norm = k_norm.floats();
    staged.q_scale = q_scale.floats();
    staged.kv.pages = pages.data() + (args.kv.pages - pages_.data());
    inner().begin(batch);
    inner().rope_store(batch, staged);
    back(qkv, args.qkv);
    back(pages, pages_.data());
  }

  void attend(const ForwardBatch& batch, const AttendArgs& args) override {
    AttendArgs staged = args;
    const Buffer q = floats(args.q, batch.rows() * args.q_stride),
                 out = floats(args.out, batch.rows() * args.heads * args.head_dim),
                 sinks = floats(args.sinks, args.heads), pages = in(pages_.data(), pages_.size());
    staged.q = q.floats();
    staged.out = out.floats();
    staged.sinks = sinks.floats();
    staged.kv.pages = pages.data() + (args.kv.pages - pages_.data());
    inner().begin(batch);
    inner().attend(batch, staged);
    back(out, args.out);
  }

  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override {
    const Buffer input = floats(x, rows * ffn.gate_up.weight->cols()),
                 space = floats(scratch, rows * 2 * ffn.intermediate()),
                 target = floats(out, rows * ffn.down.weight->rows());
    Biases biases;
    inner().gated_ffn(staged_ffn(ffn, biases), input.floats(), rows, space.floats(), target.floats());
    back(target, out);
  }

  void moe(const MoeArgs& args) override {
    MoeArgs staged = args;
    const std::int64_t width = args.router.weight->cols();
    const Buffer x = floats(args.x, args.rows * width), router_x = floats(args.router_x, args.rows * width),
                 out = floats(args.out, args.rows * width),
                 router_bias = floats(args.router.bias, args.router.weight->rows()),
                 scale = floats(args.expert_scale, args.router.weight->rows());
    staged.x = x.floats();
    staged.router_x = router_x.floats();
    staged.out = out.floats();
    staged.router.bias = router_bias.floats();
    staged.expert_scale = scale.floats();
    // The backend may remember where the biases of a layer's experts are, as a model's stay where they are.
    std::vector<GatedFfn> experts;
    for (const GatedFfn& ffn : args.experts) experts.push_back(staged_ffn(ffn, expert_biases_));
    staged.experts = experts;
    inner().moe(staged);
    back(out, args.out);
  }

  void activate_multiply(Activation activation, float* gate, const float* other, std::int64_t other_stride,
                         std::int64_t rows, std::int64_t width) override {
    const Buffer a = floats(gate, rows * width), b = floats(other, (rows - 1) * other_stride + width);
    inner().activate_multiply(activation, a.floats(), b.floats(), other_stride, rows, width);
    back(a, gate);
  }

  void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) override {
    const Buffer first = floats(x, count), second = floats(y, count), target = floats(out, count);
    inner().combine(a, first.floats(), b, second.floats(), target.floats(), count);
    back(target, out);
  }

  void gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width, float* out) override {
    std::int64_t rows = 0;
    for (const std::int32_t index : indices) rows = std::max<std::int64_t>(rows, index + 1);
    const Buffer source = floats(x, rows * width), target = floats(out, std::ssize(indices) * width);
    inner().gather_rows(source.floats(), indices, width, target.floats());
    back(target, out);
  }

  void scale_softcap(float* x, std::int64_t count, float scale, float softcap) override {
    const Buffer values = floats(x, count);
    inner().scale_softcap(values.floats(), count, scale, softcap);
    back(values, x);
  }

 private:
  using Biases = std::vector<Buffer>;

  Buffer in(const std::byte* data, std::size_t bytes) {
    auto buffer = inner().allocate(bytes);
    MILLRACE_CHECK(buffer.ok(), "{}", buffer.ok() ? "" : buffer.error().message);
    inner().write(*buffer, 0, {data, bytes});
    return *buffer;
  }

  /// Null stays null.
  Buffer floats(const float* data, std::int64_t count) {
    if (data == nullptr) return {};
    return in(reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(count) * sizeof(float));
  }

  template <typename T>
  void back(const Buffer& buffer, T* target) {
    if (target != nullptr) inner().read(buffer, 0, {reinterpret_cast<std::byte*>(target), buffer.bytes});
  }

  GatedFfn staged_ffn(const GatedFfn& ffn, Biases& biases) {
    GatedFfn staged = ffn;
    for (Linear* linear : {&staged.gate_up, &staged.down}) {
      biases.push_back(floats(linear->bias, linear->weight->rows()));
      linear->bias = biases.back().floats();
    }
    return staged;
  }

  std::span<std::byte> pages_;
  Biases expert_biases_;
};

/// Tells a backend of a device where keys and values will be; others need not know.
inline void set_pages(Backend& backend, std::span<std::byte> pages) {
  if (auto* staged = dynamic_cast<StagedBackend*>(&backend)) staged->set_pages(pages);
}

}  // namespace millrace
