// Numbers written as GGUF's types: the inverse of quant/codec.h.
//
// The blocks of 32 are those of ggml's reference: the bytes equal what the PyPI package gguf makes of the same numbers,
// wherever it makes any. What the blocks of 256 mean is fixed, how scales are chosen is not: see encode_k_block().
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace millrace {

/// f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k and q6_k.
bool can_encode(QuantFormat format);

/// Writes `elements` finite numbers, a whole number of blocks, to `target`, format_bytes() of them. A number, or a
/// scale, that is too large for halves becomes infinite, and so do the values that are decoded from it. A block whose
/// scale is too small for halves is one of zeros.
void encode(QuantFormat format, const float* values, std::byte* target, std::size_t elements);

/// One block of 256 numbers as q4_k, q5_k or q6_k.
///
/// For each group a scale (of q4_k and q5_k also a minimum) is sought that makes the sum of squared errors small: grids
/// of a few widths around the one that reaches from the lowest to the highest number give codes, and for given codes
/// the best scale and minimum follow from linear least squares. These are then rounded to the small integers that the
/// block holds, neighbours of which are tried with codes chosen anew, and last the two scales of the block are solved
/// for, again by least squares. Where all that is no better than the plain fit, which takes the reach of each group as
/// it is, the plain one is written.
void encode_k_block(QuantFormat format, const float* values, std::byte* target);

/// The plain fit alone, to compare with.
void encode_k_block_plainly(QuantFormat format, const float* values, std::byte* target);

}  // namespace millrace
