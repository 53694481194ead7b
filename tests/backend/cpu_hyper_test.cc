// Rows of prompts whose attention is approximate where it is far: buckets, records of keys, and attention over blocks
// and samples. What the approximation is worth is tested without a backend (tests/kv/hyper_choice_test.cc).

#include <algorithm>
#include <map>

#include "backend/attend_world.h"
#include "backend/cpu/key_records.h"
#include "backend/reference/reference_backend.h"
#include "kv/hyper_choice.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

HyperAttention small(std::int64_t block = 48, std::int64_t samples = 40) {
  return {.block = block,
          .samples = samples,
          .chunk = 128,
          .min_tokens = 256,
          .sink_tokens = 64,
          .recent_tokens = 64,
          .dense_layers = 0,
          .seed = 5};
}

std::vector<Shape> hyper_shapes(const HyperAttention& hyper, bool all_formats = true) {
  std::vector<Shape> all;
  all.push_back({.heads = 4, .kv_heads = 2, .head_dim = 64, .length = 650});
  all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 20, .length = 700, .sinks = true});
  all.push_back({.heads = 3, .kv_heads = 1, .head_dim = 40, .length = 517, .softcap = 5.0f});
  all.push_back({.heads = 1, .kv_heads = 1, .head_dim = 32, .length = 530});
  for (const KvFormat format : kKvFormats) {
    if (!all_formats && format != KvFormat::bf16) continue;
    all.push_back({.heads = 4, .kv_heads = 1, .head_dim = 64, .length = 520, .format = format});
    all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 11, .length = 500, .format = format});
  }
  for (Shape& shape : all) {
    shape.answer_begin = shape.length;
    shape.hyper = hyper;
  }
  return all;
}

std::string describe(const Shape& shape, const HyperAttention& hyper) {
  return fmt::format("{}, block {}, {} samples", describe(shape), hyper.block, hyper.samples);
}

class CpuHyper : public CpuAttendLevelTest {};

TEST_P(CpuHyper, AgreesWithTheReference) {
  static std::map<std::string, std::vector<float>> known;
  const auto backend = cpu_backend(GetParam(), 2);
  HyperAttention bare = small();
  bare.sink_tokens = bare.recent_tokens = 0;
  bare.min_tokens = 0;
  for (const HyperAttention& hyper : {small(), small(64, 0), small(1, 64), small(100, 130), small(17, 3), bare}) {
    for (const Shape& shape : hyper_shapes(hyper, hyper.block == 48 && hyper.min_tokens > 0)) {
      const bool rounds = backend->attend_arithmetic(shape.format) != Arithmetic::f32;
      World world(shape, 2, 84);
      world.store(0, 0, shape.length);
      world.store(1, 0, shape.length);
      if (rounds) world.round_queries();
      const std::vector<World::Step> steps = {{0, 250, shape.length}, {1, 300, 400}};
      const std::string name = fmt::format("{} {} {}", describe(shape, hyper), hyper.min_tokens, rounds);
      const auto [place, fresh] = known.try_emplace(name);
      if (fresh) place->second = world.attend(*make_reference_backend(), steps);
      const std::vector<float> out = world.attend(*backend, steps);
      if (rounds) {
        const float rounding = shape.format == KvFormat::int4 ? 0x1.02p-7f : 0x1.02p-8f;
        EXPECT_TRUE(within(out, place->second, rounding * world.largest_value())) << name;
      } else {
        EXPECT_TRUE(close(out, place->second, 3e-6f)) << name;
      }
    }
  }
}

TEST_P(CpuHyper, GivesTheBitsOfDenseWhereNothingIsLeftOut) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (Shape shape : hyper_shapes(small())) {
    const auto result = [&](std::optional<HyperAttention> hyper) {
      shape.hyper = hyper;
      World world(shape, 1, 85);
      world.store(0, 0, shape.length);
      return world.attend(*backend, {{0, 0, shape.length}});
    };
    const std::vector<float> dense = result({}), approximate = result(small());
    HyperAttention late = small(), wide = small(), of_samples = small();
    late.min_tokens = shape.length;
    wide.block = shape.length;
    of_samples.samples = shape.length;
    for (const HyperAttention& hyper : {late, wide, of_samples}) {
      EXPECT_TRUE(identical(result(hyper), dense)) << describe(shape, hyper);
    }
    // Of rows before the first chunk that approximates so in any case, and of no others.
    const auto first = static_cast<std::ptrdiff_t>(hyper_begin(small()) * shape.heads * shape.head_dim);
    EXPECT_TRUE(std::equal(dense.begin(), dense.begin() + first, approximate.begin())) << describe(shape);
    EXPECT_FALSE(identical(approximate, dense)) << describe(shape);
  }
}

