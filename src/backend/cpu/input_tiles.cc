#include "backend/cpu/input_tiles.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "backend/cpu/panel_shuffles.h"

namespace millrace {

namespace {

std::int64_t panels_of(std::int64_t rows) {
  return (rows + kPanelRows - 1) / kPanelRows;
}

std::int64_t padded_cols(const PackedSegment& weight) {
  return weight.paired ? round_up(weight.cols, kPairBlock) : weight.cols;
}

std::int64_t element_bytes(const PackedSegment& weight) {
  return weight.format == QuantFormat::f32 ? 4 : 2;
}

constexpr std::int64_t kGatherAhead = 16;  // inputs

void ask_for(const std::byte* weights, std::int64_t bytes) {
  for (std::int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(weights + line);
}

/// Panels from `panel` on that lie in one tile, before `end`.
std::int64_t panels_of_tile(std::int64_t tile, std::int64_t panel, std::int64_t end) {
  const std::int64_t tile_panels = tile / kPanelRows;
  return std::min(end - panel, tile_panels - panel % tile_panels);
}

/// Appends those of `first`, `first` + step, … below `end` that some row keeps to the list of `count` and returns its
/// new length. Without branches, which nothing could predict. `target` has room for all.
template <typename Keeps>
std::int64_t append_kept(std::int32_t* target, std::int64_t count, std::int64_t first, std::int64_t end,
                         std::int64_t step, std::int64_t rows, const Keeps& keeps) {
  if (rows == 1) {
    for (std::int64_t k = first; k < end; k += step) {
      target[count] = static_cast<std::int32_t>(k);
      count += keeps(0, k) ? 1 : 0;
    }
    return count;
  }
  for (std::int64_t k = first; k < end; k += step) {
    bool keep = false;
    for (std::int64_t r = 0; r < rows; ++r) keep = keep | keeps(r, k);
    target[count] = static_cast<std::int32_t>(k);
    count += keep ? 1 : 0;
  }
  return count;
}

}  // namespace

std::int64_t tile_outputs(std::int64_t rows, std::int64_t of_input, int threads) {
  constexpr std::int64_t kPage = 4096, kMostPanels = 256;
  const std::int64_t panels = panels_of(rows), most = std::min(kPage / of_input, kMostPanels);
  for (std::int64_t tiles = threads;; tiles += threads) {
    const std::int64_t panels_of_tile = std::max<std::int64_t>((panels + tiles - 1) / tiles, 1);
    if (panels_of_tile <= most) return panels_of_tile * kPanelRows;
  }
}

TiledPanel tiled_panel(std::int64_t rows, std::int64_t tile, std::int64_t inputs, std::int64_t panel,
                       std::int64_t of_input) {
  const std::int64_t tile_panels = tile / kPanelRows, first = panel / tile_panels * tile_panels;
  const std::int64_t width = std::min(tile_panels, panels_of(rows) - first);
  return {(first * inputs + panel - first) * of_input, width * of_input};
}

std::int64_t group_place(const PackedIntegers& weight, std::int64_t panel, std::int64_t count, std::int64_t group) {
  if (weight.tile == 0) return (panel * count + group) * kPanelRows;
  const TiledPanel place = tiled_panel(weight.rows, weight.tile, count, panel, kPanelRows);
  return place.offset + group * place.stride;
}

std::size_t gathered_bytes(const PackedSegment& weight, std::int64_t first, std::int64_t end) {
  return static_cast<std::size_t>((end - first) * padded_cols(weight) * kPanelRows * element_bytes(weight));
}

std::size_t gathered_bytes(const PackedIntegers& weight, std::int64_t first, std::int64_t end) {
  const std::int64_t of_groups = weight.groups * 7, of_supers = weight.supers * 4;  // bytes of all parts together
  const std::int64_t lines = 6 * 64;                                                // each part on a line of its own
  return static_cast<std::size_t>(
      (end - first) * (weight.padded_cols * code_panel_bytes(weight) + kPanelRows * (of_groups + of_supers)) + lines);
}

PackedSegment gather_panels(const PackedSegment& weight, std::int64_t first, std::int64_t end, std::byte* target) {
  PackedSegment part = weight;
  part.tile = 0;
  part.data = target;
  part.rows = std::min(weight.rows, end * kPanelRows) - first * kPanelRows;
  // Input after input, so that memory is read in the longest pieces that there are; a panel's own lie far apart.
  const std::int64_t cols = padded_cols(weight), of_input = kPanelRows * element_bytes(weight);
  const std::int64_t panel_bytes = cols * of_input;
  for (std::int64_t panel = first; panel < end;) {
    const std::int64_t count = panels_of_tile(weight.tile, panel, end);
    const TiledPanel place = tiled_panel(weight.rows, weight.tile, cols, panel, of_input);
    const std::byte* source = weight.data + place.offset;
    const std::int64_t step = weight.paired ? 2 : 1;
    for (std::int64_t k = 0; k < cols; k += step, source += step * place.stride) {
      ask_for(source + kGatherAhead * place.stride, count * of_input);
      if (weight.paired) ask_for(source + (kGatherAhead + 1) * place.stride, count * of_input);
      std::byte* next = target + k * of_input;
      for (std::int64_t p = 0; p < count; ++p, next += panel_bytes) {
        const std::byte* const from = source + p * of_input;
        if (weight.paired) {
          pair_up(from, from + place.stride, next);
        } else if (of_input == 32) {  // a constant size, for the compiler
          std::memcpy(next, from, 32);
        } else {
          std::memcpy(next, from, 64);
        }
      }
    }
    target += count * panel_bytes;
    panel += count;
  }
  return part;
}

PackedIntegers gather_panels(const PackedIntegers& weight, std::int64_t first, std::int64_t end, std::byte* target) {
  PackedIntegers part = weight;
  part.tile = 0;
  part.codes = target;
  part.rows = std::min(weight.rows, end * kPanelRows) - first * kPanelRows;
  if (part.row_scales != nullptr) part.row_scales += first * kPanelRows;
  const std::int64_t of_input = code_panel_bytes(weight), panel_bytes = weight.padded_cols * of_input;
  for (std::int64_t panel = first; panel < end;) {
    const std::int64_t count = panels_of_tile(weight.tile, panel, end);
    const TiledPanel place = tiled_panel(weight.rows, weight.tile, weight.padded_cols, panel, of_input);
    const std::byte* source = weight.codes + place.offset;
    for (std::int64_t k = 0; k < weight.padded_cols; k += kQuad, source += kQuad * place.stride) {
      for (std::int64_t q = 0; q < kQuad; ++q) ask_for(source + (kGatherAhead + q) * place.stride, count * of_input);
      std::byte* next = target + k * of_input;
      for (std::int64_t p = 0; p < count; ++p, next += panel_bytes) {
        for (std::int64_t b = 0; b < of_input; b += 8) {
          const std::byte* const from = source + p * of_input + b;
          quad_up({from, from + place.stride, from + 2 * place.stride, from + 3 * place.stride}, next + b * kQuad);
        }
      }
    }
    target += count * panel_bytes;
    panel += count;
  }
  const auto gather = [&](auto& elements, std::int64_t count) {
    if (elements == nullptr) return;
    using Element = std::remove_cvref_t<decltype(*elements)>;
    auto* next = reinterpret_cast<Element*>(target);
    const Element* const all = elements;
    elements = next;
    for (std::int64_t panel = first; panel < end; ++panel) {
      for (std::int64_t g = 0; g < count; ++g, next += kPanelRows) {
        std::copy_n(all + group_place(weight, panel, count, g), kPanelRows, next);
      }
    }
    const auto bytes = static_cast<std::int64_t>(sizeof(Element)) * (end - first) * count * kPanelRows;
    target += round_up(bytes, 64);
  };
  gather(part.scales, weight.supers);
  gather(part.float_scales, weight.groups);
  gather(part.factors, weight.groups);
  gather(part.zeros, weight.groups);
  gather(part.minimums, weight.supers);
  gather(part.minimum_factors, weight.groups);
  return part;
}

void KeptInputs::finish() {
  const std::int32_t last = count_ == 0 ? 0 : kept_[static_cast<std::size_t>(count_ - 1)];
  kept_.resize(static_cast<std::size_t>(count_));
  kept_.insert(kept_.end(), static_cast<std::size_t>(kSkipAheadCodes + kQuad), last);
}

void KeptInputs::list_floats(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t cols) {
  rows_ = rows;
  kept_.resize(static_cast<std::size_t>(cols + 1));
  count_ = append_kept(kept_.data(), 0, 0, cols, 1, rows,
                       [&](std::int64_t r, std::int64_t k) { return x[r * stride + k] != 0.0f; });
  finish();
  values_.resize(static_cast<std::size_t>(rows * count_));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < count_; ++i) {
      values_[static_cast<std::size_t>(r * count_ + i)] = x[r * stride + kept_[static_cast<std::size_t>(i)]];
    }
  }
}

