// The scalar codec of every number format: the definition of what stored bytes mean, and the oracle for the kernels.
#pragma once

#include <cstddef>

#include "quant/format.h"

namespace millrace {

/// Decodes `elements` consecutive elements (a whole number of blocks) from `source` into `target` floats.
/// Bit-equal to the `gguf` package's dequantisation. `source` needs no alignment. Never reads past the blocks.
void dequantize(QuantFormat format, const std::byte* source, float* target, std::size_t elements);

}  // namespace millrace
