// The kernels compiled for AVX2, FMA and F16C. See kernel_table.h for what may not be used here.
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
#include "backend/cpu/kernels/math.h"
#include "backend/cpu/kernels/integers_x86.h"
#include "backend/cpu/kernels/integer_inputs.h"
#include "backend/cpu/kernels/integers_avx2.h"
#include "backend/cpu/kernels/codes.h"
#include "backend/cpu/kernels/multiply.h"
#include "backend/cpu/kernels/skip_tiles.h"
#include "backend/cpu/kernels/skip_floats.h"
#include "backend/cpu/kernels/neurons.h"
#include "backend/cpu/kernels/integers.h"
#include "backend/cpu/kernels/inputs.h"
#include "backend/cpu/kernels/kv_elements.h"
#include "backend/cpu/kernels/attend_state.h"
#include "backend/cpu/kernels/attention.h"
#include "backend/cpu/kernels/rowwise.h"
#include "backend/cpu/kernels/page_bounds.h"
#include "backend/cpu/kernels/cells.h"
#include "backend/cpu/kernels/cell_scores.h"
#include "backend/cpu/kernels/limits.h"
#include "backend/cpu/kernels/table.h"
// clang-format on

}  // namespace

const KernelTable kAvx2Kernels = kTable;

}  // namespace millrace
