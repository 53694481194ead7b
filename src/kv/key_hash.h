// Hashes of keys and queries by their direction, so that those which point the same way share a bucket (Charikar 2002,
// "Similarity estimation techniques from rounding algorithms"; Han et al. 2023, arXiv 2310.05869). Pure.
//
// Of each of kHashBits planes through the origin a hash says on which side a vector lies. Buckets are in the order of
// the reflected Gray code of that, so that neighbours differ in one plane.
#pragma once

#include <cstdint>
#include <vector>

namespace millrace {

inline constexpr std::int64_t kHashBits = 7, kHashBuckets = std::int64_t{1} << kHashBits;
/// Numbers of the planes for one number of a vector: kHashBits and a zero.
inline constexpr std::int64_t kHashLanes = 8;

/// Which planes: those of each kv head of a layer are its own, so that their errors are not the same.
struct KeyHash {
  std::uint64_t seed = 0;
  std::uint32_t layer = 0;  // that stores the keys
};

/// [head_dim][kHashLanes]: normal vectors, of numbers that are nearly normally distributed: each a sum of 16 that are
/// uniform, whole numbers below 2^20, so that no library of functions has a say in their bits.
std::vector<double> hash_planes(const KeyHash& hash, std::uint32_t kv_head, std::int64_t head_dim);

/// The bucket of x [head_dim]. Products are exact in double and are added in the order of the numbers, so that all
/// machines have the same. NaN is on no side.
std::uint8_t bucket_of(const double* planes, const float* x, std::int64_t head_dim);

}  // namespace millrace
