// Backend: a kind of device. It holds memory, packs weights once, and offers about a dozen coarse fused operations that
// the decoder calls in order. Activations are f32 and row-major; every pointer in an argument struct points to device
// memory.
//
// Every operation is batch invariant: what it computes for a row depends on that row's inputs (and, in attend, on the
// keys and values of its sequence at lower positions) and never on the other rows, on how many there are, or on the
// number of threads. Identity to the bit is promised and tested (docs/architecture.md, "Rules").
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/forward_batch.h"
#include "backend/matrix_source.h"
#include "backend/token_draw.h"
#include "core/dtype.h"
#include "core/result.h"
#include "kv/key_hash.h"
#include "quant/kv_format.h"
#include "recipe/block_selection.h"
#include "recipe/hyper_attention.h"
#include "recipe/neuron_choice.h"
#include "recipe/page_selection.h"

namespace millrace {

/// Device memory; freed with the last copy of the handle. Aligned to 64 bytes at least, zeroed.
struct Buffer {
  std::shared_ptr<void> memory;
  std::size_t bytes = 0;

  [[nodiscard]] float* floats() const { return static_cast<float*>(memory.get()); }
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(memory.get()); }
};

/// Aborts unless the buffer has `bytes` bytes at `offset`.
void check_range(const Buffer& buffer, std::size_t offset, std::size_t bytes);
/// What Backend::copy asks of its arguments.
void check_copy(const Buffer& target, std::size_t target_offset, const Buffer& source, std::size_t source_offset,
                std::size_t bytes);

/// What multiplies. Weights and inputs of bf16, fp8 and int8 products are of that type; sums are wider.
enum class Arithmetic : std::uint8_t { f32, bf16, fp8, int8 };
inline constexpr std::size_t kArithmetics = 4;

/// What a device reaches at most in one thing at a time, with all its threads, measured now.
struct DeviceLimits {
  double read_bytes_per_second = 0;                             // of memory far larger than its caches
  std::array<double, kArithmetics> operations_per_second = {};  // multiplications and additions, by Arithmetic
};

/// A weight in the backend's own layout: rows() outputs, cols() inputs.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  [[nodiscard]] virtual std::int64_t rows() const = 0;
  [[nodiscard]] virtual std::int64_t cols() const = 0;
  [[nodiscard]] virtual std::size_t bytes() const = 0;      // of memory that it holds
  [[nodiscard]] virtual Arithmetic arithmetic() const = 0;  // of products with it
  /// What rows of answers leave out of the inputs, as LinearFormat had it.
  [[nodiscard]] virtual InputSkip skip() const { return {}; }
};

/// Weights of layers with an InputSkip or a NeuronChoice, in rows of answers: what products with them were made of.
struct SkipCounts {
  // Inputs that were no zeros, and all inputs; each times the outputs that read it. Neurons that were computed, and all
  // neurons, times their weights.
  double kept = 0, all = 0;
  double disk_bytes = 0;  // that were read of neurons that are not in memory, in all rows
};

/// What attention has read of keys and values: in positions, of all queries.
struct AttendCounts {
  // As much as keys and values of so many positions take: half of it for keys alone, and for bounds what they take.
  double read = 0;
  double all = 0;  // positions that the rows would have seen, had nothing been left out or dropped

  AttendCounts& operator+=(const AttendCounts& other) {
    read += other.read;
    all += other.all;
    return *this;
  }
};

/// Where the weights of neurons are that do not fit into memory.
struct NeuronStoreOptions {
  std::string directory;
  std::uint64_t file_bytes = 0;   // of all of them
  std::uint64_t cache_bytes = 0;  // of memory for what was read of them last
};

enum class Activation : std::uint8_t {
  silu,          // x * sigmoid(x)
  gelu_tanh,     // the tanh approximation, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  gelu_erf,      // 0.5 x (1 + erf(x / sqrt(2)))
  swiglu_clamp,  // gpt-oss: gate = min(g, limit), up = clamp(u, -limit, limit); gate * sigmoid(1.702 gate) * (up + 1)
  relu,          // 0 where x <= 0, else x
  relu2          // its square (So et al. 2021, arXiv 2109.08668)
};

