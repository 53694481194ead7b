// Products of codes compiled for AVX2 and AVX-VNNI. See kernel_table.h for what may not be used here.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "quant/codec.h"

namespace millrace {

namespace {

// Each builds on those above it.
// clang-format off
#include "backend/cpu/kernels/elements.h"
#include "backend/cpu/kernels/lanes_x86.h"
#include "backend/cpu/kernels/lanes_avx2.h"
#include "backend/cpu/kernels/integers_x86.h"
#include "backend/cpu/kernels/integer_inputs.h"
#include "backend/cpu/kernels/integers_vnni.h"
#include "backend/cpu/kernels/integers.h"
// clang-format on

}  // namespace

const ProductKernels kAvxVnniProducts = {.multiply_integers = multiply_integers,
                                         .multiply_add = {nullptr, nullptr, nullptr, multiply_add_bytes}};

}  // namespace millrace
