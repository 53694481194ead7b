#include "convert/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace millrace {

namespace {

constexpr std::int64_t kBlock = 64;  // columns of the factor that are found together
constexpr std::int64_t kLazy = 128;  // inputs that are rounded before the rest learns of it
constexpr std::int64_t kTaskRows = 16;

/// The sum of products, in several accumulators so that it is fast.
double dot(const double* a, const double* b, std::int64_t count) {
  double sums[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

/// The lower triangle L with A = L L^T in place of A [n, n]. False: A is not positive definite.
bool cholesky(std::vector<double>& a, std::int64_t n, ThreadPool& pool) {
  const auto row = [&](std::int64_t i) { return a.data() + i * n; };
  for (std::int64_t first = 0; first < n; first += kBlock) {
    const std::int64_t end = std::min(first + kBlock, n);
    // What the columns before take off the block's.
    pool.run((n - first + kTaskRows - 1) / kTaskRows, [&](std::int64_t task, int) {
      const std::int64_t from = first + task * kTaskRows, to = std::min(from + kTaskRows, n);
      for (std::int64_t i = from; i < to; ++i) {
        for (std::int64_t j = first; j < std::min(end, i + 1); ++j) row(i)[j] -= dot(row(i), row(j), first);
      }
    });
    for (std::int64_t j = first; j < end; ++j) {
      const double square = row(j)[j] - dot(row(j) + first, row(j) + first, j - first);
      if (!(square > 0.0) || !std::isfinite(square)) return false;
      row(j)[j] = std::sqrt(square);
      for (std::int64_t i = j + 1; i < end; ++i) {
        row(i)[j] = (row(i)[j] - dot(row(i) + first, row(j) + first, j - first)) / row(j)[j];
      }
    }
    pool.run((n - end + kTaskRows - 1) / kTaskRows, [&](std::int64_t task, int) {
      const std::int64_t from = end + task * kTaskRows, to = std::min(from + kTaskRows, n);
      for (std::int64_t i = from; i < to; ++i) {
        for (std::int64_t j = first; j < end; ++j) {
          row(i)[j] = (row(i)[j] - dot(row(i) + first, row(j) + first, j - first)) / row(j)[j];
        }
      }
    });
  }
  return true;
}

/// The inverse of a lower triangle L, column j of it as row j: inverse[j][i], i >= j.
std::vector<double> inverse_of_lower(const std::vector<double>& lower, std::int64_t n, ThreadPool& pool) {
  std::vector<double> inverse(lower.size());
  pool.run(n, [&](std::int64_t j, int) {
    double* x = inverse.data() + j * n;
    x[j] = 1.0 / lower[static_cast<std::size_t>(j * n + j)];
    for (std::int64_t i = j + 1; i < n; ++i) {
      const double* row = lower.data() + i * n;
      x[i] = -dot(row + j, x + j, i - j) / row[i];
    }
  });
  return inverse;
}

}  // namespace

Result<GptqFactor> gptq_factor(const std::vector<float>& products, std::int64_t cols, double damping,
                               ThreadPool& pool) {
  const auto n = static_cast<std::size_t>(cols);
  GptqFactor factor;
  factor.order.resize(n);
  std::iota(factor.order.begin(), factor.order.end(), 0);
  const auto diagonal = [&](std::int32_t i) { return products[static_cast<std::size_t>(i) * (n + 1)]; };
  std::ranges::stable_sort(factor.order, std::greater<>(), diagonal);
  double mean = 0.0;
  for (const std::int32_t i : factor.order) mean += diagonal(i) / static_cast<double>(cols);
  const double added = mean > 0.0 ? damping * mean : 1.0;
  // H = U U^T with an upper U, by way of H with its inputs from the last to the first; then H^-1 = R^T R, R = U^-1.
  std::vector<double> reversed(n * n);
  for (std::size_t i = 0; i < n; ++i) {
    const auto from = static_cast<std::size_t>(factor.order[n - 1 - i]);
    for (std::size_t j = 0; j < n; ++j) {
      reversed[i * n + j] = products[from * n + static_cast<std::size_t>(factor.order[n - 1 - j])];
    }
    reversed[i * n + i] += added;
  }
  if (!cholesky(reversed, cols, pool)) {
    return fail("the products of a layer's inputs are not positive definite: give a longer text");
  }
  const std::vector<double> inverse = inverse_of_lower(reversed, cols, pool);
  factor.upper.resize(n * n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i; j < n; ++j) {
      factor.upper[i * n + j] = static_cast<float>(inverse[(n - 1 - j) * n + (n - 1 - i)]);
    }
  }
  return factor;
}

CodedRows gptq(const CodeFormat& format, ScaleType type, float unit, const float* weights, std::int64_t rows,
               std::int64_t cols, const GptqFactor& factor, ThreadPool& pool) {
  CodedRows coded = round_to_nearest(format, type, unit, weights, rows, cols, pool);  // for its grids
  const std::int64_t groups = coded.groups();
  pool.run((rows + kTaskRows - 1) / kTaskRows, [&](std::int64_t task, int) {
    const std::int64_t first_row = task * kTaskRows, count = std::min(kTaskRows, rows - first_row);
    std::vector<float> left(static_cast<std::size_t>(count * cols)), errors(static_cast<std::size_t>(count * kLazy));
    for (std::int64_t r = 0; r < count; ++r) {
      for (std::int64_t k = 0; k < cols; ++k) {
        left[static_cast<std::size_t>(r * cols + k)] =
            weights[(first_row + r) * cols + factor.order[static_cast<std::size_t>(k)]];
      }
    }
    for (std::int64_t first = 0; first < cols; first += kLazy) {
      const std::int64_t end = std::min(first + kLazy, cols);
      for (std::int64_t r = 0; r < count; ++r) {
        float* row = left.data() + r * cols;
        for (std::int64_t k = first; k < end; ++k) {
          const std::int64_t input = factor.order[static_cast<std::size_t>(k)];
          const auto place =
              static_cast<std::size_t>((first_row + r) * groups + (format.group == 0 ? 0 : input / format.group));
          const GroupGrid grid{coded.scales[place], coded.zeros[place]};
          const std::int8_t code = grid.code(format.kind, row[k], unit);
          coded.codes[static_cast<std::size_t>((first_row + r) * cols + input)] = code;
          const float* upper = factor.upper.data() + k * cols;
          const float error = (row[k] - grid.value(format.kind, code, unit)) / upper[k];
          errors[static_cast<std::size_t>(r * kLazy + k - first)] = error;
          for (std::int64_t j = k + 1; j < end; ++j) row[j] -= error * upper[j];
        }
      }
      for (std::int64_t k = first; k < end; ++k) {
        const float* upper = factor.upper.data() + k * cols;
        for (std::int64_t r = 0; r < count; ++r) {
          const float error = errors[static_cast<std::size_t>(r * kLazy + k - first)];
          float* row = left.data() + r * cols;
          for (std::int64_t j = end; j < cols; ++j) row[j] -= error * upper[j];
        }
      }
    }
  });
  return coded;
}

}  // namespace millrace