/// In steps of any size, beside rows of other prompts and of answers, and with any number of threads.
TEST_P(CpuHyper, IdenticalHoweverAPromptIsCutAndInAnyCompany) {
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2), many = cpu_backend(GetParam(), 11);
  for (Shape shape : hyper_shapes(small())) {
    shape.answer_begin = shape.length - 30;  // the rest reads everything, or pages
    shape.selection = PageSelection{.tokens = 128, .sink_tokens = 8, .recent_tokens = 20};
    World all(shape, 1, 86);
    all.store(0, 0, shape.length);
    const std::vector<float> whole = all.attend(*one, {{0, 0, shape.length}});
    for (const std::int64_t step : {1, 23, 64, 300}) {
      World world(shape, 3, 88), twin(shape, 1, 86);  // what lies ahead of a step is not a number
      world.adopt(0, twin);
      world.store(1, 0, shape.length);
      world.store(2, 0, shape.length);
      std::vector<float> pieces;
      const std::int64_t first = step == 1 ? shape.length - 40 : 0;
      if (first > 0) world.store(0, 0, first);
      for (std::int64_t begin = first; begin < shape.length; begin += step) {
        const std::int64_t end = std::min(begin + step, shape.length);
        world.store(0, begin, end);
        const std::vector<float> out =
            world.attend(begin % 2 == 0 ? *two : *many,
                         {{1, shape.length - 2, shape.length}, {0, begin, end}, {2, 250, 250 + begin % 200 + 1}});
        const auto start = out.begin() + 2 * world.q_width();
        pieces.insert(pieces.end(), start, start + (end - begin) * world.q_width());
      }
      EXPECT_TRUE(std::equal(pieces.begin(), pieces.end(), whole.begin() + first * world.q_width()))
          << describe(shape) << ", steps of " << step;
    }
  }
}

/// NaN in a key stays with the rows that read it.
TEST_P(CpuHyper, KeysThatAreNotFiniteDoNoHarmToRowsBeforeThem) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const float number : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    const Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 64, .length = 640, .answer_begin = 640, .hyper = small()};
    const auto result = [&](bool poisoned) {
      World world(shape, 1, 89);
      if (poisoned) world.set_key(0, 450, number);
      world.store(0, 0, shape.length);
      return world.attend(*backend, {{0, 0, shape.length}});
    };
    const std::vector<float> clean = result(false), poisoned = result(true);
    EXPECT_TRUE(std::equal(clean.begin(), clean.begin() + 450 * 4 * 64, poisoned.begin()));
  }
}

/// Of every key of a prompt, by an oracle of its own; nothing of an answer's.
TEST_P(CpuHyper, BucketsAreThoseOfTheKeysAsTheyAreStored) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t head_dim : {64, 11}) {
      const Shape shape{.heads = 4,
                        .kv_heads = 2,
                        .head_dim = head_dim,
                        .length = 90,
                        .format = format,
                        .answer_begin = 83,
                        .hyper = small()};
      World world(shape, 1, 90);
      ForwardBatch batch;
      std::vector<std::int32_t> table;
      for (std::int64_t page = 0; page < 6; ++page) table.push_back(world.page_number(0, page));
      const std::int64_t width = world.q_width() + 2 * world.kv_width(), first = 5;
      batch.sequences.push_back({.first_row = 0,
                                 .rows = static_cast<std::int32_t>(shape.length - first),
                                 .first_position = first,
                                 .answer_begin = shape.answer_begin,
                                 .page_tables = {table}});
      for (std::int64_t t = first; t < shape.length; ++t) {
        batch.token_ids.push_back(0);
        batch.positions.push_back(t);
      }
      Random random(91);
      std::vector<float> qkv = random.normals((shape.length - first) * width);
      const auto keep = [&](Backend& on) {
        for (std::int64_t t = 0; t < shape.length; ++t) {
          for (std::int32_t head = 0; head < shape.kv_heads; ++head) world.bucket(0, t, head) = 0xee;
        }
        std::vector<float> copy = qkv;
        on.begin(batch);
        on.rope_store(batch, {.qkv = copy.data(),
                              .qkv_width = width,
                              .heads = shape.heads,
                              .kv_heads = shape.kv_heads,
                              .head_dim = head_dim,
                              .kv = world.kv()});
        for (std::int64_t t = 0; t < shape.length; ++t) {
          for (std::int32_t head = 0; head < shape.kv_heads; ++head) {
            if (t < first || t >= shape.answer_begin) {
              EXPECT_EQ(world.bucket(0, t, head), 0xee) << t;
              continue;
            }
            const std::vector<double> planes = hash_planes(world.kv().hash, static_cast<std::uint32_t>(head), head_dim);
            int code = 0;
            for (std::size_t plane = 0; plane < kHashBits; ++plane) {
              long double sum = 0.0L;
              for (std::int32_t d = 0; d < head_dim; ++d) {
                sum += static_cast<long double>(world.key(0, t, head, d)) *
                       planes[static_cast<std::size_t>(d) * kHashLanes + plane];
              }
              code |= (sum > 0.0L ? 1 : 0) << plane;
            }
            // A bucket's number has the code as its Gray code.
            const int bucket = world.bucket(0, t, head);
            EXPECT_EQ(bucket ^ (bucket >> 1), code) << kv_format_name(format) << ", position " << t;
          }
        }
      };
      keep(*backend);
      keep(*make_reference_backend());
    }
  }
}

