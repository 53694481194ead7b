#include "convert/predictor_training.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "convert/dot.h"
#include "core/check.h"
#include "core/float16.h"
#include "core/philox.h"

namespace millrace {

namespace {

constexpr std::int64_t kBatch = 256, kShards = 8;  // of a batch: what a task sums up by itself
constexpr float kMissCosts = 2.0f;                 // as much as a neuron that is computed in vain
constexpr float kLearningRate = 0.01f;

/// A normal number for element `index` of parameter `stream`.
float normal(std::uint32_t stream, std::uint64_t index) {
  const PhiloxBlock block = philox4x32_10(
      {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), stream, 0}, {0x6e657572, 0});
  const double u = (static_cast<double>(block[0]) + 0.5) * 0x1p-32, v = static_cast<double>(block[1]) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

/// Adam's moments of one parameter.
class Adam {
 public:
  explicit Adam(std::size_t size) : mean_(size), square_(size) {}

  void step(std::vector<float>& values, const std::vector<float>& gradient, float rate, int step) {
    constexpr float kMean = 0.9f, kSquare = 0.99f;
    const float mean_scale = 1.0f / (1.0f - std::pow(kMean, static_cast<float>(step))),
                square_scale = 1.0f / (1.0f - std::pow(kSquare, static_cast<float>(step)));
    for (std::size_t i = 0; i < values.size(); ++i) {
      mean_[i] = kMean * mean_[i] + (1.0f - kMean) * gradient[i];
      square_[i] = kSquare * square_[i] + (1.0f - kSquare) * gradient[i] * gradient[i];
      values[i] -= rate * (mean_[i] * mean_scale) / (std::sqrt(square_[i] * square_scale) + 1e-8f);
    }
  }

 private:
  std::vector<float> mean_, square_;
};

/// Parameters, or their gradients. Inputs are the rows of `in` here, ranks those of `out`: loops run over what lies
/// side by side.
struct Parameters {
  std::vector<float> in;   // [inputs][rank]
  std::vector<float> out;  // [rank][neurons]
  std::vector<float> bias;

  Parameters(std::int64_t inputs, std::int64_t rank, std::int64_t neurons)
      : in(static_cast<std::size_t>(inputs * rank)),
        out(static_cast<std::size_t>(rank * neurons)),
        bias(static_cast<std::size_t>(neurons)) {}

  void clear() {
    for (auto* part : {&in, &out, &bias}) std::ranges::fill(*part, 0.0f);
  }
  void add(const Parameters& other) {
    const auto sum = [](std::vector<float>& a, const std::vector<float>& b) {
      for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    };
    sum(in, other.in);
    sum(out, other.out);
    sum(bias, other.bias);
  }
};

class Training {
 public:
  Training(const NeuronSamples& samples, const PredictorOptions& options, ThreadPool& pool)
      : samples_(samples),
        options_(options),
        pool_(pool),
        train_(samples.rows() * 8 / 10),
        set_(samples.rows() * 9 / 10),
        values_(samples.inputs, options.rank, samples.neurons) {}

  NeuronProfile run() {
    profile_.layer = samples_.layer;
    profile_.inputs = samples_.inputs;
    profile_.rank = options_.rank;
    profile_.hot = options_.hot;
    count_firing();
    initialize();
    train();
    round();
    set_threshold();
    judge();
    return std::move(profile_);
  }

 private:
  [[nodiscard]] bool hot(std::int64_t neuron) const {
    return double{profile_.frequency[static_cast<std::size_t>(neuron)]} >= profile_.hot;
  }

  void count_firing() {
    profile_.frequency.assign(static_cast<std::size_t>(samples_.neurons), 0.0f);
    for (std::int64_t row = 0; row < train_; ++row) {
      for (std::int64_t i = 0; i < samples_.neurons; ++i) {
        profile_.frequency[static_cast<std::size_t>(i)] += samples_.fires(row, i) ? 1.0f : 0.0f;
      }
    }
    for (float& frequency : profile_.frequency) frequency /= static_cast<float>(train_);
  }

