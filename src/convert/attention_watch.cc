#include "convert/attention_watch.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "backend/reference/seen_positions.h"

namespace millrace {

namespace {

// Rows that count have a past with something between the first positions and the most recent; of these one in so many
// is looked at, which is prime to a page, so that they stand at all places of their pages.
constexpr std::int64_t kLeastPosition = 128, kRowStep = 17;
static_assert(std::gcd(kRowStep, kProfilePage) == 1 && kLeastPosition >= kProfileSinks + kProfileRecent);

/// A number for a file: what is none, or too large for one, is the largest that there is.
double finite(double number) {
  constexpr double kLargest = double{std::numeric_limits<float>::max()};
  return number <= kLargest ? number : kLargest;
}

/// How far the largest channel is above the median one of those that are not all zeros, which no scale harms.
double ratio_to_median(std::vector<double> channels) {
  std::erase(channels, 0.0);
  if (channels.empty()) return 1.0;
  const auto middle = channels.begin() + static_cast<std::ptrdiff_t>(channels.size() / 2);
  const double largest = *std::ranges::max_element(channels);
  std::ranges::nth_element(channels, middle);
  return finite(largest / *middle);
}

KvProfile::Numbers numbers_of(const std::vector<double>& largest, const std::vector<double>& squares, std::int64_t rows,
                              std::int32_t head_dim) {
  KvProfile::Numbers numbers;
  for (std::size_t first = 0; first < largest.size(); first += static_cast<std::size_t>(head_dim)) {
    const auto channels = [&](const std::vector<double>& all) {
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(first);
      return std::vector<double>(begin, begin + head_dim);
    };
    const std::vector<double> sizes = channels(largest);
    std::vector<double> means = channels(squares);
    const double all = std::accumulate(means.begin(), means.end(), 0.0) / static_cast<double>(rows * head_dim);
    for (double& mean : means) mean = std::sqrt(mean / static_cast<double>(rows));
    numbers.largest.push_back(*std::ranges::max_element(sizes));
    numbers.rms.push_back(finite(std::sqrt(all)));
    numbers.largest_ratio.push_back(ratio_to_median(sizes));
    numbers.rms_ratio.push_back(ratio_to_median(means));
  }
  return numbers;
}

void divide(std::vector<double>& sums, std::int64_t rows) {
  for (double& sum : sums) sum /= static_cast<double>(rows);
}

}  // namespace

void AttentionWatch::rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) {
  inner().rope_store(batch, args);
  stores_ = args.store;
}

void AttentionWatch::attend(const ForwardBatch& batch, const AttendArgs& args) {
  inner().attend(batch, args);
  Layer& layer = layers_[args.layer];
  const auto heads = static_cast<std::size_t>(args.heads),
             channels = static_cast<std::size_t>(args.kv_heads) * static_cast<std::size_t>(args.head_dim);
  if (layer.head_dim == 0) {
    layer.head_dim = args.head_dim;
    for (auto* sums : {&layer.patterns.sinks, &layer.patterns.recent, &layer.patterns.between, &layer.patterns.pages}) {
      sums->resize(heads);
    }
    for (Sizes* sizes : {&layer.keys, &layer.values}) {
      sizes->largest.resize(channels);
      sizes->squares.resize(channels);
    }
  }
  for (const SequenceRows& sequence : batch.sequences) {
    if (!sequence.dropped.empty() || !sequence.moved.empty() || sequence.rows == 0) continue;
    if (stores_) look_at_stored(sequence, args, layer);
    look_at_patterns(sequence, args, layer.patterns);
  }
}

void AttentionWatch::look_at_stored(const SequenceRows& sequence, const AttendArgs& args, Layer& layer) {
  const auto table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)];
  for (const bool is_key : {true, false}) {
    Sizes& sizes = is_key ? layer.keys : layer.values;
    for (std::int32_t head = 0; head < args.kv_heads; ++head) {
      double* const largest = sizes.largest.data() + head * args.head_dim;
      double* const squares = sizes.squares.data() + head * args.head_dim;
      for (std::int64_t i = 0; i < sequence.rows; ++i) {
        const KvSlot slot = kv_slot(args, table, sequence.first_position + i, head, is_key);
        for (std::int32_t d = 0; d < args.head_dim; ++d) {
          const double size = finite(std::fabs(double{decode_kv(args.kv.format, slot, d)}));
          largest[d] = std::max(largest[d], size);
          squares[d] += size * size;
        }
      }
    }
  }
  layer.stored += sequence.rows;
}

