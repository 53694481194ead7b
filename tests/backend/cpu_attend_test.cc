// Attention: against the reference backend, and identical however a step is cut.

#include <algorithm>

#include "backend/attend_world.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  all.push_back({});
  all.push_back({.heads = 3, .kv_heads = 3, .head_dim = 64, .length = 200});
  all.push_back({.heads = 8, .kv_heads = 1, .head_dim = 128, .length = 150, .format = KvFormat::bf16});
  all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 20, .page_tokens = 5, .length = 131});
  all.push_back({.heads = 2, .kv_heads = 1, .head_dim = 8, .page_tokens = 1, .length = 70, .format = KvFormat::bf16});
  all.push_back({.heads = 4, .kv_heads = 2, .head_dim = 80, .page_tokens = 32, .length = 260, .window = 50});
  all.push_back({.heads = 4, .kv_heads = 4, .head_dim = 32, .length = 300, .window = 64, .softcap = 3.0f});
  all.push_back({.heads = 8, .kv_heads = 2, .head_dim = 64, .length = 140, .window = 130, .sinks = true});
  all.push_back({.heads = 2,
                 .kv_heads = 1,
                 .head_dim = 256,
                 .page_tokens = 64,
                 .length = 193,
                 .sinks = true,
                 .format = KvFormat::bf16});
  all.push_back({.heads = 5,
                 .kv_heads = 1,
                 .head_dim = 24,
                 .page_tokens = 7,
                 .length = 90,
                 .window = 1,
                 .format = KvFormat::bf16});
  all.push_back({.heads = 4, .kv_heads = 1, .head_dim = 512, .length = 66, .softcap = 50.0f});
  for (const KvFormat format : {KvFormat::int8, KvFormat::fp8_e4m3}) {
    all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 64, .length = 220, .format = format});
    all.push_back({.heads = 8, .kv_heads = 1, .head_dim = 128, .length = 150, .sinks = true, .format = format});
    all.push_back({.heads = 6, .kv_heads = 2, .head_dim = 20, .page_tokens = 5, .length = 131, .format = format});
    all.push_back(
        {.heads = 4, .kv_heads = 2, .head_dim = 80, .page_tokens = 32, .length = 260, .window = 50, .format = format});
  }
  return all;
}

class CpuAttend : public CpuLevelTest {};

TEST_P(CpuAttend, AgreesWithTheReference) {
  const auto reference = make_reference_backend();
  const auto backend = cpu_backend(GetParam(), 2);
  for (const Shape& shape : shapes()) {
    World world(shape, 2, 21);
    world.store(0, 0, shape.length);
    world.store(1, 0, shape.length);
    const std::vector<World::Step> steps = {{0, 0, shape.length}, {1, 0, shape.length}};
    EXPECT_TRUE(close(world.attend(*backend, steps), world.attend(*reference, steps), 3e-6f)) << describe(shape);
  }
}

TEST_P(CpuAttend, IdenticalHoweverThePromptIsCut) {
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2);
  for (const Shape& shape : shapes()) {
    World whole_world(shape, 1, 22);
    whole_world.store(0, 0, shape.length);
    const std::vector<float> whole = whole_world.attend(*one, {{0, 0, shape.length}});
    for (const std::int64_t chunk : {1, 7, 64, 100}) {
      World world(shape, 1, 22);  // what lies ahead of a step is not a number
      std::vector<float> pieces;
      for (std::int64_t begin = 0; begin < shape.length; begin += chunk) {
        const std::int64_t end = std::min(begin + chunk, shape.length);
        world.store(0, begin, end);
        const std::vector<float> out = world.attend(begin % 2 == 0 ? *one : *two, {{0, begin, end}});
        pieces.insert(pieces.end(), out.begin(), out.end());
      }
      EXPECT_TRUE(identical(pieces, whole)) << describe(shape) << ", steps of " << chunk;
    }
  }
}

TEST_P(CpuAttend, IdenticalInAnyCompany) {
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2);
  for (const Shape& shape : shapes()) {
    World alone(shape, 1, 23);
    alone.store(0, 0, shape.length);
    const std::int64_t half = shape.length / 2;
    const std::vector<float> expected = alone.attend(*one, {{0, half, shape.length}});
    for (const int company : {2, 7, 33}) {
      World world(shape, company, 24);
      // The sequence of interest is the middle one; give it the content of the other world.
      const int index = company / 2;
      World twin(shape, 1, 23);
      world.adopt(index, twin);
      std::vector<World::Step> steps;
      for (int s = 0; s < company; ++s) {
        world.store(s, 0, shape.length);
        steps.push_back(s == index ? World::Step{s, half, shape.length}
                                   : World::Step{s, shape.length - 1 - s % 3, shape.length});
      }
      std::int64_t before = 0;
      for (int s = 0; s < index; ++s)
        before += steps[static_cast<std::size_t>(s)].end - steps[static_cast<std::size_t>(s)].begin;
      for (Backend* backend : {one.get(), two.get()}) {
        const std::vector<float> out = world.attend(*backend, steps);
        const auto start = out.begin() + before * world.q_width();
        EXPECT_TRUE(identical({start, start + static_cast<std::ptrdiff_t>(expected.size())}, expected))
            << describe(shape) << ", " << company << " sequences";
      }
    }
  }
}

MILLRACE_ON_EACH_LEVEL(CpuAttend);

}  // namespace
}  // namespace millrace
