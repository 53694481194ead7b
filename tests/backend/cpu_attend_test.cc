// Attention: against the reference backend, and identical however a step is cut.

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "backend/attend_world.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

using Shape = AttendShape;
using World = AttendWorld;

class CpuAttend : public CpuAttendLevelTest {};

/// What the reference backend makes of the steps; slowly, so once for all levels.
const std::vector<float>& reference_of(World& world, const std::vector<World::Step>& steps, const std::string& name) {
  static std::map<std::string, std::vector<float>> known;
  const auto [place, fresh] = known.try_emplace(name);
  if (fresh) place->second = world.attend(*make_reference_backend(), steps);
  return place->second;
}

TEST_P(CpuAttend, AgreesWithTheReference) {
  const auto backend = cpu_backend(GetParam(), 2);
  for (const Shape& shape : attend_shapes()) {
    World world(shape, 2, 21);
    world.store(0, 0, shape.length);
    world.store(1, 0, shape.length);
    const std::vector<World::Step> steps = {{0, 0, shape.length}, {1, 0, shape.length}};
    const std::vector<float> out = world.attend(*backend, steps);
    if (backend->attend_arithmetic(shape.format) == Arithmetic::f32) {
      EXPECT_TRUE(close(out, reference_of(world, steps, describe(shape)), 3e-6f)) << describe(shape);
      continue;
    }
    // It says that it rounds. Then queries are what it multiplies, and each weight is off by up to 2^-8 of itself: a
    // result by up to that of the largest value. (Of int4, codes times scales: values less their middle.)
    world.round_queries();
    const std::vector<float>& expected = reference_of(world, steps, describe(shape) + ", rounded queries");
    const float rounding = shape.format == KvFormat::int4 ? 0x1.02p-7f : 0x1.02p-8f;
    EXPECT_TRUE(within(out, expected, rounding * world.largest_value())) << describe(shape);
    // Roundings are as often up as down: a position that is missing, or there twice, would show in this.
    double error = 0.0, size = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      error += std::pow(double{out[i]} - double{expected[i]}, 2);
      size += std::pow(double{expected[i]}, 2);
    }
    EXPECT_LE(std::sqrt(error / size), rounding) << describe(shape);
  }
}

TEST_P(CpuAttend, WhatARowDoesNotSeeDoesNotShow) {
  const auto backend = cpu_backend(GetParam(), 2);
  constexpr std::int64_t kPoisoned = 75;
  for (const KvFormat format : kKvFormats) {
    for (const std::int32_t head_dim : {48, 64}) {
      const Shape shape{.heads = 6, .kv_heads = 2, .head_dim = head_dim, .length = 100, .window = 20, .format = format};
      const auto results = [&](auto poison) {
        World world(shape, 1, 25);
        poison(world);
        world.store(0, 0, shape.length);
        return world.attend(*backend, {{0, 0, shape.length}});
      };
      const std::vector<float> clean = results([](World&) {});
      const std::int64_t width = shape.heads * shape.head_dim;
      const auto at = [&](const std::vector<float>& of, std::int64_t row) {
        return std::vector<float>(of.begin() + row * width, of.begin() + (row + 1) * width);
      };
      for (const float number : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        for (const bool key : {false, true}) {
          const std::vector<float> poisoned = results(
              [&](World& world) { key ? world.set_key(0, kPoisoned, number) : world.set_value(0, kPoisoned, number); });
          for (std::int64_t row = 0; row < shape.length; ++row) {
            if (row >= kPoisoned && row < kPoisoned + shape.window) continue;
            EXPECT_TRUE(identical(at(poisoned, row), at(clean, row))) << describe(shape) << ", row " << row;
          }
          if (!std::isnan(number)) continue;
          for (const float result : at(poisoned, kPoisoned + 1)) EXPECT_TRUE(std::isnan(result)) << describe(shape);
        }
      }
    }
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
