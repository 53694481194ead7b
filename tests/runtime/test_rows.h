// Rows of logits to try a sampler on: ordinary ones, and all that may be in its way.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace millrace {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct TestRow {
  std::string name;
  std::vector<float> logits;
};

inline std::vector<TestRow> test_rows() {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<TestRow> rows;
  for (const std::size_t size : {1u, 2u, 7u, 255u, 256u, 257u, 1000u, 9001u}) {
    const auto add = [&](const std::string& name, auto&& logit_of) {
      TestRow row{name, std::vector<float>(size)};
      for (std::size_t i = 0; i < size; ++i) row.logits[i] = logit_of(i);
      rows.push_back(std::move(row));
    };
    add("flat", [&](std::size_t) { return 0.3f * normal(random); });
    add("wide", [&](std::size_t) { return 4.0f * normal(random); });
    add("peaked", [&](std::size_t i) { return i == size / 2 ? 30.0f : normal(random); });
    add("ties", [&](std::size_t) { return std::round(2.0f * normal(random)); });
    add("equal", [&](std::size_t) { return -2.5f; });
    add("two values", [&](std::size_t i) { return i % 3 == 0 ? 1.0f : 2.0f; });
    add("ascending", [&](std::size_t i) { return static_cast<float>(i) * 0.01f; });
    add("zeros of both signs", [&](std::size_t i) { return i % 2 == 0 ? -0.0f : 0.0f; });
    add("neighbouring floats", [&](std::size_t) { return std::nextafter(1.0f, random() % 2 == 0 ? 2.0f : 0.0f); });
    add("holes", [&](std::size_t) {
      const float values[] = {std::numeric_limits<float>::quiet_NaN(), -kInfinity, normal(random)};
      return values[random() % 3];
    });
    add("one token", [&](std::size_t i) { return i + 1 == size ? -7.0f : -kInfinity; });
    add("extremes", [&](std::size_t) { return std::ldexp(normal(random), static_cast<int>(random() % 250) - 125); });
    add("exponential steps", [&](std::size_t i) { return -std::ldexp(1.0f, static_cast<int>(i % 200) - 140); });
    add("in step with a sample", [&](std::size_t i) { return (i % 3 == 0 ? 9.0f : 0.0f) + normal(random); });
    add("nothing", [&](std::size_t) { return -kInfinity; });
    add("not a number", [&](std::size_t) { return std::numeric_limits<float>::quiet_NaN(); });
    add("infinite", [&](std::size_t i) { return i % 5 == 1 ? kInfinity : normal(random); });
  }
  return rows;
}

}  // namespace millrace
