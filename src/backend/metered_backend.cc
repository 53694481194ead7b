#include "backend/metered_backend.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "backend/selected_pages.h"

namespace millrace {

namespace {

double& operations_of(OpTotals& totals, Arithmetic arithmetic) {
  return totals.operations[static_cast<std::size_t>(arithmetic)];
}

/// `rows` inputs times the weight, which is read once.
OpTotals product_cost(const Linear& linear, std::int64_t rows) {
  OpTotals cost;
  cost.bytes = static_cast<double>(linear.weight->bytes());
  operations_of(cost, linear.weight->arithmetic()) =
      2.0 * static_cast<double>(rows) * static_cast<double>(linear.weight->rows() * linear.weight->cols());
  return cost;
}

/// As if all neurons were computed: which ones will be is not known before.
OpTotals ffn_cost(const GatedFfn& ffn, std::int64_t rows) {
  if (ffn.neurons != nullptr) {
    OpTotals cost;
    cost.bytes = static_cast<double>(ffn.neurons->bytes());
    operations_of(cost, ffn.neurons->arithmetic()) =
        2.0 * static_cast<double>(rows * ffn.neurons->neurons() * (2 * ffn.neurons->inputs() + ffn.neurons->outputs()));
    return cost;
  }
  OpTotals cost = product_cost(ffn.gate_up, rows);
  cost += product_cost(ffn.down, rows);
  return cost;
}

/// The sum of min(t + 1, window) over positions t in [first, first + rows).
double visible_pairs(std::int64_t first, std::int64_t rows, std::int64_t window) {
  double pairs = 0;
  for (std::int64_t t = first; t < first + rows; ++t) {
    pairs += static_cast<double>(window > 0 ? std::min(t + 1, window) : t + 1);
  }
  return pairs;
}

struct HyperCost {
  double pairs = 0, positions = 0;
};

/// Of rows that approximate. All that they do is put in order once for each chunk of them.
HyperCost hyper_cost(const HyperAttention& hyper, std::int64_t position, std::int64_t rows) {
  HyperCost cost;
  for (const std::int64_t end = position + rows; position < end;) {
    const HyperChunk chunk = hyper_chunk(hyper, position);
    const std::int64_t next = std::min(end, chunk.start + hyper.chunk);
    const auto far = static_cast<double>(hyper.block + hyper.samples);
    cost.pairs +=
        visible_pairs(position - chunk.count(), next - position, 0) + far * static_cast<double>(next - position);
    cost.positions += static_cast<double>(next);
    position = next;
  }
  return cost;
}

/// Blocks that a prompt reads by mass are counted as if they were all that it may read: how many they are is not known
/// before.
OpTotals attend_cost(const ForwardBatch& batch, const AttendArgs& args, Arithmetic arithmetic) {
  double pairs = 0, positions = 0, bounds = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    const RowParts parts = parts_of(args, sequence);
    if (args.hyper != nullptr) {
      const HyperCost far =
          hyper_cost(*args.hyper, sequence.first_position + parts.prompt_all, parts.prompt_end - parts.prompt_all);
      pairs += far.pairs;
      positions += far.positions;
    }
    for (std::int64_t i = parts.prompt_all; args.hyper == nullptr && i < parts.prompt_end;) {
      const PromptBlock block = prompt_block(args, sequence, i);
      const std::int64_t position = sequence.first_place(args.kv.group) + i,
                         left_out = block.candidates.end - block.candidates.first - block.candidates.most;
      const auto past = static_cast<double>(position - left_out * kKeyBlock);
      pairs += static_cast<double>(block.rows()) * past + visible_pairs(0, block.rows(), 0);
      positions += past + static_cast<double>(block.rows());
      i = block.end;
    }
    for (std::int64_t i = parts.answer_all; i < sequence.rows; ++i) {
      const std::int64_t position = sequence.first_place(args.kv.group) + i;
      const PageCandidates some = candidates_of(args, sequence, position);
      const std::int64_t left_out = some.end - some.first - some.chosen;
      const auto read = static_cast<double>(position + 1 - left_out * args.kv.page_tokens);
      pairs += read;
      positions += read;
      if (args.selection->choice == PageChoice::quest) bounds += static_cast<double>(some.end - some.first);
    }
    for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>(0, parts.prompt_all),
                                     std::pair<std::int64_t, std::int64_t>(parts.prompt_end, parts.answer_all)}) {
      if (begin >= end) continue;
      const std::int64_t position = sequence.first_place(args.kv.group) + begin;
      pairs += visible_pairs(position, end - begin, args.window);
      const std::int64_t first = args.window > 0 ? std::max<std::int64_t>(0, position - args.window + 1) : 0;
      positions += static_cast<double>(sequence.first_place(args.kv.group) + end - first);
    }
  }
  for (const SharedPrefix& shared : batch.shared) {
    const auto sequences =
        std::span(batch.sequences)
            .subspan(static_cast<std::size_t>(shared.first_sequence), static_cast<std::size_t>(shared.sequences));
    const bool all_read_it =
        args.window == 0 && shared.group == args.kv.group && batch.masses == nullptr &&
        std::ranges::all_of(sequences, [&](const SequenceRows& sequence) { return reads_all(args, sequence); });
    if (all_read_it) positions -= static_cast<double>(shared.sequences - 1) * static_cast<double>(shared.tokens);
  }
  OpTotals cost;
  const std::size_t head_bytes = kv_head_bytes(args.kv.format, static_cast<std::size_t>(args.head_dim));
  const double row_bytes = 2.0 * args.kv_heads * static_cast<double>(head_bytes);
  const double bound_bytes = 2.0 * args.kv_heads * sizeof(std::uint16_t) *
                             static_cast<double>(kv_bound_numbers(static_cast<std::size_t>(args.head_dim)));
  cost.bytes = positions * row_bytes + bounds * bound_bytes;
  operations_of(cost, arithmetic) = 4.0 * pairs * args.heads * args.head_dim;
  return cost;
}