/// Whether it gives exact zeros, all of which a gate of x <= 0 gives.
constexpr bool gives_zeros(Activation activation) {
  return activation == Activation::relu || activation == Activation::relu2;
}

/// The weights of a gated FFN of which rows of answers compute some neurons alone (NeuronChoice), in the backend's own
/// layout. Neuron i is output i of gate and of up, and input i of down.
class PackedNeurons {
 public:
  virtual ~PackedNeurons() = default;
  [[nodiscard]] virtual std::int64_t neurons() const = 0;
  [[nodiscard]] virtual std::int64_t inputs() const = 0;
  [[nodiscard]] virtual std::int64_t outputs() const = 0;
  [[nodiscard]] virtual std::size_t bytes() const = 0;  // of memory that it holds
  [[nodiscard]] virtual Arithmetic arithmetic() const = 0;
};

/// What such weights are made of. gate_up has the gate's rows, then the up's.
struct NeuronSource {
  MatrixSource gate_up, down;
  LinearFormat gate_up_format, down_format;
  NeuronChoice choice;
};

/// A matrix and its optional bias [rows].
struct Linear {
  const PackedMatrix* weight = nullptr;
  const float* bias = nullptr;
};

/// One layer's keys and values inside the pages of its cache group. In a page the layer has keys
/// [kv_heads, head_dim, page_tokens] at key_offset, so that products with a query run over positions side by side, and
/// values [kv_heads, page_tokens, head_dim] at value_offset, elements of `dtype`.
struct KvLayer {
  std::byte* pages = nullptr;  // page p starts at pages + p * page_bytes
  std::size_t page_bytes = 0;
  std::size_t key_offset = 0;
  std::size_t value_offset = 0;
  std::size_t key_scale_offset = 0;  // kv/page_layout.h; of meaning where the format has scales
  std::size_t value_scale_offset = 0;
  // Bounds of the keys of full pages, which rope_store() keeps: page p's from p * key_bound_numbers on; null: none.
  std::uint16_t* key_bounds = nullptr;
  std::size_t key_bound_numbers = 0;  // of a page
  // Buckets of the keys of prompts, which rope_store() keeps: page p's [kv_heads][page_tokens] from p *
  // key_bucket_bytes on; null: none. By the planes of `hash` (kv/key_hash.h), of keys as they are stored.
  std::uint8_t* key_buckets = nullptr;
  std::size_t key_bucket_bytes = 0;  // of a page
  KeyHash hash = {};
  std::int32_t page_tokens = 0;
  std::int32_t group = 0;  // which page table of a SequenceRows
  KvFormat format = KvFormat::f32;
};

/// h += delta_scale * norm(delta); h *= h_scale; out = norm(h). Root mean square norms (Zhang & Sennrich 2019):
/// norm(x) = x / sqrt(mean(x^2) + eps) * weight, statistics in f32. Absent parts are null and skipped.
struct ResidualNormArgs {
  std::int64_t rows = 0, width = 0;
  float* h = nullptr;                 // [rows, width], updated when delta or h_scale say so
  const float* delta = nullptr;       // [rows, width]
  const float* delta_norm = nullptr;  // [width]: norm of delta before it is added
  float delta_scale = 1.0f;
  float h_scale = 1.0f;
  const float* norm = nullptr;  // [width]
  float eps = 0.0f;
  float* out = nullptr;  // [rows, width], may be h; not written without `norm`
};

enum class NormScope : std::uint8_t { none, per_head, all_heads };

