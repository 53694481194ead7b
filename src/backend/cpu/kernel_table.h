// The boundary between the CPU backend and its kernels: a table of function pointers for each ISA level, of which some
// fill in what they do better than the level below.
//
// A kernel does one task on the calling thread: it splits nothing, allocates nothing, and gets its scratch memory from
// the caller. kernels_<level>.cc is compiled with the flags of its level and includes the shared implementation
// (kernels/*.h) inside an anonymous namespace. Neither those files nor this one may use an inline function or template
// with external linkage (std::max, std::vector, float16.h): the linker keeps one copy of such a function for the whole
// program, and if that is the AVX-512 one, the program dies on an older machine. The test isa_symbols checks the object
// files for it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/cpu/attend_tasks.h"
#include "backend/cpu/isa_level.h"

namespace millrace {

/// Scratch of a matmul task, in floats: a block of inputs, a tile of weights, rows as they are decoded.
inline constexpr std::int64_t kMatmulRows = 96;    // rows a task takes at most
inline constexpr std::int64_t kMatmulBlock = 256;  // inputs in a tile of weights; a multiple of every format's block
inline constexpr std::int64_t kMatmulInputScratch = std::int64_t{1} << 16;
inline constexpr std::int64_t kMatmulWeightScratch = 8 * kPanelRows * kMatmulBlock;
inline constexpr std::int64_t kMatmulScratch = kMatmulInputScratch + kMatmulWeightScratch + kPanelRows * kMatmulBlock;
static_assert(kMatmulInputScratch >= kMatmulRows * kMatmulBlock);

struct PackedIntegers;

/// Consecutive outputs that are stored in one format. Plain formats: panels [panel][cols][16] of the format's elements,
/// the last panel padded with zeros. Others: rows of blocks, one after the other; or `codes`. For products of pairs
/// (PairTask) inputs are padded with zeros to a multiple of kPairBlock, and those of bf16 lie side by side:
/// [panel][padded cols / 2][16][2].
///
/// Plain formats may also lie input by input, in tiles of `tile` outputs: [tile][cols][outputs of the tile], the last
/// tile as wide as panels are left; cols padded for products of pairs, which stand apart then. Kernels of dense
/// products do not know it: they are given panels that were gathered from it (input_tiles.h).
struct PackedSegment {
  QuantFormat format = QuantFormat::f32;
  const std::byte* data = nullptr;
  std::int64_t rows = 0, cols = 0;
  bool paired = false;                    // bf16 and f8_e4m3 alone: for multiply_pairs
  const float* row_scales = nullptr;      // f8_e4m3 alone: [panels][16]
  const float* group_scales = nullptr;    // f8_e4m3 alone: [panels][groups of `group` inputs][16]
  std::int64_t group = 0;                 // a multiple of 16
  const PackedIntegers* codes = nullptr;  // of format codes
  std::int64_t tile = 0;                  // outputs, a multiple of 16; 0: panels
};

/// out[r, o] = sum over k of x[r, k] * w[o, k], k ascending in one accumulator, times row_scales[o], or row_scales[o] *
/// x_scales[r], where there are such, plus bias[o]; o in panels [first_panel, end_panel) of the segment. A weight w
/// with a scale for its group is their product. `out` and `bias` point to the segment's output 0.
struct MatmulTask {
  PackedSegment weight;
  std::int64_t first_panel = 0, end_panel = 0;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  const float* x_scales = nullptr;  // [rows]
  std::int64_t rows = 0;            // at most kMatmulRows
  bool round_inputs = false;        // to bfloat16
  bool resume = false;              // sums go on from what is in `out`
  float* out = nullptr;
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  // may be null
  float* scratch = nullptr;     // kMatmulScratch floats, 64-byte aligned
};

/// Inputs that a product of pairs takes at a time.
inline constexpr std::int64_t kPairBlock = 32;
/// Kernels may read inputs of products of up to as many rows, less one, behind the last.
inline constexpr std::int64_t kInputRowPadding = 16;

/// A product of bf16, or of E4M3 whose weights become that, with inputs in bf16: out[r, o] = sum over k of x[r, k] *
/// w[o, k], times row_scales[o] * x_scales[r] where there are such, plus bias[o]. Products are exact but for
/// subnormal numbers, which may count as zero, and the sums of a row are taken in an order that depends on nothing but
/// k.
struct PairTask {
  PackedSegment weight;  // paired
  std::int64_t first_panel = 0, end_panel = 0;
  const std::uint16_t* x = nullptr;  // [rows][x_stride] and kInputRowPadding, zeros behind the last column
  std::int64_t x_stride = 0;         // at least cols rounded up to kPairBlock
  const float* x_scales = nullptr;   // [rows]
  std::int64_t rows = 0;             // at most kMatmulRows
  bool resume = false;               // sums go on from what is in `out`: of bf16, cols a multiple of kPairBlock before
  float* out = nullptr;
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  // may be null
};

/// A row of inputs to bf16, and zeros behind it.
struct HalveTask {
  const float* x = nullptr;  // [cols]
  std::int64_t cols = 0, padded_cols = 0;
  std::uint16_t* values = nullptr;  // [padded_cols]
};

/// Inputs whose codes are summed together, for what is taken from all codes of a group.
inline constexpr std::int64_t kInputBlock = 16;

/// The sums of a block's codes, as kernels add products: of inputs 0 and 1 of every four in the lower half, of inputs 2
/// and 3 in the upper. Each is at most 8 * 127.
constexpr std::int32_t pair_sums(std::int32_t first, std::int32_t second) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(second) << 16) |
                                   (static_cast<std::uint32_t>(first) & 0xffffu));
}
/// Of both.
constexpr std::int32_t sum_of_pairs(std::int32_t sums) {
  return static_cast<std::int16_t>(static_cast<std::uint32_t>(sums) & 0xffffu) + (sums >> 16);
}
/// Added to the steps of E2M1, so that they are 0 to 24, and taken off again as a zero.
inline constexpr std::int32_t kE2m1Zero = 12;

