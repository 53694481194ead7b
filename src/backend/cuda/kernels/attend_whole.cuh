// What the kernels for many queries share: a warp's running softmax and sums.
#pragma once

#include "backend/cuda/kernels/attend_mma.cuh"

namespace millrace::cuda {

namespace {

/// kTiles times 16 queries of a warp. Lanes hold rows lane / 4 and lane / 4 + 8 of each tile, as fragments of a matrix
/// instruction have them.
template <int kDim, bool kScaled, int kTiles>
class WholeRows {
 public:
  __device__ __forceinline__ WholeRows(const Queries& queries, std::int32_t first_query)
      : call_(*queries.call),
        queries_(queries),
        lane_(threadIdx.x % 32),
        first_query_(first_query),
        first_position_(queries.position(first_query)),
        last_position_(queries.position(first_query + 16 * kTiles - 1)) {}

  /// Whether a query of the warp sees anything of a chunk.
  [[nodiscard]] __device__ __forceinline__ bool sees(std::int32_t chunk) const {
    const std::int32_t begin = chunk * kAttendChunk;
    return first_query_ < queries_.count && begin <= last_position_ &&
           first_position_ - (begin + kAttendChunk - 1) < call_.reach;
  }

  /// Takes products of tile t with the keys of a chunk into its softmax; they become probabilities. `scales(i)` are of
  /// keys 8 i + 2 (lane % 4) and the next. Returns what sums under the softmax so far are to be multiplied with.
  template <typename Scales>
  __device__ __forceinline__ float2 take_scores(std::int32_t chunk, int t, float (&s)[kAttendChunk / 8][4],
                                                Scales scales) {
#pragma unroll
    for (int i = 0; i < kAttendChunk / 8; ++i) finish_scores<kScaled>(call_, scales(i), s[i]);
    const std::int32_t begin = chunk * kAttendChunk;
    if (begin + kAttendChunk - 1 > first_position_ || last_position_ - begin >= call_.reach) {
      const std::int32_t query = first_query_ + 16 * t + lane_ / 4;
      const std::int32_t positions[2] = {queries_.position(query), queries_.position(query + 8)};
#pragma unroll
      for (int i = 0; i < kAttendChunk / 8; ++i) {
        mask_scores(call_, begin + 8 * i + 2 * (lane_ % 4), positions, s[i]);
      }
    }
    float keep[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = -kInfinity;
#pragma unroll
      for (int i = 0; i < kAttendChunk / 8; ++i) largest = fmaxf(largest, fmaxf(s[i][2 * half], s[i][2 * half + 1]));
      Softmax& softmax = softmax_[t][half];
      largest = fmaxf(softmax.largest, quad_max(largest));
      keep[half] = rescale(softmax.largest, largest, call_.factor);
      softmax.largest = largest;
      const float shift = __fmul_rn(anchor(largest), call_.factor);
      float sums[kPages];
#pragma unroll
      for (int k = 0; k < kPages; ++k) sums[k] = to_probabilities(s[2 * k], s[2 * k + 1], half, shift, call_.factor);
      softmax.sum = add_sums(softmax.sum, keep[half], sums[0], sums[1], sums[2], sums[3]);
    }
    return make_float2(keep[0], keep[1]);
  }

  /// Probabilities as the left operand of the products with values, whose scales are `scales(i)`.
  template <typename Scales>
  __device__ __forceinline__ void pack(int t, float (&s)[kAttendChunk / 8][4], Scales scales) {
#pragma unroll
    for (int i = 0; i < kAttendChunk / 8; ++i) {
      if constexpr (kScaled) {
        const float2 by = scales(i);
        s[i][0] = __fmul_rn(s[i][0], by.x), s[i][1] = __fmul_rn(s[i][1], by.y);
        s[i][2] = __fmul_rn(s[i][2], by.x), s[i][3] = __fmul_rn(s[i][3], by.y);
      }
      p[t][i / 2][2 * (i % 2)] = pack_bf16(s[i][0], s[i][1]);
      p[t][i / 2][2 * (i % 2) + 1] = pack_bf16(s[i][2], s[i][3]);
    }
  }

  /// The sums so far under a new largest score.
  __device__ __forceinline__ void rescale_sums(int t, float2 keep) {
    if (!__any_sync(kAllLanes, keep.x != 1.0f || keep.y != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[t][i][e] = __fmul_rn(o[t][i][e], e < 2 ? keep.x : keep.y);
    }
  }

  /// Folds the span that ends here into those before it, whose sums wait at kept(t, half, i), and makes the output of
  /// it after the last.
  template <typename Kept>
  __device__ __forceinline__ void end_span(bool first, bool last, Kept kept) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int32_t query = first_query_ + 16 * t + lane_ / 4 + 8 * half;
        Softmax span = softmax_[t][half];
        span.sum = quad_sum(span.sum);
        const Fold fold = fold_span(merged_[t][half], span, call_.factor);
        softmax_[t][half] = Softmax();
        if (query >= queries_.count) continue;
        float2 sums[kDim / 8];  // all are asked for before one is waited for
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) {
          sums[i] = first || 8 * i >= call_.launch.head_dim ? make_float2(0.0f, 0.0f) : *kept(t, half, i);
        }
        const float multiplier = last ? finish(call_, merged_[t][half], queries_.head(query)) : 0.0f;
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) {
          if (8 * i >= call_.launch.head_dim) continue;
          float2 sum = sums[i];
          sum.x = fold_value(sum.x, o[t][i][2 * half], fold);
          sum.y = fold_value(sum.y, o[t][i][2 * half + 1], fold);
          if (last) {
            *out(t, half, i) = make_float2(finished(sum.x, multiplier), finished(sum.y, multiplier));
          } else {
            *kept(t, half, i) = sum;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o[t][i][e] = 0.0f;
      }
    }
  }

  /// Where a lane's numbers of dimensions 8 i and on go.
  [[nodiscard]] __device__ __forceinline__ float2* out(int t, int half, int i) const {
    const std::int32_t query = first_query_ + 16 * t + lane_ / 4 + 8 * half;
    return reinterpret_cast<float2*>(queries_.out(query) + 2 * (lane_ % 4) + 8 * i);
  }

  float o[kTiles][kDim / 8][4] = {};  // the sum of values of the span
  unsigned p[kTiles][kPages][4];

 protected:
  const Call& call_;
  const Queries& queries_;
  int lane_;
  std::int32_t first_query_, first_position_, last_position_;

 private:
  Softmax softmax_[kTiles][2], merged_[kTiles][2];
};

}  // namespace

}  // namespace millrace::cuda