/// Per row: norms of q and k, rotary embedding (Su et al. 2021; half-split pairs i, i + rotary_dim / 2), k and v into
/// their page slots, q in place. A row of qkv is q [heads, head_dim], then k and v [kv_heads, head_dim] as far as
/// present.
struct RopeStoreArgs {
  float* qkv = nullptr;  // [rows, qkv_width]
  std::int64_t qkv_width = 0;
  std::int32_t heads = 0, kv_heads = 0, head_dim = 0, rotary_dim = 0;
  bool store = true;          // false: the layer reads another layer's keys and values; a row of qkv is q alone
  bool value_is_key = false;  // v is the projected k, before norm and rotation; a row of qkv is q and k
  bool value_norm = false;    // v is normalised per head, weight 1
  NormScope norm = NormScope::none;
  const float* q_norm = nullptr;  // [head_dim], or [heads * head_dim] for all_heads
  const float* k_norm = nullptr;  // [head_dim], or [kv_heads * head_dim] for all_heads
  float eps = 0.0f;
  const float* cos = nullptr;  // [rows, rotary_dim / 2]; null: no rotation
  const float* sin = nullptr;
  const float* q_scale = nullptr;  // [rows], multiplies q after rotation; null: 1
  KvLayer kv;
};

/// By how much queries are turned back where pages have moved (SequenceRows::moved): the rotation, as RopeStoreArgs has
/// it, by ForwardBatch::turns[i] positions less.
struct QueryTurns {
  std::int32_t rotary_dim = 0;
  // Rows of cosines and sines of a rotation alone, [rows, rotary_dim / 2]; and which of them a turn has: [turns], or,
  // where the regime of the rotation differs by sequence, [sequences, turns], -1 for those that a sequence lacks.
  std::span<const float> cos, sin;
  std::span<const std::int32_t> rows;
  bool by_sequence = false;
};

/// Causal softmax(scale * q k^T) v per head over the pages of each sequence, grouped queries (head h reads kv head
/// h / (heads / kv_heads)). KV is folded in fixed absolute chunks of kAttentionChunk positions, in order (and chunks in
/// spans of them, where a backend says so), with a running maximum and sum (Milakov & Gimelshein 2018), so a row's
/// result does not depend on how the step was cut.
struct AttendArgs {
  const float* q = nullptr;  // [rows, q_stride], q first
  std::int64_t q_stride = 0;
  float* out = nullptr;  // [rows, heads * head_dim], apart from q
  std::int32_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t window = 0;  // a row at t sees positions in (t - window, t]; 0: all up to t
  float scale = 1.0f;
  float softcap = 0.0f;          // cap * tanh(score / cap) where not 0 (Gemma 2)
  const float* sinks = nullptr;  // [heads]: one more logit in each softmax, without a value (gpt-oss)
  KvLayer kv;
  // Rows of answers read the pages that this chooses for each kv head (kv/page_choice.h), with their places among these
  // for their positions in the grid of chunks; null: all rows read everything. Not together with a window.
  const PageSelection* selection = nullptr;
  // Rows of prompts read blocks that this chooses for each kv head (kv/block_choice.h), with their places as above;
  // null: all rows read everything. A step then holds whole blocks of kQueryBlock rows of a prompt, but for its last,
  // and pages have 16 positions. Not together with a window.
  const BlockSelection* prompt_selection = nullptr;
  // Rows of prompts approximate what is far by blocks and samples of this (kv/hyper_choice.h), where kv has buckets;
  // null: they do not. Not together with prompt_selection or a window, and with pages of 16 positions.
  const HyperAttention* hyper = nullptr;
  // Where pages of some sequence have moved: how queries are turned for them; null in a layer that does not rotate, for
  // which nothing has moved. Host memory: a backend that others must copy to has no kept pages.
  const QueryTurns* turns = nullptr;
  // Of a chunk whose largest score is by more than this below the largest of those before it, and the sink, a query's
  // weights are zero. Not together with hyper; rows for which queries are turned leave out nothing.
  float skip_margin = std::numeric_limits<float>::infinity();
  std::uint32_t layer = 0;  // of the model, for draws by lot
};
inline constexpr std::int64_t kAttentionChunk = 64;

