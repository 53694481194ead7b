// What a thread can do at most: reading, and multiplying in registers. Included inside an anonymous namespace (see
// kernel_table.h).

float read_memory(const std::byte* memory, std::int64_t bytes) {
  constexpr int kStreams = 4;
  Lanes sums[kStreams];
  MILLRACE_UNROLL for (int i = 0; i < kStreams; ++i) sums[i] = broadcast(0.0f);
  const auto* p = reinterpret_cast<const float*>(memory);
  const float* end = p + bytes / static_cast<std::int64_t>(sizeof(float));
  for (; p != end; p += kStreams * 16) {
    MILLRACE_UNROLL for (int i = 0; i < kStreams; ++i) {
      __builtin_prefetch(reinterpret_cast<const char*>(p + i * 16) + 2048);
      sums[i] = add(sums[i], load(p + i * 16));
    }
  }
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

/// As many independent chains as a product has accumulators, which hides that each operation waits for the one before.
std::int64_t multiply_add_floats(std::int64_t rounds, float* sink) {
  constexpr int kChains = kAccumulators;
  Lanes chains[kChains];
  MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) chains[i] = broadcast(static_cast<float>(i));
  const Lanes half = broadcast(0.5f);
  for (std::int64_t round = 0; round < rounds; ++round) {
    MILLRACE_UNROLL for (int i = 0; i < kChains; ++i) {
      chains[i] = fma(chains[i], half, half);
      keep_in_register(chains[i]);
    }
  }
  *sink = 0.0f;
  MILLRACE_UNROLL for (int i = 0; i < kChains; ++i)* sink += reduce_add(chains[i]);
  return rounds * kChains * 16 * 2;
}
