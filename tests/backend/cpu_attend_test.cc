// Attention: against the reference backend, and identical however a step is cut.

#include <algorithm>

#include "backend/attend_world.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

class CpuAttend : public CpuLevelTest {};

TEST_P(CpuAttend, AgreesWithTheReference) {
  const auto reference = make_reference_backend();
  const auto backend = cpu_backend(GetParam(), 2);
  for (const Shape& shape : attend_shapes()) {
    World world(shape, 2, 21);
    world.store(0, 0, shape.length);
    world.store(1, 0, shape.length);
    const std::vector<World::Step> steps = {{0, 0, shape.length}, {1, 0, shape.length}};
    EXPECT_TRUE(close(world.attend(*backend, steps), world.attend(*reference, steps), 3e-6f)) << describe(shape);
  }
}

TEST_P(CpuAttend, IdenticalHoweverThePromptIsCut) {
  const auto one = cpu_backend(GetParam(), 1), two = cpu_backend(GetParam(), 2);
  for (const Shape& shape : attend_shapes()) {
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
  for (const Shape& shape : attend_shapes()) {
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
