// Activations of gated layers.
#pragma once

#include <cmath>
#include <cstdint>

namespace millrace::cuda {

__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

/// act(gate) * up, `activation` as in backend.h.
__device__ inline float activated(std::int32_t activation, float limit, float gate, float up) {
  switch (activation) {
    case 0:
      return gate * sigmoid(gate) * up;
    case 1: {
      constexpr float kSqrt2OverPi = 0.7978845608028654f;
      return 0.5f * gate * (1.0f + tanhf(kSqrt2OverPi * (gate + 0.044715f * gate * gate * gate))) * up;
    }
    case 2:
      return 0.5f * gate * (1.0f + erff(gate * 0.7071067811865476f)) * up;
    default:
      break;
  }
  const float clamped = fminf(gate, limit);
  return clamped * sigmoid(1.702f * clamped) * (fminf(fmaxf(up, -limit), limit) + 1.0f);
}

}  // namespace millrace::cuda