  void initialize() {
    double squares = 0;
    for (std::size_t k = 0; k < static_cast<std::size_t>(train_ * samples_.inputs); ++k) {
      const double value = bf16_to_float(samples_.x[k]);
      squares += value * value;
    }
    const double length = std::sqrt(squares / static_cast<double>(train_)) + 1e-6;  // of a row of x
    for (std::size_t i = 0; i < values_.in.size(); ++i) {
      values_.in[i] = normal(0, i) * static_cast<float>(1.4 / length);
    }
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(options_.rank)));
    for (std::size_t i = 0; i < values_.out.size(); ++i) values_.out[i] = normal(1, i) * scale;
    for (std::size_t i = 0; i < values_.bias.size(); ++i) {
      const float share = std::clamp(profile_.frequency[i], 1e-3f, 1.0f - 1e-3f);
      values_.bias[i] = std::log(share / (1.0f - share));
    }
  }

  /// What a row is made of on its way.
  struct Way {
    std::vector<float> x, rank, score, back;
  };

  void forward(std::int64_t row, Way& way) const {
    const std::int64_t rank = options_.rank, neurons = samples_.neurons;
    way.x.resize(static_cast<std::size_t>(samples_.inputs));
    way.rank.assign(static_cast<std::size_t>(rank), 0.0f);
    way.score = values_.bias;
    for (std::int64_t k = 0; k < samples_.inputs; ++k) {
      const float value = bf16_to_float(samples_.x[static_cast<std::size_t>(row * samples_.inputs + k)]);
      way.x[static_cast<std::size_t>(k)] = value;
      const float* const in = values_.in.data() + k * rank;
      for (std::int64_t j = 0; j < rank; ++j) way.rank[static_cast<std::size_t>(j)] += value * in[j];
    }
    for (float& value : way.rank) value = std::max(value, 0.0f);
    for (std::int64_t j = 0; j < rank; ++j) {
      const float value = way.rank[static_cast<std::size_t>(j)];
      if (value == 0.0f) continue;
      const float* const out = values_.out.data() + j * neurons;
      float* const score = way.score.data();
      for (std::int64_t i = 0; i < neurons; ++i) score[i] += value * out[i];
    }
  }

  /// Adds the gradient of a row's loss, times `weight`.
  void backward(std::int64_t row, float weight, Way& way, Parameters& gradient) const {
    const std::int64_t rank = options_.rank, neurons = samples_.neurons;
    for (std::int64_t i = 0; i < neurons; ++i) {
      const bool fires = samples_.fires(row, i);
      float& score = way.score[static_cast<std::size_t>(i)];
      const float likely = 1.0f / (1.0f + std::exp(-score));
      score = hot(i) ? 0.0f : weight * (fires ? kMissCosts * (likely - 1.0f) : likely);
    }
    const float* const slope = way.score.data();
    for (std::int64_t i = 0; i < neurons; ++i) gradient.bias[static_cast<std::size_t>(i)] += slope[i];
    way.back.assign(static_cast<std::size_t>(rank), 0.0f);
    for (std::int64_t j = 0; j < rank; ++j) {
      const float value = way.rank[static_cast<std::size_t>(j)];
      if (value == 0.0f) continue;
      const float* const out = values_.out.data() + j * neurons;
      float* const target = gradient.out.data() + j * neurons;
      way.back[static_cast<std::size_t>(j)] = dot(out, slope, neurons);
      for (std::int64_t i = 0; i < neurons; ++i) target[i] += value * slope[i];
    }
    for (std::int64_t k = 0; k < samples_.inputs; ++k) {
      const float value = way.x[static_cast<std::size_t>(k)];
      float* const target = gradient.in.data() + k * rank;
      for (std::int64_t j = 0; j < rank; ++j) target[j] += value * way.back[static_cast<std::size_t>(j)];
    }
  }