/// Outputs as integer codes, in panels of 16; the last is filled up with zeros. Inputs are padded to whole blocks of
/// kIntegerBlock with codes that do not matter, since the padded inputs are 0. A panel's codes:
///   int8: [padded_cols / 4][16 outputs][4 inputs] int8
///   int4, e2m1: [padded_cols / 4][8][4] bytes; of byte [o][k] the low half is output o, the high half output o + 8
/// Or codes input by input, in tiles of `tile` outputs: [tile][padded_cols][panels of the tile][16 or 8 bytes], bytes
/// as above; what groups have lies as they do then, [tile][groups or supers][panels of the tile][16]. Groups of inputs
/// have scales; what a format lacks is null. Products with codes of inputs know no float_scales, and one kind of zero
/// at a time.
struct PackedIntegers {
  CodeKind kind = CodeKind::int8;  // not e4m3
  std::int64_t rows = 0, cols = 0, padded_cols = 0;
  std::int64_t group = 0;             // inputs that share a scale: a multiple of kInputBlock; of int4, of kIntegerBlock
  std::int64_t groups = 0;            // that padded_cols are cut into
  std::int64_t supers = 0;            // elements of `scales` of an output
  std::int32_t super_shift = 0;       // log2 of the groups that share an element of `scales` and of `minimums`
  std::int32_t input_shift = 0;       // log2 of the inputs of a row that share a scale of theirs; not without `scales`
  const std::byte* codes = nullptr;   // [panels]
  const float* row_scales = nullptr;  // [panels][16]
  const std::uint16_t* scales = nullptr;         // [panels][supers][16], halves; null: row_scales alone, one group, and
                                                 // one scale for a row of inputs
  const float* float_scales = nullptr;           // [panels][groups][16], instead of `scales`
  const std::int8_t* factors = nullptr;          // [panels][groups][16], of the scales
  const std::uint8_t* zeros = nullptr;           // [panels][groups][16]: codes are less these
  std::int32_t zero = 0;                         // and all less this; of e2m1 kE2m1Zero
  const std::uint16_t* minimums = nullptr;       // [panels][supers][16], halves
  const std::int8_t* minimum_factors = nullptr;  // [panels][groups][16]
  std::int64_t tile = 0;                         // outputs, a multiple of 16; 0: panels
};

