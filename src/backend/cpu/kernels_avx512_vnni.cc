// Products of codes compiled for AVX-512 with VNNI. See kernel_table.h for what may not be used here.
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
#include "backend/cpu/kernels/integers_x86.h"
#include "backend/cpu/kernels/integer_inputs.h"
#include "backend/cpu/kernels/integers_vnni.h"
#include "backend/cpu/kernels/integers.h"
#include "backend/cpu/kernels/skip_tiles.h"
#include "backend/cpu/kernels/skip_integers_vnni.h"
#include "backend/cpu/kernels/neurons_vnni.h"
// clang-format on

}  // namespace

const ProductKernels kAvx512VnniProducts = {.multiply_integers = multiply_integers,
                                            .skip_integers = skip_integers,
                                            .multiply_neuron_codes = multiply_neuron_codes,
                                            .add_neuron_codes = add_neuron_codes,
                                            .multiply_add = {nullptr, nullptr, nullptr, multiply_add_bytes}};

}  // namespace millrace