OpTotals moe_cost(const MoeArgs& args) {
  OpTotals cost = product_cost(args.router, args.rows);
  const auto chosen = std::min(static_cast<std::int64_t>(args.experts.size()), args.rows * args.top_k);
  for (std::int64_t e = 0; e < chosen; ++e) {
    OpTotals expert = ffn_cost(args.experts[static_cast<std::size_t>(e)], 1);
    // Rows are shared out evenly over those that are counted: their sum is what matters.
    for (double& operations : expert.operations) {
      operations *= static_cast<double>(args.rows * args.top_k) / static_cast<double>(chosen);
    }
    cost += expert;
  }
  return cost;
}

}  // namespace

const char* op_kind_name(OpKind kind) {
  switch (kind) {
    case OpKind::embed:
      return "embed";
    case OpKind::norm:
      return "norm";
    case OpKind::linear:
      return "linear";
    case OpKind::rope_store:
      return "rope + KV store";
    case OpKind::attend:
      return "attend";
    case OpKind::gated_ffn:
      return "gated FFN";
    case OpKind::experts:
      return "experts";
    case OpKind::elementwise:
      return "elementwise";
  }
  return "";
}

OpTotals& OpTotals::operator+=(const OpTotals& other) {
  calls += other.calls;
  seconds += other.seconds;
  bytes += other.bytes;
  for (std::size_t a = 0; a < kArithmetics; ++a) operations[a] += other.operations[a];
  return *this;
}

double limit_seconds(const OpTotals& totals, const DeviceLimits& limits) {
  double computing = 0;
  for (std::size_t a = 0; a < kArithmetics; ++a) {
    if (totals.operations[a] > 0) computing += totals.operations[a] / limits.operations_per_second[a];
  }
  const double moving = totals.bytes > 0 ? totals.bytes / limits.read_bytes_per_second : 0;
  return std::max(moving, computing);
}

template <typename Call>
void MeteredBackend::meter(OpKey key, OpTotals cost, Call&& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  if (each_) inner().wait();
  cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  cost.calls = 1;
  totals_[key] += cost;
}

OpTotals MeteredBackend::sum() const {
  OpTotals all;
  for (const auto& [key, totals] : totals_) all += totals;
  return all;
}

void MeteredBackend::embed(const ForwardBatch& batch, const PackedMatrix& table, float scale, float* out) {
  meter({OpKind::embed, table.rows(), table.cols()}, {}, [&] { inner().embed(batch, table, scale, out); });
}

void MeteredBackend::residual_norm(const ResidualNormArgs& args) {
  meter({OpKind::norm}, {}, [&] { inner().residual_norm(args); });
}

void MeteredBackend::linear(const Linear& linear, const float* x, std::int64_t rows, float* out,
                            std::int64_t out_stride) {
  meter({OpKind::linear, linear.weight->rows(), linear.weight->cols()}, product_cost(linear, rows),
        [&] { inner().linear(linear, x, rows, out, out_stride); });
}

void MeteredBackend::rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) {
  meter({OpKind::rope_store}, {}, [&] { inner().rope_store(batch, args); });
}

void MeteredBackend::attend(const ForwardBatch& batch, const AttendArgs& args) {
  meter({OpKind::attend}, attend_cost(batch, args, inner().attend_arithmetic(args.kv.format)),
        [&] { inner().attend(batch, args); });
}

void MeteredBackend::gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) {
  const std::int64_t inputs = ffn.neurons != nullptr ? ffn.neurons->inputs() : ffn.gate_up.weight->cols();
  meter({OpKind::gated_ffn, 2 * ffn.intermediate(), inputs}, ffn_cost(ffn, rows),
        [&] { inner().gated_ffn(ffn, x, rows, scratch, out); });
}

void MeteredBackend::moe(const MoeArgs& args) {
  meter({OpKind::experts}, moe_cost(args), [&] { inner().moe(args); });
}

void MeteredBackend::activate_multiply(Activation activation, float* gate, const float* other,
                                       std::int64_t other_stride, std::int64_t rows, std::int64_t width) {
  meter({OpKind::elementwise}, {},
        [&] { inner().activate_multiply(activation, gate, other, other_stride, rows, width); });
}

void MeteredBackend::combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) {
  meter({OpKind::elementwise}, {}, [&] { inner().combine(a, x, b, y, out, count); });
}

void MeteredBackend::gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width,
                                 float* out) {
  meter({OpKind::elementwise}, {}, [&] { inner().gather_rows(x, indices, width, out); });
}

void MeteredBackend::scale_softcap(float* x, std::int64_t count, float scale, float softcap) {
  meter({OpKind::elementwise}, {}, [&] { inner().scale_softcap(x, count, scale, softcap); });
}

}  // namespace millrace