/// Rows of inputs as codes: value = scale of the row and group * codes[r][k].
struct IntegerInputs {
  const std::int8_t* codes = nullptr;    // [rows][stride], stride >= padded_cols, zeros from cols to padded_cols
  const std::int32_t* sums = nullptr;    // [rows][stride / kInputBlock]: pair_sums() of the blocks
  const std::int32_t* totals = nullptr;  // [rows][stride / kInputBlock + 1]: sums of all codes before a block
  const float* scales = nullptr;         // [rows][groups]
  const float* shifts = nullptr;         // [rows][groups]: a scale times the sum of its codes
  const float* tile_scales = nullptr;    // [rows / 16][groups][16]: the same
  const float* tile_shifts = nullptr;
  std::int64_t stride = 0, groups = 0;
};

/// With inner, the exact sum over k in a group g of (code[o, k] - zero[o, g]) * x code[r, k], the scales s of weights
/// and x of inputs, and the minimum m: out[r, o] is the sum over g, ascending, in one accumulator, of (s[o, g] * x[r,
/// g]) * inner + m[o, g] * (x[r, g] * sum of x codes[r, k]), times the row scale of o if there are any, plus bias[o].
/// With row_scales alone it is (s[o] * inner) * x[r] + bias[o].
struct IntegerTask {
  PackedIntegers weight;
  std::int64_t first_panel = 0, end_panel = 0;
  IntegerInputs x;  // of the task's first row on
  std::int64_t rows = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  // may be null
};

/// Rows that kernels of kept inputs take at most, and entries of the list of inputs, and of that of codes, that they
/// look ahead: they are there behind its end too.
inline constexpr std::int64_t kSkipRows = 4, kSkipAhead = 16, kSkipAheadCodes = 64;

/// A product of rows with the inputs of which some row is not zero: what MatmulTask, or PairTask, makes of the rows
/// whole, to the bit. Weights lie input by input.
struct SkipTask {
  PackedSegment weight;
  std::int64_t first_panel = 0, end_panel = 0;
  // The inputs, ascending, and the last again as often as kernels look ahead. For tiles: of every kPairBlock inputs
  // first those with even, then those with odd indexes. For dot products: in twos, of each pair of inputs both where
  // both are kept, else twice the one that is.
  const std::int32_t* kept = nullptr;
  std::int64_t count = 0;
  const std::int32_t* begins = nullptr;  // for tiles: of the even and of the odd ones of each block, and the end
  // Their values, [rows][x_stride]: rounded as the product wants it, as floats, or for dot products as bf16, where of
  // a pair the input that is not kept is zero.
  const float* x = nullptr;
  const std::uint16_t* pairs = nullptr;
  std::int64_t x_stride = 0;
  std::int64_t rows = 0;  // at most kSkipRows
  float* out = nullptr;
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  // may be null
};

/// The same for what IntegerTask makes. Of each group of the weight at most 128 inputs are kept, or the weight has one
/// group, of codes of 8 bits.
struct SkipIntegerTask {
  PackedIntegers weight;
  std::int64_t first_panel = 0, end_panel = 0;
  const std::int32_t* kept = nullptr;    // of each group in fours, filled up with the last
  const std::int32_t* begins = nullptr;  // [groups + 1]: where a group's begin
  const std::int8_t* codes = nullptr;    // [rows][codes_stride]: of the kept inputs; 0 for what fills up
  std::int64_t codes_stride = 0;
  IntegerInputs x;  // scales, shifts and totals of the rows
  std::int64_t rows = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  // may be null
};

/// What the weights of a neuron are stored as. int8: codes, whose scales the caller knows; products are of codes.
enum class NeuronElement : std::uint8_t { f32, f16, bf16, int8 };
/// Weights of a neuron's row or column are padded with zeros to a multiple of this.
inline constexpr std::int64_t kNeuronBlock = 64;