/// What a kernel does of a table in two tasks, the second of them for queries from all over and with weights.
class TwoTables {
 public:
  static constexpr std::int64_t kRows = 9, kFirst = 128, kAll = 320;  // positions of the first table, and of both

  TwoTables(const Shape& shape, AttendKernel kernel)
      : shape_(shape), kernel_(kernel), world_(shape, 1, 93), queries_(Random(94).normals(kRows * world_.q_width())) {
    world_.store(0, 0, kAll);
    for (std::int64_t page = 0; page < kAll / 16; ++page) table_.push_back(world_.page_number(0, page));
    sinks_ = Random(95).normals(shape.heads);
  }

  /// All rows see [0, end), each in a task of its own.
  std::vector<float> whole(std::int64_t end) {
    std::vector<float> out(queries_.size());
    const AttendArgs args = args_to(out);
    for (std::int64_t row = 0; row < kRows; ++row) {
      run({.args = &args,
           .page_table = table_.data(),
           .batch_row = row,
           .position = end - 1,
           .rows = 1,
           .begin = 0,
           .end = end});
    }
    return out;
  }

  std::vector<float> in_two(const float* biases) {
    std::vector<float> out(queries_.size()), state(static_cast<std::size_t>(kRows * shape_.heads * 2));
    const AttendArgs args = args_to(out);
    run({.args = &args,
         .page_table = table_.data(),
         .position = kFirst,
         .rows = kRows,
         .begin = 0,
         .end = kFirst,
         .suspend = true,
         .state = state.data()});
    // In an order of no meaning, and in pieces of 1, 2, 4 … queries.
    std::vector<std::int32_t> order;
    const auto count = static_cast<std::int32_t>(kRows * shape_.heads);
    for (std::int32_t i = 0; i < count; ++i) order.push_back(i * 7 % count);
    for (std::int32_t first = 0, size = 1; first < count; first += size, size *= 2) {
      run({.args = &args,
           .page_table = table_.data() + kFirst / 16,
           .position = kAll,
           .rows = std::min(size, count - first),
           .begin = 0,
           .end = kAll - kFirst,
           .resume = true,
           .state = state.data(),
           .queries = order.data() + first,
           .biases = biases});
    }
    return out;
  }

 private:
  AttendArgs args_to(std::vector<float>& out) {
    return {.q = queries_.data(),
            .q_stride = world_.q_width(),
            .out = out.data(),
            .heads = shape_.heads,
            .kv_heads = 1,
            .head_dim = shape_.head_dim,
            .scale = 0.3f,
            .softcap = shape_.softcap,
            .sinks = shape_.sinks ? sinks_.data() : nullptr,
            .kv = world_.kv()};
  }

  void run(AttendTask task) {
    memory_.resize(static_cast<std::size_t>(attend_scratch(kRows * shape_.heads, shape_.head_dim, 1)) + 16);
    task.scratch = reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(memory_.data()) + 63) / 64 * 64);
    kernel_(task);
  }

  Shape shape_;
  AttendKernel kernel_;
  World world_;
  std::vector<float> queries_, sinks_, memory_;
  std::vector<std::int32_t> table_;
};