/// out = down(act(gate(x)) * up(x)). gate_up has the gate's rows, then the up's. In rows of answers a neuron whose
/// |act(gate)| is at most the down weight's skip().gate_threshold gives zero (CATS, Lee et al. 2024, arXiv 2404.08763).
/// With `neurons` these are the weights, and those of gate_up and down are null: in rows of answers a neuron that is
/// not chosen gives zero.
struct GatedFfn {
  Linear gate_up, down;
  Activation activation = Activation::silu;
  float clamp_limit = 0.0f;  // swiglu_clamp only
  const PackedNeurons* neurons = nullptr;

  [[nodiscard]] std::int64_t intermediate() const {
    return neurons != nullptr ? neurons->neurons() : gate_up.weight->rows() / 2;
  }
};

enum class ExpertWeighting : std::uint8_t {
  softmax_then_top_k,             // weights are the probabilities as they are
  softmax_then_top_k_normalized,  // ... divided by their sum (Mixtral, Qwen3-MoE)
  top_k_then_softmax              // softmax over the chosen logits (gpt-oss); equal to the former but for rounding
};

/// out[row] = sum over its top_k experts, in ascending expert index, of weight * expert(x[row]).
struct MoeArgs {
  std::int64_t rows = 0;
  const float* router_x = nullptr;      // [rows, router.cols]
  const float* x = nullptr;             // [rows, width]
  float* out = nullptr;                 // [rows, width]
  Linear router;                        // [experts, width]
  const float* expert_scale = nullptr;  // [experts], multiplies the weight of an expert after normalisation
  std::int32_t top_k = 0;
  ExpertWeighting weighting = ExpertWeighting::softmax_then_top_k_normalized;
  std::span<const GatedFfn> experts;
};

class Backend {
 public:
  virtual ~Backend() = default;

  /// Backend, ISA level and kernel revision: the backend's part of the numeric class, e.g. "cpu/avx2/1".
  [[nodiscard]] virtual std::string numeric_class() const = 0;

  /// Takes a fraction of a second. Error: no memory for it, or a backend that is not made for speed.
  virtual Result<DeviceLimits> measure_limits() = 0;

  /// Whether buffers are memory that the host may read and write as it is, between steps.
  [[nodiscard]] virtual bool host_memory() const = 0;

  /// Bytes that buffers and weights can still take.
  [[nodiscard]] virtual std::uint64_t free_memory() const = 0;

  /// Error: no memory; the message has the figure.
  virtual Result<Buffer> allocate(std::size_t bytes) = 0;
  /// Host memory that read() fills at the device's full speed, or any where that makes no difference. Error: as above.
  virtual Result<Buffer> allocate_host(std::size_t bytes) = 0;
  virtual void write(const Buffer& target, std::size_t offset, std::span<const std::byte> source) = 0;
  virtual void read(const Buffer& source, std::size_t offset, std::span<std::byte> target) = 0;
  /// From device to device, in order with the operations. Within one buffer the two ranges must not overlap.
  virtual void copy(const Buffer& target, std::size_t target_offset, const Buffer& source, std::size_t source_offset,
                    std::size_t bytes) = 0;