void KeptInputs::list_pairs(PairOrder order, const std::uint16_t* x, std::int64_t stride, std::int64_t rows,
                            std::int64_t cols) {
  begins_.clear();
  rows_ = rows;
  const std::int64_t padded = round_up(cols, kPairBlock);
  kept_.resize(static_cast<std::size_t>(padded + 2));
  const auto value = [&](std::int64_t r, std::int64_t k) { return x[r * stride + k]; };
  const auto keeps = [&](std::int64_t r, std::int64_t k) { return (value(r, k) & 0x7fff) != 0; };
  if (order == PairOrder::tiles) {
    count_ = 0;
    for (std::int64_t block = 0; block < padded; block += kPairBlock) {
      for (std::int64_t parity = 0; parity < 2; ++parity) {
        begins_.push_back(static_cast<std::int32_t>(count_));
        count_ = append_kept(kept_.data(), count_, block + parity, block + kPairBlock, 2, rows, keeps);
      }
    }
    begins_.push_back(static_cast<std::int32_t>(count_));
    finish();
    values_.resize(static_cast<std::size_t>(rows * count_));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < count_; ++i) {
        values_[static_cast<std::size_t>(r * count_ + i)] =
            std::bit_cast<float>(std::uint32_t{value(r, kept_[static_cast<std::size_t>(i)])} << 16);
      }
    }
    return;
  }
  const auto some_keep = [&](std::int64_t k) {
    bool keep = false;
    for (std::int64_t r = 0; r < rows; ++r) keep = keep | keeps(r, k);
    return keep;
  };
  count_ = 0;
  for (std::int64_t k = 0; k < padded; k += 2) {
    const bool first = some_keep(k), second = some_keep(k + 1);
    kept_[static_cast<std::size_t>(count_)] = static_cast<std::int32_t>(first ? k : k + 1);
    kept_[static_cast<std::size_t>(count_ + 1)] = static_cast<std::int32_t>(second ? k + 1 : k);
    count_ += first || second ? 2 : 0;
  }
  finish();
  pairs_.resize(static_cast<std::size_t>(rows * count_));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < count_; ++i) {
      const std::int64_t k = kept_[static_cast<std::size_t>(i)] / 2 * 2 + i % 2;
      pairs_[static_cast<std::size_t>(r * count_ + i)] = value(r, k);
    }
  }
}

