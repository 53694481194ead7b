// How long attention of one layer takes for a whole prompt, in steps of 512 rows, with everything read and with blocks
// that are chosen, and with what is far approximated; keys and values in bf16, the shape of Llama 3.2 1B (32 heads of
// 64 numbers, 8 kv heads), two threads.
//
//   bench_prefill_attention --benchmark_filter=mass
//
// Queries and keys have a structure as trained models do, since chance has none to find: the text goes through topics
// in stretches of 256 positions, each topic comes back for about 2,048 positions in all, and what a query looks for are
// keys of its own topic; a topic is a direction, and the product of two of one topic is worth 12 in the softmax.
// `error`: how far results of the last step are from those with everything read, as a part of these (Frobenius norms);
// `of_value`: the same as a part of a value's size. A mean of 2,048 values that have nothing in common is small, and
// one of a sample of them is not: for what samples the second is the fairer.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/device_memory.h"
#include "core/check.h"
#include "core/float16.h"
#include "kv/key_hash.h"
#include "kv/page_layout.h"
#include "recipe/attention_policy.h"

namespace millrace {
namespace {

constexpr std::int32_t kHeads = 32, kKvHeads = 8, kHeadDim = 64, kPageTokens = 16;
constexpr std::int64_t kStep = 512, kStretch = 256, kTopicTokens = 2048;

/// A prompt's keys and values in pages that do not lie in order, and its queries.
class Prompt {
 public:
  explicit Prompt(std::int64_t length) : length_(length), random_(17) {
    const PageLayout layout =
        make_page_layout(std::vector<KvShape>{{.kv_heads = kKvHeads, .head_dim = kHeadDim, .key_buckets = 0}},
                         kPageTokens, KvFormat::bf16);
    const auto pages = static_cast<std::size_t>(length / kPageTokens);
    kv_ = {.page_bytes = layout.groups[0].page_bytes,
           .key_offset = layout.layers[0].key_offset,
           .value_offset = layout.layers[0].value_offset,
           .key_bucket_bytes = layout.key_buckets[0].page_bytes,
           .hash = layout.layers[0].hash,
           .page_tokens = kPageTokens,
           .format = KvFormat::bf16};
    buckets_.resize(kv_.key_bucket_bytes * pages);
    kv_.key_buckets = buckets_.data();
    for (std::uint32_t head = 0; head < kKvHeads; ++head) planes_.push_back(hash_planes(kv_.hash, head, kHeadDim));
    auto memory = allocate_device_memory(kv_.page_bytes * pages, "a prompt");
    MILLRACE_CHECK(memory.ok(), "{}", memory.error().message);
    memory_ = *memory;
    kv_.pages = static_cast<std::byte*>(memory_.get());
    for (std::size_t p = 0; p < pages; ++p) table_.push_back(static_cast<std::int32_t>(p));
    std::shuffle(table_.begin(), table_.end(), random_);
    const std::int64_t topics = std::max<std::int64_t>(1, length / kTopicTokens);
    for (std::int64_t s = 0; s < (length + kStretch - 1) / kStretch; ++s) {
      topic_of_stretch_.push_back(static_cast<std::int64_t>(random_() % static_cast<unsigned>(topics)));
    }
    for (std::int64_t i = 0; i < topics * kKvHeads * kHeadDim; ++i) directions_.push_back(normal_(random_));
    for (std::int64_t t = 0; t < length; ++t) store(t);
  }

  [[nodiscard]] std::int64_t length() const { return length_; }

  /// Makes the queries of rows [begin, begin + kStep).
  void look_at(std::int64_t begin) {
    queries_.resize(static_cast<std::size_t>(kStep * kHeads * kHeadDim));
    std::mt19937 random(static_cast<unsigned>(begin));
    for (std::int64_t row = 0; row < kStep; ++row) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        for (std::int64_t d = 0; d < kHeadDim; ++d) {
          queries_[static_cast<std::size_t>((row * kHeads + head) * kHeadDim + d)] =
              number(begin + row, head * kKvHeads / kHeads, d, random);
        }
      }
    }
  }

  /// What comes of these rows, to `out`.
  void attend(Backend& backend, std::int64_t begin, const AttentionPolicy& policy, std::vector<float>& out) {
    ForwardBatch batch;
    batch.sequences.push_back({.first_row = 0,
                               .rows = static_cast<std::int32_t>(kStep),
                               .first_position = begin,
                               .answer_begin = length_,
                               .page_tables = {table_}});
    for (std::int64_t row = 0; row < kStep; ++row) {
      batch.token_ids.push_back(0);
      batch.positions.push_back(begin + row);
    }
    out.resize(queries_.size());
    backend.begin(batch);
    backend.attend(batch,
                   {.q = queries_.data(),
                    .q_stride = kHeads * kHeadDim,
                    .out = out.data(),
                    .heads = kHeads,
                    .kv_heads = kKvHeads,
                    .head_dim = kHeadDim,
                    .scale = 0.125f,
                    .kv = kv_,
                    .prompt_selection = policy.prefill ? &*policy.prefill : nullptr,
                    .hyper = policy.hyper ? &*policy.hyper : nullptr,
                    .skip_margin = policy.skip ? policy.skip->margin() : std::numeric_limits<float>::infinity()});
  }