/// out[r, i] = sum over k of x[r, k] * weights[i][k]: 32 sums of every 32nd product each, then those in one fixed tree,
/// so that a result depends on its row and its weights alone.
struct NeuronProductTask {
  NeuronElement element = NeuronElement::f32;
  const std::byte* const* weights = nullptr;  // [count]: `cols` elements each
  std::int64_t count = 0, cols = 0;           // cols: a multiple of kNeuronBlock
  const float* x = nullptr;                   // [rows][x_stride], padded with zeros
  std::int64_t x_stride = 0, rows = 0;
  float* out = nullptr;  // [rows][out_stride]
  std::int64_t out_stride = 0;
};

/// out[r, o] += h[r, i] * weights[i][o], i ascending, one product at a time.
struct NeuronSumTask {
  NeuronElement element = NeuronElement::f32;
  const std::byte* const* weights = nullptr;  // [count]: `outputs` elements each, from `first` on
  std::int64_t count = 0;
  std::int64_t first = 0, outputs = 0;  // first: a multiple of kNeuronBlock
  const float* h = nullptr;             // [rows][h_stride]
  std::int64_t h_stride = 0, rows = 0;
  float* out = nullptr;  // [rows][out_stride], of output `first`
  std::int64_t out_stride = 0;
};

/// Of codes and inputs that are codes: out[r, i] = the exact sum over k of x[r, k] * weights[i][k].
struct NeuronCodeProductTask {
  const std::byte* const* weights = nullptr;  // [count]: `cols` codes each
  std::int64_t count = 0, cols = 0;           // cols: a multiple of kNeuronBlock
  const std::int8_t* x = nullptr;             // [rows][x_stride], at least `cols` of each row
  std::int64_t x_stride = 0, rows = 0, out_stride = 0;
  std::int32_t* out = nullptr;  // [rows][out_stride]
};

/// out[r, o] += the exact sum over i of h[r, i] * weights[i][o].
struct NeuronCodeSumTask {
  static constexpr std::int64_t kMostOutputs = 1024;
  const std::byte* const* weights = nullptr;       // [count]: codes of all outputs, padded
  std::int64_t count = 0, first = 0, outputs = 0;  // first: a multiple of kNeuronBlock; outputs: at most kMostOutputs
  const std::int8_t* h = nullptr;                  // [rows][h_stride]
  std::int64_t h_stride = 0, rows = 0, out_stride = 0;
  std::int32_t* out = nullptr;  // of output `first`
};

/// In which form SkipTask::kept comes for multiply_pairs' bits.
enum class PairOrder : std::uint8_t { none, tiles, dots };

/// A row of inputs to codes, as quantize_inputs() defines it, with the padding and the sums of its blocks.
struct QuantizeTask {
  const float* x = nullptr;  // [cols]
  std::int64_t cols = 0, padded_cols = 0;
  std::int64_t group = 0;          // inputs that share a scale: a multiple of kIntegerBlock, or 0 for all
  std::int8_t* codes = nullptr;    // [padded_cols]
  std::int32_t* sums = nullptr;    // [padded_cols / kInputBlock]: pair_sums()
  std::int32_t* totals = nullptr;  // [padded_cols / kInputBlock + 1]
  float* scales = nullptr;         // [groups]
  float* shifts = nullptr;         // [groups]
  float* tile_scales = nullptr;    // [groups][16], of which the row writes the first
  float* tile_shifts = nullptr;
};

/// A row of inputs to E4M3, as round_inputs_to_e4m3() defines it.
struct RoundTask {
  const float* x = nullptr;  // [cols]
  std::int64_t cols = 0;
  float* values = nullptr;  // [cols]
  float* scale = nullptr;
};

/// A row of qkv and where its keys and values go.
struct RopeStoreTask {
  const RopeStoreArgs* args = nullptr;
  std::int64_t row = 0;  // of the batch
  // Kv head 0's slots; the next head's are head_stride bytes further. Elements of a key are args->kv.page_tokens apart.
  std::byte* key = nullptr;
  std::byte* value = nullptr;
  std::size_t head_stride = 0;
  // Kv head 0's scales; the next head's are args->kv.page_tokens further, and behind those of all heads come middles.
  // Of meaning where the format has them.
  float* key_scale = nullptr;
  float* value_scale = nullptr;
  float* scratch = nullptr;  // kv_heads * head_dim floats, for the values
};