TEST_P(CpuHyper, KernelsGoOnWithQueriesFromAllOverAndWeights) {
  const auto backend = cpu_backend(GetParam());  // has asked for what the kernels need
  const KernelTable kernels = kernel_table(GetParam());
  std::vector<Shape> shapes;
  for (const KvFormat format : kKvFormats) {
    shapes.push_back({.heads = 4, .kv_heads = 1, .head_dim = 64, .length = 320, .sinks = true, .format = format});
    shapes.push_back({.heads = 3, .kv_heads = 1, .head_dim = 11, .length = 320, .softcap = 4.0f, .format = format});
  }
  for (const Shape& shape : shapes) {
    for (const bool rounded : {false, true}) {
      const AttendKernel kernel = rounded ? kernels.products.attend_rounded : kernels.attend;
      if (kernel == nullptr || (rounded && shape.format == KvFormat::f32)) continue;
      SCOPED_TRACE(fmt::format("{}, rounded {}", describe(shape), rounded));
      TwoTables tables(shape, kernel);
      // Weights of 1 are none.
      std::vector<float> biases(TwoTables::kAll - TwoTables::kFirst, 0.0f);
      const std::vector<float> all = tables.whole(TwoTables::kAll);
      EXPECT_TRUE(identical(tables.in_two(nullptr), all));
      EXPECT_TRUE(identical(tables.in_two(biases.data()), all));
      // Those of nothing leave out: a chunk, and all but a few positions.
      std::fill(biases.begin() + 64, biases.end(), -std::numeric_limits<float>::infinity());
      EXPECT_TRUE(identical(tables.in_two(biases.data()), tables.whole(TwoTables::kFirst + 64)));
      std::fill(biases.begin() + 5, biases.end(), -std::numeric_limits<float>::infinity());
      EXPECT_TRUE(close(tables.in_two(biases.data()), tables.whole(TwoTables::kFirst + 5), rounded ? 0.02f : 2e-6f));
      EXPECT_FALSE(identical(tables.in_two(biases.data()), tables.whole(TwoTables::kFirst)));
    }
  }
}

MILLRACE_ON_EACH_LEVEL(CpuHyper);

/// Every byte of a key and a value comes back, wherever it has been put.
TEST(KeyRecords, KeepWhatPagesHold) {
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t head_dim : {1, 7, 16, 20, 64, 80, 128}) {
      const Shape shape{.heads = 3, .kv_heads = 3, .head_dim = head_dim, .length = 64, .format = format};
      World world(shape, 1, 92);
      world.store(0, 0, shape.length);
      const KeyRecords records(format, head_dim);
      const std::int32_t kv_head = 1;
      std::vector<std::byte> memory(records.bytes() * 65 + 16);
      std::byte* const start = memory.data() + 16 - reinterpret_cast<std::uintptr_t>(memory.data()) % 16;
      const auto place = [](std::int64_t t) { return t * 37 % 64; };
      for (std::int64_t page = 0; page < 4; ++page) {
        std::byte* targets[16];
        for (std::int64_t slot = 0; slot < 16; ++slot) {
          targets[slot] = start + static_cast<std::size_t>(place(page * 16 + slot)) * records.bytes();
        }
        records.scatter(world.kv(), world.page_number(0, page), kv_head, shape.kv_heads, targets,
                        world.page_number(0, 3));
      }
      KvLayer layer = records.layer();
      std::vector<std::byte> page(layer.page_bytes + 16);
      layer.pages = page.data() + 16 - reinterpret_cast<std::uintptr_t>(page.data()) % 16;
      const std::byte* const nothing = start + 64 * records.bytes();
      for (std::int64_t first = 0; first < 64; first += 15) {
        const std::byte *sources[16], *values[16];
        for (std::int64_t i = 0; i < 16; ++i) {
          sources[i] = first + i < 64 ? start + static_cast<std::size_t>(place(first + i)) * records.bytes() : nothing;
          values[i] = first + i < 64
                          ? records.value(world.kv(), world.page_number(0, (first + i) / 16), kv_head, (first + i) % 16)
                          : nullptr;
        }
        records.fill(sources, values, layer.pages);
        for (const bool key : {true, false}) {
          for (std::int64_t i = 0; i < 16; ++i) {
            const std::size_t bytes = kv_element_bytes(format),
                              row = kv_elements(format, static_cast<std::size_t>(head_dim)) * bytes;
            KvSlot slot;
            slot.elements = layer.pages + (key ? layer.key_offset + static_cast<std::size_t>(i) * bytes
                                               : layer.value_offset + static_cast<std::size_t>(i) * row);
            slot.step = static_cast<std::ptrdiff_t>(key ? 16 * bytes : bytes);
            slot.scale =
                reinterpret_cast<float*>(layer.pages + (key ? layer.key_scale_offset : layer.value_scale_offset)) + i;
            slot.middle = slot.scale + 16;
            for (std::int32_t d = 0; d < head_dim; ++d) {
              const float expected = first + i >= 64 ? 0.0f
                                     : key           ? world.key(0, first + i, kv_head, d)
                                                     : world.value(0, first + i, kv_head, d);
              ASSERT_EQ(decode_kv(format, slot, d), expected)
                  << kv_format_name(format) << ", " << head_dim << " numbers, " << key << ", place " << i;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace millrace
