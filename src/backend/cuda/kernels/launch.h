// What the host side of the CUDA backend and its kernels share: plain structs of raw device pointers, and a function
// for each kernel that puts it into a stream. Nothing here allocates or waits. Activations are f32 and row-major.
//
// Every kernel computes a row from that row's inputs alone, in an order that depends on shapes of the weight, on
// positions and on nothing else: batch invariance, as in backend.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/matrix_layout.h"
#include "backend/token_draw.h"
#include "quant/kv_format.h"

namespace millrace::cuda {

/// The rows of a step, on the device.
struct BatchView {
  const std::int32_t* token_ids = nullptr;      // [rows]
  const std::int32_t* row_sequence = nullptr;   // [rows]
  const std::int32_t* row_position = nullptr;   // [rows]
  const std::int32_t* table_offsets = nullptr;  // [groups, sequences]: where a page table begins in page_tables
  const std::int32_t* page_tables = nullptr;
  std::int32_t rows = 0, sequences = 0;
};

/// Keys and values of a layer, as KvLayer of backend.h has them.
struct KvView {
  std::byte* pages = nullptr;
  std::size_t page_bytes = 0;
  std::size_t key_offset = 0, value_offset = 0;
  std::size_t key_scale_offset = 0, value_scale_offset = 0;
  std::int32_t page_tokens = 0;
  KvFormat format = KvFormat::f32;
};

/// Consecutive rows of one sequence that attend together.
struct AttendTile {
  std::int32_t first_row = 0, rows = 0, sequence = 0;
  std::int32_t first_position = 0;
};

/// AttendArgs of backend.h for the tiles of a step.
struct AttendLaunch {
  const float* q = nullptr;  // [rows, q_stride]
  std::int64_t q_stride = 0;
  float* out = nullptr;  // [rows, heads * head_dim]
  std::int32_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int32_t window = 0;  // 0: none
  float scale = 1.0f, softcap = 0.0f;
  const float* sinks = nullptr;  // [heads]
  KvView kv;
  const std::int32_t* table_offsets = nullptr;  // [sequences], of the layer's cache group
  const std::int32_t* page_tables = nullptr;
  const AttendTile* tiles = nullptr;
  std::int32_t tile_count = 0;
  std::int32_t tile_rows = 0;  // the most that a tile has
  std::int32_t splits = 0;     // spans of kAttendSplit positions that the longest sequence may have
  float* partials = nullptr;   // attend_partial_floats() of them
  bool wgmma = false;          // the device has the instructions of 9.0 (have_wgmma)
  // Of attend_exact(), which takes rows one by one.
  const std::int32_t* row_sequence = nullptr;  // [rows]
  const std::int32_t* row_position = nullptr;  // [rows]
  std::int32_t rows = 0;
};

inline constexpr std::int32_t kAttendSplit = 1024;

/// Outputs of a weight that are stored alike (cuda_matrix.h).
struct WeightView {
  Storage storage = Storage::rows_f32;
  bool half_scales = false;    // scales are halves, else floats
  std::int32_t group = 0;      // inputs that share a scale; 0: all
  std::int32_t zero_bias = 0;  // what stored zeros are raised by
  std::int64_t rows = 0, cols = 0;
  const std::byte* data = nullptr;
  const void* scales = nullptr;         // [tiles, groups, 16]; null: 1
  const std::uint8_t* zeros = nullptr;  // [tiles, groups, 16]; null: none
  const float* row_scales = nullptr;    // [rows]; null: 1