/// Chooses experts for a row: the top_k largest logits, of equal ones the lower index.
struct RouteTask {
  const float* logits = nullptr;  // [experts]
  std::int32_t experts = 0, top_k = 0;
  ExpertWeighting weighting = ExpertWeighting::softmax_then_top_k;
  const float* expert_scale = nullptr;  // [experts] or null
  float* weights = nullptr;             // [experts]: 0 for those not chosen
  std::uint8_t* chosen = nullptr;       // [experts]: 1 or 0
};

/// The elementary functions, one at a time, for tests.
enum class MathFunction : std::uint8_t { exp, tanh, sigmoid, erf };

/// Multiplies and adds in registers only, `rounds` times, as the level's products in one arithmetic do. Returns the
/// number of multiplications and additions; `sink` gets what came of them.
using MultiplyAdd = std::int64_t (*)(std::int64_t rounds, float* sink);

using AttendKernel = void (*)(const AttendTask& task);

/// Products, which most levels do better than the one below them; null: as that does.
struct ProductKernels {
  void (*multiply_integers)(const IntegerTask& task) = nullptr;
  void (*multiply_pairs)(const PairTask& task) = nullptr;  // null at the end: weights are not paired
  /// Attention whose queries and weights are rounded to bfloat16, of keys and values that are not f32; null at the end:
  /// `attend` takes them all.
  AttendKernel attend_rounded = nullptr;
  /// Where queries are rounded for attention; null at the end: `score_cells` takes them all.
  void (*score_cells_rounded)(const CellTask& task) = nullptr;
  void (*skip_pairs)(const SkipTask& task) = nullptr;  // of the same bits as multiply_pairs, and comes with it
  PairOrder pair_order = PairOrder::none;
  void (*skip_integers)(const SkipIntegerTask& task) = nullptr;  // null at the end: codes lie in panels
  void (*multiply_neuron_codes)(const NeuronCodeProductTask& task) = nullptr;
  void (*add_neuron_codes)(const NeuronCodeSumTask& task) = nullptr;
  MultiplyAdd multiply_add[kArithmetics] = {};
};

struct KernelTable {
  ProductKernels products;
  void (*matmul)(const MatmulTask& task);
  void (*skip_floats)(const SkipTask& task);  // of the same bits as matmul
  void (*multiply_neurons)(const NeuronProductTask& task);
  void (*add_neurons)(const NeuronSumTask& task);
  void (*quantize)(const QuantizeTask& task);
  void (*round_to_e4m3)(const RoundTask& task);
  void (*round_to_bf16)(const HalveTask& task);
  AttendKernel attend;
  void (*rope_store)(const RopeStoreTask& task);
  void (*bound_keys)(const BoundTask& task);
  void (*score_pages)(const PageScoreTask& task);
  void (*score_cells)(const CellTask& task);
  void (*weigh_cells)(const CellWeightTask& task);
  void (*residual_norm)(const ResidualNormArgs& args, std::int64_t first_row, std::int64_t end_row);
  /// out[i] = act(gate[i]) * up[i], swiglu_clamp as its definition says; out may be gate.
  void (*activate)(Activation activation, float limit, const float* gate, const float* up, float* out,
                   std::int64_t count);
  void (*route)(const RouteTask& task);
  /// out[i] += a * x[i]
  void (*accumulate)(float a, const float* x, float* out, std::int64_t count);
  void (*combine)(float a, const float* x, float b, const float* y, float* out, std::int64_t count);
  void (*scale_softcap)(float* x, std::int64_t count, float scale, float softcap);
  void (*evaluate)(MathFunction function, const float* x, float* out, std::int64_t count);
  /// Reads all of it (a multiple of 1,024 bytes) and says something of it, so that reading cannot be left out.
  float (*read_memory)(const std::byte* memory, std::int64_t bytes);
};

extern const KernelTable kScalarKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const ProductKernels kAvxVnniProducts;
extern const ProductKernels kAvx512VnniProducts;
extern const ProductKernels kAvx512Bf16Products;
extern const ProductKernels kAmxProducts;
#endif

/// The level must be available.
KernelTable kernel_table(IsaLevel level);

}  // namespace millrace
