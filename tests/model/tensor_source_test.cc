#include "model/tensor_source.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "quant/codec.h"

namespace millrace {
namespace {

std::vector<float> values(const TensorSource& source, const std::string& name, const std::vector<std::int64_t>& shape) {
  const auto tensor = source.read(name, shape);
  EXPECT_TRUE(tensor.ok()) << tensor.error().message;
  std::vector<float> floats(static_cast<std::size_t>(tensor->stored.elements()));
  dequantize(tensor->stored.format, tensor->stored.data.data(), floats.data(), floats.size());
  return floats;
}

TensorSource dummy(const char* dtype) {
  auto source = TensorSource::dummy({{"torch_dtype", dtype}});
  EXPECT_TRUE(source.ok());
  return *source;
}

TEST(DummyTensors, AreWhatTheConformanceScriptMakes) {
  // First values of "model.norm.weight" that tools/conformance/dummy_weights.py prints in its self-test.
  const std::vector<float> norm = values(dummy("float32"), "model.norm.weight", {4});
  EXPECT_EQ(norm,
            (std::vector<float>{0.9253413081169128f, 1.0517433881759644f, 1.0040597915649414f, 0.8889754414558411f}));
}

TEST(DummyTensors, DependOnNameAndIndexAloneAndKeepTheirScale) {
  const TensorSource source = dummy("float32");
  const std::vector<float> small = values(source, "m", {5, 64}), large = values(source, "m", {7000, 64});
  EXPECT_EQ(std::memcmp(small.data(), large.data(), small.size() * sizeof(float)), 0);
  EXPECT_NE(values(source, "n", {5, 64}), small);
  float largest = 0.0f;
  for (const float value : large) largest = std::max(largest, std::fabs(value));
  EXPECT_LE(largest, 0.25f);
  EXPECT_GT(largest, 0.249f);
  for (const float value : values(source, "a.layernorm.weight", {100})) EXPECT_NEAR(value, 1.0f, 0.125f);
  for (const float value : values(source, "q_proj.bias", {100})) EXPECT_LE(std::fabs(value), 0.25f);
}

TEST(DummyTensors, AreRoundedToTheConfigsType) {
  const std::vector<float> exact = values(dummy("float32"), "m", {1000, 64});
  const std::vector<float> half = values(dummy("float16"), "m", {1000, 64});
  const std::vector<float> brain = values(dummy("bfloat16"), "m", {1000, 64});
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_NEAR(half[i], exact[i], std::max(std::fabs(exact[i]) * 0x1p-11f, 0x1p-25f));
    EXPECT_NEAR(brain[i], exact[i], std::fabs(exact[i]) * 0x1p-8f);
  }
  EXPECT_NE(half, exact);
  EXPECT_FALSE(TensorSource::dummy({{"dtype", "int3"}}).ok());
}

TEST(DummyTensors, AbsurdShapesAreRefused) {
  const std::int64_t huge = std::int64_t{1} << 40;
  EXPECT_FALSE(dummy("float32").describe("m", {huge, huge}).ok());
  EXPECT_FALSE(dummy("float32").describe("m", {0, 4}).ok());
}

}  // namespace
}  // namespace millrace