  [[nodiscard]] MILLRACE_HOST_DEVICE std::int64_t groups() const { return group == 0 ? 1 : (cols + group - 1) / group; }
};

/// What becomes of inputs before they are multiplied.
enum class Rounding : std::uint8_t { none, bf16, int8, e4m3 };

/// Inputs of a product, [rows, cols] in x, rounded as LinearFormat says.
struct RoundLaunch {
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  std::int64_t rows = 0, cols = 0;
  const std::int32_t* order = nullptr;  // [cols]: input k is x[order[k]]; null: its own order
  Rounding rounding = Rounding::none;
  std::int32_t group = 0;  // of int8: inputs that share a scale; 0: all
  // The input is act(x) * other where there is another.
  const float* other = nullptr;
  std::int32_t activation = 0;  // Activation
  float clamp_limit = 0.0f;
  float* values = nullptr;     // [rows, cols]: the rounded numbers, or
  void* tiles = nullptr;       // input_tile_bytes(): codes or numbers in the order of a matrix instruction
  bool core_matrices = false;  // ... of the kernels by wgmma
  float* scales = nullptr;     // [rows, groups], with `tiles`
};

/// Whether tiles have codes of 8 bits rather than numbers of 16. Those of E4M3 are half precision where no instruction
/// takes the codes.
MILLRACE_HOST_DEVICE constexpr bool rounds_to_bytes(Rounding rounding, bool core_matrices) {
  return rounding == Rounding::int8 || (rounding == Rounding::e4m3 && core_matrices);
}

/// Bytes of inputs in tiles: 8 rows by kBlockCols inputs, one after the other, rows and inputs filled up with zeros.
/// Blocks read up to 256 rows at a time, beyond the last whatever is there.
constexpr std::int64_t input_tile_bytes(Rounding rounding, bool core_matrices, std::int64_t rows, std::int64_t cols) {
  return round_up_to(rows, 256) * round_up_to(cols, kSpanCols) * (rounds_to_bytes(rounding, core_matrices) ? 1 : 2);
}

/// dot: any weight, inputs and sums in f32. The others: matrix instructions, the same bits from all that a device uses
/// for a weight; weights are streamed once for up to 64 rows (few, few_wgmma), or multiplied from shared memory (many,
/// wgmma). Those by wgmma are for compute capability 9.0.
enum class ProductKernel : std::uint8_t { dot, few, few_wgmma, many, wgmma };

constexpr bool uses_wgmma(ProductKernel kernel) {
  return kernel == ProductKernel::few_wgmma || kernel == ProductKernel::wgmma;
}

/// out[r, o] = x[r] . weight[o] + bias[o].
struct MatmulLaunch {
  ProductKernel kernel = ProductKernel::dot;
  WeightView weight;
  Rounding rounding = Rounding::none;   // of what is in `tiles`
  const void* tiles = nullptr;          // for matmul(): RoundLaunch's
  const float* input_scales = nullptr;  // [rows, input_groups]
  std::int32_t input_group = 0;
  const float* x = nullptr;  // for dot(): [rows, x_stride]
  std::int64_t x_stride = 0;
  std::int64_t rows = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  // [weight rows]
};

/// dot() where each row has a weight of its own: row p multiplies x[p / x_rows] with weights[choice[p]].
struct ExpertsLaunch {
  const WeightView* weights = nullptr;   // [experts], all stored alike
  const float* const* biases = nullptr;  // [experts], each [weight rows] or null
  WeightView like;                       // one of them, for its shape
  const std::int32_t* choice = nullptr;  // [pairs]
  std::int64_t pairs = 0;
  std::int32_t x_rows = 1;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  float* out = nullptr;  // [pairs, out_stride]
  std::int64_t out_stride = 0;
};

struct RouteLaunch {
  const float* logits = nullptr;        // [rows, experts]
  const float* expert_scale = nullptr;  // [experts]
  std::int64_t rows = 0;
  std::int32_t experts = 0, top_k = 0;
  std::int32_t weighting = 0;      // ExpertWeighting
  std::int32_t* choice = nullptr;  // [rows, top_k], ascending
  float* weights = nullptr;        // [rows, top_k]
};

struct NormLaunch {
  std::int64_t rows = 0, width = 0;
  float* h = nullptr;
  const float* delta = nullptr;
  const float* delta_norm = nullptr;
  const float* norm = nullptr;
  float* out = nullptr;
  float delta_scale = 1.0f, h_scale = 1.0f, eps = 0.0f;
  // What the next product reads: the result rounded, to tiles or not at all.
  RoundLaunch round;
};

struct RopeLaunch {
  BatchView batch;
  float* qkv = nullptr;
  std::int64_t qkv_width = 0;
  std::int32_t heads = 0, kv_heads = 0, head_dim = 0, rotary_dim = 0;
  std::int32_t norm = 0;  // NormScope
  bool store = true, value_is_key = false, value_norm = false;
  float eps = 0.0f;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  const float* cos = nullptr;
  const float* sin = nullptr;
  const float* q_scale = nullptr;
  std::int32_t group = 0;
  KvView kv;
};

struct ActivateLaunch {
  std::int32_t activation = 0;  // Activation
  float clamp_limit = 0.0f;
  float* gate = nullptr;
  std::int64_t gate_stride = 0;
  const float* other = nullptr;
  std::int64_t other_stride = 0;
  std::int64_t rows = 0, width = 0;
  float* out = nullptr;  // [rows, out_stride], may be gate
  std::int64_t out_stride = 0;
};

/// Rows of a table, for tokens from first_row on that it has.
struct EmbedLaunch {
  BatchView batch;
  WeightView table;
  const std::int32_t* order = nullptr;  // [cols]: column k of the table is number order[k]; null: in order
  std::int64_t first_row = 0;
  float scale = 1.0f;
  float* out = nullptr;  // [rows, table.cols]
};

struct CombineLaunch {
  float a = 1.0f, b = 0.0f;
  const float* x = nullptr;
  const float* y = nullptr;
  float* out = nullptr;
  std::int64_t count = 0;
};

struct GatherLaunch {
  const float* x = nullptr;
  const std::int32_t* indices = nullptr;  // [rows]
  std::int64_t rows = 0, width = 0;
  float* out = nullptr;
};

struct SoftcapLaunch {
  float* x = nullptr;
  std::int64_t count = 0;
  float scale = 1.0f, softcap = 0.0f;
};

/// out[r] = sum over k, in order, of weights[r, k] * x[r, k].
struct SumExpertsLaunch {
  const float* x = nullptr;        // [rows, top_k, width]
  const float* weights = nullptr;  // [rows, top_k]
  std::int64_t rows = 0, top_k = 0, width = 0;
  float* out = nullptr;
};

/// What draw_tokens() takes: rows of so many logits, and so many that top_k keeps.
inline constexpr std::int64_t kMostDrawn = std::int64_t{1} << 19;
inline constexpr std::int32_t kMostKept = 1024;

struct DrawLaunch {
  const float* logits = nullptr;  // [rows, vocab]
  std::int64_t vocab = 0;
  const TokenDraw* draws = nullptr;  // [count]
  std::int64_t count = 0;
  std::int32_t* tokens = nullptr;  // [count]
};

cudaError_t embed(const EmbedLaunch& launch, cudaStream_t stream);
cudaError_t residual_norm(const NormLaunch& launch, cudaStream_t stream);
cudaError_t rope_store(const RopeLaunch& launch, cudaStream_t stream);
cudaError_t activate(const ActivateLaunch& launch, cudaStream_t stream);
cudaError_t combine(const CombineLaunch& launch, cudaStream_t stream);
cudaError_t gather_rows(const GatherLaunch& launch, cudaStream_t stream);
cudaError_t scale_softcap(const SoftcapLaunch& launch, cudaStream_t stream);
bool draws_on_device(const TokenDraw& draw, std::int64_t vocab);
cudaError_t draw_tokens(const DrawLaunch& launch, cudaStream_t stream);

/// Up to 65,536 inputs a row.
cudaError_t round_inputs(const RoundLaunch& launch, cudaStream_t stream);
/// Whether a kernel that has rows in registers can round them so as well.
bool rounds_in_registers(const RoundLaunch& launch);
/// For devices of compute capability `capability`, such as 86, with so many multiprocessors.
ProductKernel choose_product(std::int32_t capability, std::int32_t multiprocessors, const WeightView& weight,
                             Rounding rounding, std::int64_t rows);
cudaError_t multiply(const MatmulLaunch& launch, cudaStream_t stream);
cudaError_t dot(const MatmulLaunch& launch, cudaStream_t stream);
cudaError_t dot_experts(const ExpertsLaunch& launch, cudaStream_t stream);
cudaError_t matmul_few(const MatmulLaunch& launch, cudaStream_t stream);
cudaError_t matmul_few_wgmma(const MatmulLaunch& launch, cudaStream_t stream);
cudaError_t matmul_many(const MatmulLaunch& launch, cudaStream_t stream);
cudaError_t matmul_wgmma(const MatmulLaunch& launch, cudaStream_t stream);

cudaError_t route(const RouteLaunch& launch, cudaStream_t stream);
cudaError_t sum_experts(const SumExpertsLaunch& launch, cudaStream_t stream);

/// Loops that reach a limit of the device (cuda_limits.h). `sink` is never written but the compiler cannot know.
enum class MultiplyKind : std::uint8_t { f32, bf16, int8, bf16_wgmma, e4m3_wgmma, int8_wgmma };
/// Whether this build has kernels for the matrix instructions that only compute capability 9.0 has, and this is one.
bool have_wgmma(std::int32_t capability);
cudaError_t read_memory(const void* memory, std::int64_t bytes, std::uint32_t* sink, std::int32_t multiprocessors,
                        cudaStream_t stream);
cudaError_t reach_operations(MultiplyKind kind, std::int64_t rounds, std::uint32_t* sink, std::int32_t multiprocessors,
                             cudaStream_t stream);
/// Multiplications and additions of such a loop.
double multiply_operations(MultiplyKind kind, std::int64_t rounds, std::int32_t multiprocessors);

/// Every format of keys and values, in f32.
cudaError_t attend_exact(const AttendLaunch& launch, cudaStream_t stream);

}  // namespace millrace::cuda
