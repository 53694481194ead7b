// Another backend, with a count of what its operations must move and compute, and of the time that they take.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>

#include "backend/forwarding_backend.h"

namespace millrace {

enum class OpKind : std::uint8_t { embed, norm, linear, rope_store, attend, gated_ffn, experts, elementwise };
const char* op_kind_name(OpKind kind);

/// Calls of one kind, and where it has a weight, with weights of one shape ([rows, cols]; a gated FFN's gate and up).
struct OpKey {
  OpKind kind = OpKind::linear;
  std::int64_t rows = 0, cols = 0;

  auto operator<=>(const OpKey&) const = default;
};

/// What cannot be avoided, however well it is done. `bytes`: weights, once a call, and keys and values, once for each
/// sequence that reads them and once for all that share a prefix. Activations are not counted: they fit the caches, or
/// would where an operation is fused with the next. Operations of norms, rotations and the softmax are not either. Of
/// experts it counts as many as the rows can choose at most.
struct OpTotals {
  std::int64_t calls = 0;
  double seconds = 0;
  double bytes = 0;
  std::array<double, kArithmetics> operations = {};

  OpTotals& operator+=(const OpTotals& other);
};

/// The least seconds in which a device of these limits can do it: the longer of moving and computing.
double limit_seconds(const OpTotals& totals, const DeviceLimits& limits);

/// Times are those of the calls. A device has not done the work when a call returns, unless it is made to wait for
/// each: then times tell of operations, and what is usually done together takes longer.
class MeteredBackend final : public ForwardingBackend {
 public:
  explicit MeteredBackend(std::unique_ptr<Backend> inner, bool wait_for_each = false)
      : ForwardingBackend(std::move(inner)), each_(wait_for_each) {}

  [[nodiscard]] const std::map<OpKey, OpTotals>& totals() const { return totals_; }
  [[nodiscard]] OpTotals sum() const;
  void reset() { totals_.clear(); }

  void embed(const ForwardBatch& batch, const PackedMatrix& table, float scale, float* out) override;
  void residual_norm(const ResidualNormArgs& args) override;
  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override;
  void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) override;
  void attend(const ForwardBatch& batch, const AttendArgs& args) override;
  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override;
  void moe(const MoeArgs& args) override;
  void activate_multiply(Activation activation, float* gate, const float* other, std::int64_t other_stride,
                         std::int64_t rows, std::int64_t width) override;
  void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) override;
  void gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width, float* out) override;
  void scale_softcap(float* x, std::int64_t count, float scale, float softcap) override;

 private:
  template <typename Call>
  void meter(OpKey key, OpTotals cost, Call&& call);

  bool each_ = false;
  std::map<OpKey, OpTotals> totals_;
};

}  // namespace millrace