bool KeptInputs::list_codes(const PackedIntegers& weight, const IntegerInputs& x, std::int64_t rows) {
  if (!std::ranges::all_of(x.scales, x.scales + rows * x.groups, [](float s) { return std::isfinite(s); }))
    return false;
  begins_.clear();
  rows_ = rows;
  kept_.resize(static_cast<std::size_t>(weight.padded_cols + weight.groups * kQuad + 1));
  codes_.resize(static_cast<std::size_t>(rows) * kept_.size());
  const auto code = [&](std::int64_t r, std::int64_t k) { return x.codes[r * x.stride + k]; };
  codes_stride_ = static_cast<std::int64_t>(kept_.size());
  count_ = 0;
  for (std::int64_t group = 0; group < weight.groups; ++group) {
    begins_.push_back(static_cast<std::int32_t>(count_));
    const std::int64_t begin = count_, end = std::min(weight.padded_cols, (group + 1) * weight.group);
    count_ = append_kept(kept_.data(), count_, group * weight.group, end, 1, rows,
                         [&](std::int64_t r, std::int64_t k) { return code(r, k) != 0; });
    for (std::int64_t r = 0; r < rows; ++r) {
      std::int8_t* const target = codes_.data() + r * codes_stride_;
      for (std::int64_t i = begin; i < count_; ++i) target[i] = code(r, kept_[static_cast<std::size_t>(i)]);
    }
    for (; (count_ - begin) % kQuad != 0; ++count_) {
      kept_[static_cast<std::size_t>(count_)] = kept_[static_cast<std::size_t>(count_ - 1)];
      for (std::int64_t r = 0; r < rows; ++r) codes_[static_cast<std::size_t>(r * codes_stride_ + count_)] = 0;
    }
  }
  begins_.push_back(static_cast<std::int32_t>(count_));
  finish();
  return true;
}

void KeptInputs::fill(SkipTask& task) const {
  task.kept = kept_.data();
  task.count = count_;
  task.begins = begins_.data();
  task.x = values_.data();
  task.pairs = pairs_.data();
  task.x_stride = count_;
  task.rows = rows_;
}

void KeptInputs::fill(SkipIntegerTask& task) const {
  task.kept = kept_.data();
  task.begins = begins_.data();
  task.codes = codes_.data();
  task.codes_stride = codes_stride_;
  task.rows = rows_;
}

}  // namespace millrace