 private:
  /// Of a query or a key: a direction of length sqrt(96) / 8 times itself, and chance of which a product is worth 1.
  float number(std::int64_t position, std::int64_t kv_head, std::int64_t d, std::mt19937& random) {
    const std::int64_t topic = topic_of_stretch_[static_cast<std::size_t>(position / kStretch)];
    return 1.2247f * directions_[static_cast<std::size_t>((topic * kKvHeads + kv_head) * kHeadDim + d)] +
           normal_(random);
  }

  void store(std::int64_t t) {
    std::byte* page =
        kv_.pages + static_cast<std::size_t>(table_[static_cast<std::size_t>(t / kPageTokens)]) * kv_.page_bytes;
    auto* keys = reinterpret_cast<std::uint16_t*>(page + kv_.key_offset);
    auto* values = reinterpret_cast<std::uint16_t*>(page + kv_.value_offset);
    const std::int64_t slot = t % kPageTokens;
    float key[kHeadDim];
    for (std::int64_t head = 0; head < kKvHeads; ++head) {
      for (std::int64_t d = 0; d < kHeadDim; ++d) {
        const std::uint16_t rounded = float_to_bf16(number(t, head, d, random_));
        keys[(head * kHeadDim + d) * kPageTokens + slot] = rounded;
        key[d] = bf16_to_float(rounded);
        values[(head * kPageTokens + slot) * kHeadDim + d] = float_to_bf16(normal_(random_));
      }
      const auto page_number = static_cast<std::size_t>(table_[static_cast<std::size_t>(t / kPageTokens)]);
      buckets_[page_number * kv_.key_bucket_bytes + static_cast<std::size_t>(head * kPageTokens + slot)] =
          bucket_of(planes_[static_cast<std::size_t>(head)].data(), key, kHeadDim);
    }
  }

  std::int64_t length_;
  std::mt19937 random_;
  std::normal_distribution<float> normal_;
  KvLayer kv_;
  std::shared_ptr<void> memory_;  // in huge pages, as a server's
  std::vector<std::uint8_t> buckets_;
  std::vector<std::vector<double>> planes_;  // of each kv head
  std::vector<std::int32_t> table_;
  std::vector<std::int64_t> topic_of_stretch_;
  std::vector<float> directions_, queries_;
};

/// The last prompt that was asked for: making one takes longer than attention.
Prompt& prompt_of(std::int64_t length) {
  static std::unique_ptr<Prompt> prompt;
  if (!prompt || prompt->length() != length) prompt = std::make_unique<Prompt>(length);
  return *prompt;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0, size = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - b[i], 2);
    size += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / size);
}

/// The root of the mean square.
double size_of(const std::vector<float>& a) {
  double squares = 0.0;
  for (const float number : a) squares += double{number} * number;
  return std::sqrt(squares / static_cast<double>(a.size()));
}

void whole_prompt(benchmark::State& state, const AttentionPolicy& policy) {
  auto made = make_cpu_backend({.threads = 2});
  MILLRACE_CHECK(made.ok(), "no backend");
  Backend& backend = **made;
  Prompt& prompt = prompt_of(state.range(0));
  std::vector<float> out, exact;
  for (auto _ : state) {
    for (std::int64_t begin = 0; begin < prompt.length(); begin += kStep) {
      state.PauseTiming();
      prompt.look_at(begin);
      state.ResumeTiming();
      prompt.attend(backend, begin, policy, out);
    }
  }
  prompt.attend(backend, prompt.length() - kStep, {}, exact);
  const double error = relative_error(out, exact);
  state.counters["error"] = error;
  state.counters["of_value"] = error * size_of(exact);  // values have size 1
}

const AttentionPolicy kEverything, kByMass{.prefill = BlockSelection{.mass = 0.9}},
    kBudget{.prefill = BlockSelection{.tokens = 2048}},
    kRecent{.prefill = BlockSelection{.choice = BlockChoice::recent, .tokens = 2048}},
    kHyper{.hyper = HyperAttention{}}, kSkip{.skip = ChunkSkipping{.threshold = 0.001}};

void lengths(benchmark::internal::Benchmark* benchmark) {
  benchmark->RangeMultiplier(2)->Range(8192, 65536)->Iterations(1)->Unit(benchmark::kMillisecond)->UseRealTime();
}

BENCHMARK_CAPTURE(whole_prompt, everything, kEverything)->Apply(lengths);
BENCHMARK_CAPTURE(whole_prompt, mass_90, kByMass)->Apply(lengths);
BENCHMARK_CAPTURE(whole_prompt, tokens_2048, kBudget)->Apply(lengths);
BENCHMARK_CAPTURE(whole_prompt, recent_2048, kRecent)->Apply(lengths);
BENCHMARK_CAPTURE(whole_prompt, hyper, kHyper)->Apply(lengths);
BENCHMARK_CAPTURE(whole_prompt, skip_softmax, kSkip)->Apply(lengths);

}  // namespace
}  // namespace millrace

BENCHMARK_MAIN();