  /// Relayouts a weight once. Error: no memory. `source` is read during the call only.
  virtual Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) = 0;

  /// What bytes() of the packed matrix will be, before anything is allocated. Reads formats and shapes only: the
  /// source's data pointers may be null.
  [[nodiscard]] virtual std::size_t packed_bytes(const MatrixSource& source, LinearFormat format) const = 0;

  /// Whether rows of answers can compute some neurons of a gated FFN alone.
  [[nodiscard]] virtual bool chooses_neurons() const { return false; }
  /// The same as pack() and packed_bytes() for the weights of such an FFN.
  virtual Result<std::unique_ptr<PackedNeurons>> pack_neurons(const NeuronSource& source);
  [[nodiscard]] virtual std::size_t packed_neuron_bytes(const NeuronSource& /*source*/) const { return 0; }

  /// Makes the file for neurons that are not to be in memory (NeuronChoice::resident), before the first of them is
  /// packed. It goes away with the process. Errors: no such directory, or one that may not be written in; no room; a
  /// file system that cannot read around the page cache.
  virtual Status open_neuron_store(const NeuronStoreOptions& options);

  /// Whether gated_ffn() and activate_multiply() know the activation.
  [[nodiscard]] virtual bool activates(Activation /*activation*/) const { return true; }

  /// What keys and values may lie in memory in; other formats must not reach rope_store() and attend().
  [[nodiscard]] virtual std::span<const KvFormat> kv_formats() const = 0;

  /// Whether attend() can select blocks and pages, and approximate, and rope_store() keep what these need of keys.
  [[nodiscard]] virtual bool selects_pages() const { return false; }

  /// Whether rows of answers can leave out inputs (LinearFormat::skip).
  [[nodiscard]] virtual bool skips_inputs() const { return false; }
  /// Since the backend was made.
  [[nodiscard]] virtual SkipCounts skip_counts() const { return {}; }
  [[nodiscard]] virtual AttendCounts attend_counts() const { return {}; }

  /// What attention multiplies with keys and values in.
  [[nodiscard]] virtual Arithmetic attend_arithmetic(KvFormat format) const = 0;

  /// Returns when all that was asked for is done: a device may take its time, and start later.
  virtual void wait() = 0;

  /// What made operations fail since the last call, the first of it; asked when a step is done. An operation has nobody
  /// to tell: it goes on with numbers that are finite and mean nothing, and all that the step computed must be thrown
  /// away, keys and values too. The next one may succeed.
  virtual Status take_failure() { return Ok{}; }

  /// Called once before the operations of a step: uploads what they need of it. Products whose weight has a skip() take
  /// their rows for those of the batch.
  virtual void begin(const ForwardBatch& batch) = 0;

  /// out[r] = scale * table[token_ids[r]]; out [rows, table.cols]. Ids must be below table.rows (the runtime checks
  /// them).
  virtual void embed(const ForwardBatch& batch, const PackedMatrix& table, float scale, float* out) = 0;
  virtual void residual_norm(const ResidualNormArgs& args) = 0;
  /// out = x weight^T + bias; x [rows, cols], out [rows, out_stride] with out_stride >= weight rows.
  virtual void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) = 0;
  virtual void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) = 0;
  virtual void attend(const ForwardBatch& batch, const AttendArgs& args) = 0;
  /// x, out [rows, width]; scratch [rows, 2 * intermediate].
  virtual void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) = 0;
  virtual void moe(const MoeArgs& args) = 0;
  /// gate[r, i] = act(gate[r, i]) * other[r * other_stride + i]; gate [rows, width].
  virtual void activate_multiply(Activation activation, float* gate, const float* other, std::int64_t other_stride,
                                 std::int64_t rows, std::int64_t width) = 0;
  /// out[i] = a * x[i] + b * y[i], `count` elements; y may be null (b unused); out may be x or y.
  virtual void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) = 0;
  /// out[i] = x[indices[i]]; rows of `width`.
  virtual void gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width, float* out) = 0;
  /// x[i] = softcap * tanh(scale * x[i] / softcap), or scale * x[i] where softcap is 0.
  virtual void scale_softcap(float* x, std::int64_t count, float scale, float softcap) = 0;

  /// Whether draw_tokens() can do such a draw. Else the row goes to the host, as it does where its memory is the
  /// host's.
  [[nodiscard]] virtual bool draws(const TokenDraw& /*draw*/, std::int64_t /*vocab*/) const { return false; }
  /// tokens[i] = what draws[i] draws; logits [rows, vocab] stay as they are, `tokens` is memory of the host.
  virtual void draw_tokens(const float* logits, std::int64_t vocab, std::span<const TokenDraw> draws,
                           std::span<std::int32_t> tokens);
};

}  // namespace millrace