  void train() {
    std::vector<Parameters> shards(kShards, Parameters(samples_.inputs, options_.rank, samples_.neurons));
    std::vector<Way> ways(kShards);
    Adam in(values_.in.size()), out(values_.out.size()), bias(values_.bias.size());
    const std::int64_t batch = std::min(kBatch, train_), batches = train_ / batch, steps = options_.epochs * batches;
    for (std::int64_t step = 0; step < steps; ++step) {
      pool_.run(kShards, [&](std::int64_t shard, int) {
        Parameters& gradient = shards[static_cast<std::size_t>(shard)];
        Way& way = ways[static_cast<std::size_t>(shard)];
        gradient.clear();
        for (std::int64_t i = shard; i < batch; i += kShards) {
          // Rows of a batch lie far apart in the text: neighbours are alike.
          const std::int64_t row = (i * batches + step % batches) % train_;
          forward(row, way);
          backward(row, 1.0f / static_cast<float>(batch), way, gradient);
        }
      });
      for (std::int64_t shard = 1; shard < kShards; ++shard) shards[0].add(shards[static_cast<std::size_t>(shard)]);
      const float rate = kLearningRate * (1.0f - static_cast<float>(step) / static_cast<float>(steps));
      const int count = static_cast<int>(step) + 1;
      in.step(values_.in, shards[0].in, rate, count);
      out.step(values_.out, shards[0].out, rate, count);
      bias.step(values_.bias, shards[0].bias, rate, count);
    }
  }

  /// To what is kept in the file; from here on the rounded values count.
  void round() {
    const std::int64_t rank = options_.rank, neurons = samples_.neurons;
    profile_.in.resize(values_.in.size());
    profile_.out.resize(values_.out.size());
    const auto keep = [](float& value, std::uint16_t& bits) {
      bits = float_to_bf16(value);
      value = bf16_to_float(bits);
    };
    for (std::int64_t j = 0; j < rank; ++j) {
      for (std::int64_t k = 0; k < samples_.inputs; ++k) {
        keep(values_.in[static_cast<std::size_t>(k * rank + j)],
             profile_.in[static_cast<std::size_t>(j * samples_.inputs + k)]);
      }
      for (std::int64_t i = 0; i < neurons; ++i) {
        keep(values_.out[static_cast<std::size_t>(j * neurons + i)],
             profile_.out[static_cast<std::size_t>(i * rank + j)]);
      }
    }
  }

  /// Such that the wanted share of the cold neurons that fire is above 0.
  void set_threshold() {
    std::vector<float> scores;
    Way way;
    for (std::int64_t row = train_; row < set_; ++row) {
      forward(row, way);
      for (std::int64_t i = 0; i < samples_.neurons; ++i) {
        if (samples_.fires(row, i) && !hot(i)) scores.push_back(way.score[static_cast<std::size_t>(i)]);
      }
    }
    if (!scores.empty()) {
      const auto missed = static_cast<std::ptrdiff_t>(static_cast<double>(scores.size()) * (1.0 - options_.recall));
      const auto at = scores.begin() + std::min<std::ptrdiff_t>(missed, std::ssize(scores) - 1);
      std::ranges::nth_element(scores, at);
      const float threshold = std::nextafter(*at, -INFINITY);
      for (float& bias : values_.bias) bias -= threshold;
    }
    profile_.bias = values_.bias;
  }

  void judge() {
    double fired = 0, caught = 0, cold_fired = 0, cold_caught = 0, computed = 0;
    Way way;
    for (std::int64_t row = set_; row < samples_.rows(); ++row) {
      forward(row, way);
      for (std::int64_t i = 0; i < samples_.neurons; ++i) {
        const bool fires = samples_.fires(row, i), is_hot = hot(i);
        const bool chosen = is_hot || way.score[static_cast<std::size_t>(i)] > 0.0f;
        computed += chosen ? 1 : 0;
        fired += fires ? 1 : 0;
        caught += fires && chosen ? 1 : 0;
        cold_fired += fires && !is_hot ? 1 : 0;
        cold_caught += fires && !is_hot && chosen ? 1 : 0;
      }
    }
    const double all = static_cast<double>((samples_.rows() - set_) * samples_.neurons);
    profile_.density = computed / all;
    profile_.firing = fired / all;
    profile_.recall = fired > 0 ? caught / fired : 1.0;
    profile_.cold_recall = cold_fired > 0 ? cold_caught / cold_fired : 1.0;
  }

  const NeuronSamples& samples_;
  const PredictorOptions& options_;
  ThreadPool& pool_;
  std::int64_t train_, set_;  // the first row behind those that are trained on, that set the threshold
  Parameters values_;
  NeuronProfile profile_;
};

}  // namespace

NeuronProfile train_predictor(const NeuronSamples& samples, const PredictorOptions& options, ThreadPool& pool) {
  MILLRACE_CHECK(samples.rows() >= kLeastSamples, "{} samples", samples.rows());
  return Training(samples, options, pool).run();
}

}  // namespace millrace
