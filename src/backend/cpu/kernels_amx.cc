// Products and attention compiled for AMX, AVX-512, its BF16, VBMI and VNNI. See kernel_table.h for what may not be
// used here.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "quant/codec.h"

namespace millrace {

namespace {

// Each builds on those above it.
// clang-format off
#include "backend/cpu/kernels/elements.h"
#include "backend/cpu/kernels/lanes_x86.h"
#include "backend/cpu/kernels/lanes_avx512.h"
#include "backend/cpu/kernels/math.h"
#include "backend/cpu/kernels/integers_x86.h"
#include "backend/cpu/kernels/integer_inputs.h"
#include "backend/cpu/kernels/integers_vnni.h"
#include "backend/cpu/kernels/integers.h"
#include "backend/cpu/kernels/panel_rows.h"
#include "backend/cpu/kernels/pairs.h"
#include "backend/cpu/kernels/tiles_amx.h"
#include "backend/cpu/kernels/integers_amx.h"
#include "backend/cpu/kernels/products_amx.h"
#include "backend/cpu/kernels/skip_tiles.h"
#include "backend/cpu/kernels/skip_pairs.h"
#include "backend/cpu/kernels/skip_pairs_amx.h"
#include "backend/cpu/kernels/kv_elements.h"
#include "backend/cpu/kernels/attend_state.h"
#include "backend/cpu/kernels/attention_amx.h"
#include "backend/cpu/kernels/cells.h"
#include "backend/cpu/kernels/cell_scores_amx.h"
// clang-format on

}  // namespace

const ProductKernels kAmxProducts = {
    .multiply_integers = multiply_integers_by_tiles,
    .multiply_pairs = multiply_pairs_by_tiles,
    .attend_rounded = attend_by_tiles,
    .score_cells_rounded = score_cells_by_tiles,
    .skip_pairs = skip_pairs_as_tiles,
    .pair_order = PairOrder::tiles,
    .multiply_add = {nullptr, multiply_add_pairs, multiply_add_pairs, multiply_add_bytes_by_tiles}};

}  // namespace millrace
