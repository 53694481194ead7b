// Products of bfloat16 compiled for AVX-512 with its BF16 and VBMI. See kernel_table.h for what may not be used here.
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
#include "backend/cpu/kernels/panel_rows.h"
#include "backend/cpu/kernels/pairs.h"
#include "backend/cpu/kernels/products_bf16.h"
#include "backend/cpu/kernels/skip_tiles.h"
#include "backend/cpu/kernels/skip_pairs.h"
#include "backend/cpu/kernels/skip_pairs_dots.h"
// clang-format on

}  // namespace

const ProductKernels kAvx512Bf16Products = {.multiply_pairs = multiply_pairs_by_dots,
                                            .skip_pairs = skip_pairs_by_dots,
                                            .pair_order = PairOrder::dots,
                                            .multiply_add = {nullptr, multiply_add_dots, multiply_add_dots, nullptr}};

}  // namespace millrace