void AttentionWatch::look_at_patterns(const SequenceRows& sequence, const AttendArgs& args, Patterns& patterns) {
  const std::int64_t end = sequence.first_position + sequence.rows;
  const std::int64_t earliest = std::max(kLeastPosition, sequence.first_position);
  const std::int64_t first_row = (earliest + kRowStep - 1) / kRowStep * kRowStep;
  if (first_row >= end) return;
  const auto table = sequence.page_tables[static_cast<std::size_t>(args.kv.group)];
  const auto first_seen = [&](std::int64_t position) {
    return args.window == 0 ? 0 : std::max<std::int64_t>(0, position - args.window + 1);
  };
  const std::int64_t begin = first_seen(first_row), count = end - begin;
  const std::int32_t group = args.heads / args.kv_heads;
  for (std::int32_t kv_head = 0; kv_head < args.kv_heads; ++kv_head) {
    // By dimension, so that products with a query run over positions side by side.
    keys_.resize(static_cast<std::size_t>(count * args.head_dim));
    for (std::int64_t t = 0; t < count; ++t) {
      const KvSlot slot = kv_slot(args, table, begin + t, kv_head, true);
      for (std::int32_t d = 0; d < args.head_dim; ++d)
        keys_[static_cast<std::size_t>(d * count + t)] = decode_kv(args.kv.format, slot, d);
    }
    for (std::int64_t position = first_row; position < end; position += kRowStep) {
      const std::int64_t row = sequence.first_row + (position - sequence.first_position), seen = first_seen(position);
      for (std::int32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        weigh(args, args.q + row * args.q_stride + head * args.head_dim, head, seen - begin, position - seen + 1,
              count);
        of_pages_.assign(static_cast<std::size_t>(position / kProfilePage + 1), 0.0);
        double sinks = 0.0, recent = 0.0, all = 0.0;
        for (std::int64_t t = seen; t <= position; ++t) {
          const double mass = masses_[static_cast<std::size_t>(t - seen)];
          of_pages_[static_cast<std::size_t>(t / kProfilePage)] += mass;
          all += mass;
          if (t < kProfileSinks) sinks += mass;
          if (t > position - kProfileRecent) recent += mass;
        }
        std::ranges::sort(of_pages_, std::greater());
        std::size_t pages = 0;
        for (double held = 0.0; held < kProfileMass * all && pages < of_pages_.size();) held += of_pages_[pages++];
        const auto h = static_cast<std::size_t>(head);
        patterns.sinks[h] += sinks;
        patterns.recent[h] += recent;
        patterns.between[h] += std::max(0.0, all - sinks - recent);
        patterns.pages[h] += static_cast<double>(std::max<std::size_t>(1, pages));
      }
    }
  }
  patterns.rows += (end - 1 - first_row) / kRowStep + 1;
}

void AttentionWatch::weigh(const AttendArgs& args, const float* q, std::int32_t head, std::int64_t first,
                           std::int64_t count, std::int64_t stride) {
  masses_.assign(static_cast<std::size_t>(count), 0.0);
  for (std::int32_t d = 0; d < args.head_dim; ++d) {
    const double of_query = q[d];
    const float* const keys = keys_.data() + d * stride + first;
    double* const scores = masses_.data();
    for (std::int64_t t = 0; t < count; ++t) scores[t] += of_query * double{keys[t]};
  }
  double largest = args.sinks != nullptr ? double{args.sinks[head]} : -std::numeric_limits<double>::infinity();
  for (double& score : masses_) {
    score *= double{args.scale};
    if (args.softcap != 0.0f) score = args.softcap * std::tanh(score / args.softcap);
    largest = std::max(largest, score);
  }
  double sum = args.sinks != nullptr ? std::exp(double{args.sinks[head]} - largest) : 0.0;
  for (double& score : masses_) {
    score = std::exp(score - largest);
    sum += score;
  }
  for (double& mass : masses_) mass /= sum;
}

std::optional<AttentionProfile> AttentionWatch::attention() const {
  AttentionProfile profile;
  for (const auto& [index, layer] : layers_) {
    if (layer.patterns.rows == 0) return std::nullopt;
    const Patterns& sums = layer.patterns;
    AttentionProfile::Layer means{.layer = index,
                                  .rows = sums.rows,
                                  .sinks = sums.sinks,
                                  .recent = sums.recent,
                                  .between = sums.between,
                                  .pages = sums.pages};
    for (auto* values : {&means.sinks, &means.recent, &means.between, &means.pages}) {
      divide(*values, sums.rows);
      if (std::ranges::any_of(*values, [](double value) { return !std::isfinite(value); })) return std::nullopt;
    }
    profile.layers.push_back(std::move(means));
  }
  if (profile.layers.empty()) return std::nullopt;
  return profile;
}

std::optional<KvProfile> AttentionWatch::kv() const {
  KvProfile profile;
  for (const auto& [index, layer] : layers_) {
    if (layer.stored == 0) continue;
    profile.layers.push_back(
        {.layer = index,
         .rows = layer.stored,
         .keys = numbers_of(layer.keys.largest, layer.keys.squares, layer.stored, layer.head_dim),
         .values = numbers_of(layer.values.largest, layer.values.squares, layer.stored, layer.head_dim)});
  }
  if (profile.layers.empty()) return std::nullopt;
  return profile;
}

}  // namespace millrace
