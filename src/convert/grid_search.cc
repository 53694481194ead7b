#include "convert/grid_search.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "convert/dot.h"

namespace millrace {

namespace {

// Rows of a sample that say as much of how two inputs go together as the guess that they do not.
constexpr double kRowsOfDoubt = 16.0;

// The grid of the weights as they are comes first: it stays where nothing is better.
constexpr int kWidths = 32;
constexpr float kNarrowest = 0.6f, kWidthStep = 0.025f;

float width(int candidate) {
  return candidate == 0 ? 1.0f : kNarrowest + kWidthStep * static_cast<float>(candidate - 1);
}

}  // namespace

GroupChanges::GroupChanges(std::vector<float> sample, std::int64_t cols, std::int64_t group, ThreadPool& pool)
    : cols_(cols),
      step_(group == 0 ? cols : group),
      rows_(static_cast<std::int64_t>(sample.size()) / cols),
      squares_(static_cast<std::size_t>(cols)),
      together_(static_cast<double>(rows_) / (static_cast<double>(rows_) + kRowsOfDoubt)) {
  const float share = rows_ > 0 ? 1.0f / static_cast<float>(rows_) : 0.0f;
  for (std::size_t i = 0; i < sample.size(); ++i) {
    squares_[i % static_cast<std::size_t>(cols)] += share * sample[i] * sample[i];
  }
  if (step_ > rows_) {
    sample_ = std::move(sample);
    return;
  }
  const std::int64_t groups = (cols + step_ - 1) / step_;
  products_.resize(static_cast<std::size_t>(groups * step_ * step_));
  pool.run(groups, [&](std::int64_t g, int) {
    const std::int64_t first = g * step_, count = std::min(step_, cols - first);
    float* products = products_.data() + g * step_ * step_;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const float* x = sample.data() + r * cols + first;
      for (std::int64_t i = 0; i < count; ++i) {
        const float scaled = share * x[i];
        for (std::int64_t j = 0; j < count; ++j) products[i * step_ + j] += scaled * x[j];
      }
    }
  });
}

double GroupChanges::error(std::int64_t group, const float* changes) const {
  const std::int64_t first = group * step_, count = std::min(step_, cols_ - first);
  double alone = 0.0, together = 0.0;
  for (std::int64_t k = 0; k < count; ++k) {
    alone += static_cast<double>(changes[k] * changes[k]) * squares_[static_cast<std::size_t>(first + k)];
  }
  if (sample_.empty()) {
    const float* products = products_.data() + group * step_ * step_;
    for (std::int64_t k = 0; k < count; ++k) {
      together += static_cast<double>(changes[k]) * dot(products + k * step_, changes, count);
    }
  } else {
    for (std::int64_t r = 0; r < rows_; ++r) {
      const double output = dot(sample_.data() + r * cols_ + first, changes, count);
      together += output * output / static_cast<double>(rows_);
    }
  }
  return together_ * together + (1.0 - together_) * alone;
}

CodedRows round_to_best_grids(const CodeFormat& format, ScaleType type, float unit, const float* weights,
                              std::int64_t rows, std::int64_t cols, const GroupChanges& outputs, ThreadPool& pool) {
  CodedRows coded(format, rows, cols, unit);
  const std::int64_t step = format.group == 0 ? cols : format.group;
  pool.run(rows, [&](std::int64_t row, int) {
    std::vector<float> scaled(static_cast<std::size_t>(step)), changes(scaled.size());
    for (std::int64_t g = 0; g < coded.groups(); ++g) {
      const std::int64_t first = g * step, count = std::min(step, cols - first);
      const float* group = weights + row * cols + first;
      GroupGrid best, last;
      double least = std::numeric_limits<double>::infinity();
      for (int candidate = 0; candidate < kWidths + 1; ++candidate) {
        for (std::int64_t k = 0; k < count; ++k) scaled[static_cast<std::size_t>(k)] = width(candidate) * group[k];
        const GroupGrid grid = grid_of(format, type, unit, scaled.data(), count);
        // Scales that have few values, powers of two most of all, are often the same.
        if (candidate > 0 && grid.scale == last.scale && grid.zero == last.zero) continue;
        last = grid;
        for (std::int64_t k = 0; k < count; ++k) {
          changes[static_cast<std::size_t>(k)] =
              group[k] - grid.value(format.kind, grid.code(format.kind, group[k], unit), unit);
        }
        const double error = outputs.error(g, changes.data());
        if (error < least) {
          least = error;
          best = grid;
        }
      }
      const auto place = static_cast<std::size_t>(row * coded.groups() + g);
      coded.scales[place] = best.scale;
      coded.zeros[place] = best.zero;
      for (std::int64_t k = 0; k < count; ++k) {
        coded.codes[static_cast<std::size_t>(row * cols + first + k)] = best.code(format.kind, group[k], unit);
      }
    }
  });
  return coded;
}

}  // namespace millrace
