// Which logits of a row are the most likely, and draws among them, without sorting the row. Pure, on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/row_kernels.h"

namespace millrace {

/// A logit of a row, or another number that says how likely it is, with its place.
struct RowItem {
  float logit = 0.0f;
  std::int32_t place = 0;
  std::uint64_t weight = 1;
};

/// Most likely first; the lower place first among equals, so that the order is total.
constexpr bool more_likely(const RowItem& a, const RowItem& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.place < b.place;
}

/// A row of logits (not empty) with the maxima of its blocks. Refers to the memory of both.
struct RowView {
  const RowKernels* kernels = nullptr;
  std::span<const float> logits;
  std::span<const float> maxima;  // of blocks of kRowBlock logits
  float largest = 0.0f;           // -inf where all are NaN or -inf
};

RowView view_row(const RowKernels& kernels, std::span<const float> logits, std::vector<float>& maxima);

/// The lowest place of the largest logit, which is not -inf.
std::int32_t place_of_largest(const RowView& row);

/// Memory that a selection needs beside the row; kept from call to call, so that none is allocated. One a thread.
struct SelectionScratch {
  std::vector<float> sample;
  std::vector<double> block_sums;
  std::vector<std::uint64_t> unit_sums;
  std::vector<std::int32_t> units;
  std::vector<RowItem> found, rest;
};

/// The k (>= 1) most likely logits, in the order of their places, NaN and -inf left out; fewer where the row has fewer.
/// The result lies in the scratch.
std::span<RowItem> most_likely_items(const RowView& row, std::size_t k, SelectionScratch& scratch);

/// The last item of the fewest most likely ones whose weights sum up to `wanted`; all items, if they do not reach it.
/// The items (no NaN or -inf, by ascending place, at least one) are scratch: the call changes them.
RowItem smallest_prefix(std::vector<RowItem>& items, std::uint64_t wanted);

/// The sum of the weights of a row, with the sum of each block in `block_sums`.
double sum_blocks(const RowView& row, const WeightScale& weights, std::vector<double>& block_sums);

/// The place at which the running sum of weights, by place, passes `uniform` (0 <= uniform < 1) of the whole.
std::int32_t draw_by_place(const RowView& row, const WeightScale& weights, float uniform, SelectionScratch& scratch);

/// Draws among the fewest most likely logits whose weight reaches `top_p` (0 < top_p < 1) of the whole row's, without
/// those that weigh less than `min_p` (0 to 1). Weights are rounded to multiples of 2^-30, and equal ones go by their
/// place: the set is exact, and so is the draw, the place at which the running sum of the set, by place, passes
/// `uniform` of the whole.
///
/// No sort and no heap: passes over the row count what is above a limit, and limits that are guessed from a sample
/// close in on the right one until few are left between them.
std::int32_t draw_in_top_p(const RowView& row, const WeightScale& weights, float top_p, float min_p, float uniform,
                           SelectionScratch& scratch);

/// log2 of a finite x > 0, by arithmetic that is the same everywhere (the C library's differs by processor); the error
/// is a few units in the last place.
double portable_log2(double x);

}  // namespace millrace
