#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"
#include "model/config.h"

namespace millrace {

namespace {

// transformers computes frequencies with float32 tensors and Python's doubles for what is one number; the same is done
// here, because a frequency's last bit is worth a thousandth of a turn at position 100,000.

/// theta^(-2i / dim), the frequencies of the original rotary embedding.
std::vector<float> plain_frequencies(double theta, std::int32_t dim) {
  std::vector<float> inv_freq(static_cast<std::size_t>(dim / 2));
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    inv_freq[i] = 1.0f / std::pow(static_cast<float>(theta), exponent);
  }
  return inv_freq;
}

/// Neural-tangent-kernel scaling: the base grows with the length beyond the model's context (bloc97 2023).
double dynamic_theta(const RopeSpec& spec, std::int64_t length) {
  const auto context = static_cast<double>(spec.max_position);
  const double stretch = spec.factor * std::max(static_cast<double>(length), context) / context - (spec.factor - 1.0);
  return spec.theta * std::pow(stretch, static_cast<double>(spec.rotary_dim) / (spec.rotary_dim - 2.0));
}

/// Low frequencies are divided by the factor, high ones kept, those between blended (Llama 3.1).
void scale_llama3(const RopeSpec& spec, std::vector<float>& inv_freq) {
  const auto context = static_cast<double>(spec.original_max_position);
  const auto low_wavelength = static_cast<float>(context / spec.low_freq_factor);
  const auto high_wavelength = static_cast<float>(context / spec.high_freq_factor);
  const auto factor = static_cast<float>(spec.factor);
  for (float& frequency : inv_freq) {
    const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / frequency;
    if (wavelength > low_wavelength) {
      frequency /= factor;
    } else if (wavelength >= high_wavelength) {
      const float smooth = (static_cast<float>(context) / wavelength - static_cast<float>(spec.low_freq_factor)) /
                           static_cast<float>(spec.high_freq_factor - spec.low_freq_factor);
      frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// Dimension whose wavelength makes `rotations` turns within the original context (Peng et al. 2023, section 3.2).
double yarn_dimension(const RopeSpec& spec, double rotations) {
  const auto context = static_cast<double>(spec.original_max_position);
  return spec.rotary_dim * std::log(context / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(spec.theta));
}

RopeFrequencies yarn(const RopeSpec& spec) {
  double low = yarn_dimension(spec, spec.beta_fast);
  double high = yarn_dimension(spec, spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, spec.rotary_dim - 1.0);
  if (low == high) high += 0.001;

  RopeFrequencies result{plain_frequencies(spec.theta, spec.rotary_dim), 1.0f};
  for (std::size_t i = 0; i < result.inv_freq.size(); ++i) {
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float keep = 1.0f - ramp;
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(spec.rotary_dim);
    const float power = std::pow(static_cast<float>(spec.theta), exponent);
    const float interpolated = 1.0f / (static_cast<float>(spec.factor) * power);
    result.inv_freq[i] = interpolated * (1.0f - keep) + result.inv_freq[i] * keep;
  }
  double scale = spec.attention_factor;
  if (scale == 0.0) {
    const bool scaled = spec.mscale != 0.0 && spec.mscale_all_dim != 0.0;
    scale = scaled ? yarn_mscale(spec.factor, spec.mscale) / yarn_mscale(spec.factor, spec.mscale_all_dim)
                   : yarn_mscale(spec.factor, 1.0);
  }
  result.scale = static_cast<float>(scale);
  return result;
}

RopeFrequencies longrope(const RopeSpec& spec, std::int64_t length) {
  const std::vector<double>& factors = length > spec.original_max_position ? spec.long_factor : spec.short_factor;
  MILLRACE_CHECK(factors.size() == static_cast<std::size_t>(spec.rotary_dim / 2), "{} factors", factors.size());
  RopeFrequencies result;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(spec.rotary_dim);
    const float power = std::pow(static_cast<float>(spec.theta), exponent);
    result.inv_freq.push_back(1.0f / (static_cast<float>(factors[i]) * power));
  }
  double scale = spec.attention_factor;
  if (scale == 0.0) {
    scale = spec.factor <= 1.0
                ? 1.0
                : std::sqrt(1.0 + std::log(spec.factor) / std::log(static_cast<double>(spec.original_max_position)));
  }
  result.scale = static_cast<float>(scale);
  return result;
}

/// Only the first pairs of a head rotate; their frequencies are spread over the whole head (Gemma 4).
std::vector<float> proportional(const RopeSpec& spec) {
  const auto rotated = static_cast<std::size_t>(spec.partial_rotary_factor * spec.rotary_dim / 2.0);
  std::vector<float> inv_freq = plain_frequencies(spec.theta, spec.rotary_dim);
  std::fill(inv_freq.begin() + static_cast<std::ptrdiff_t>(std::min(rotated, inv_freq.size())), inv_freq.end(), 0.0f);
  for (float& frequency : inv_freq) frequency /= static_cast<float>(spec.factor);
  return inv_freq;
}

RopeFrequencies scaled_frequencies(const RopeSpec& spec, std::int64_t length) {
  switch (spec.scaling) {
    case RopeScaling::none:
      return {plain_frequencies(spec.theta, spec.rotary_dim), 1.0f};
    case RopeScaling::linear: {
      RopeFrequencies result{plain_frequencies(spec.theta, spec.rotary_dim), 1.0f};
      for (float& frequency : result.inv_freq) frequency /= static_cast<float>(spec.factor);
      return result;
    }
    case RopeScaling::dynamic:
      return {plain_frequencies(dynamic_theta(spec, length), spec.rotary_dim), 1.0f};
    case RopeScaling::llama3: {
      RopeFrequencies result{plain_frequencies(spec.theta, spec.rotary_dim), 1.0f};
      scale_llama3(spec, result.inv_freq);
      return result;
    }
    case RopeScaling::yarn:
      return yarn(spec);
    case RopeScaling::longrope:
      return longrope(spec, length);
    case RopeScaling::proportional:
      return {proportional(spec), 1.0f};
  }
  MILLRACE_CHECK(false, "rope scaling {}", static_cast<int>(spec.scaling));
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeSpec& spec, std::int64_t admission_length) {
  RopeFrequencies result = scaled_frequencies(spec, admission_length);
  for (std::size_t i = 0; i < spec.freq_divisors.size() && i < result.inv_freq.size(); ++i) {
    result.inv_freq[i] /= spec.freq_divisors[i];
  }
  return result;
}

bool rope_depends_on_length(const RopeSpec& spec) {
  return spec.scaling == RopeScaling::dynamic || spec.scaling == RopeScaling::longrope;
}

std::string rope_regime(const ModelConfig& config, std::int64_t admission_length) {
  std::string name;
  for (const RopeSpec& spec : config.ropes) {
    if (spec.scaling == RopeScaling::longrope && admission_length > spec.original_max_position) name += "long ";
    if (spec.scaling == RopeScaling::dynamic && admission_length > spec.max_position) {
      name += std::to_string(admission_length) + ' ';
    }
  }
  return name;
}

}  // namespace millrace
