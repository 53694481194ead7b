// Checkpoints that others have quantised: values against those that an outside judge took from the same files
// (tests/fixtures/quantized), and what is refused with which words.
#include "model/checkpoint/quantized.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>

#include "checkpoint/file_builders.h"
#include "core/check.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/json.h"
#include "model/checkpoint/safetensors.h"

namespace millrace {
namespace {

const std::filesystem::path kFixtures = std::filesystem::path(MILLRACE_SOURCE_DIR) / "tests/fixtures/quantized";

/// A directory's parts before they are joined.
struct Parts {
  MappedFile file;
  nlohmann::json config;
  TensorMap tensors;

  static Parts of(const std::string& name) {
    auto file = MappedFile::open(kFixtures / name / "model.safetensors");
    auto config = read_json_object(kFixtures / name / "config.json");
    MILLRACE_CHECK(file.ok() && config.ok(), "{}", name);
    Parts parts{std::move(*file), std::move(*config), {}};
    auto content = parse_safetensors(parts.file.bytes(), name);
    MILLRACE_CHECK(content.ok(), "{}", content.error().message);
    for (StoredTensor& tensor : content->tensors) {
      std::string key = tensor.name;
      parts.tensors.emplace(std::move(key), std::move(tensor));
    }
    return parts;
  }
  nlohmann::json& quantization() { return config["quantization_config"]; }
  StoredTensor& at(const std::string& suffix) { return tensors.at(kLayer + suffix); }
  std::string error() {
    const Status joined = join_quantized(config, "here", tensors);
    return joined.ok() ? "" : joined.error().message;
  }

  static inline const std::string kLayer = "model.layers.0.self_attn.q_proj";
};

TEST(Quantized, ValuesAreThoseOfTheJudge) {
  std::size_t layers = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFixtures)) {
    SCOPED_TRACE(entry.path().filename().string());
    const auto checkpoint = Checkpoint::open(entry.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    auto file = MappedFile::open(entry.path() / "dequantized.safetensors");
    ASSERT_TRUE(file.ok()) << file.error().message;
    const auto judged = parse_safetensors(file->bytes(), "judged");
    ASSERT_TRUE(judged.ok()) << judged.error().message;
    ASSERT_FALSE(judged->tensors.empty());
    for (const StoredTensor& expected : judged->tensors) {
      const StoredTensor* tensor = checkpoint->find(expected.name);
      ASSERT_NE(tensor, nullptr) << expected.name;
      ASSERT_EQ(tensor->format, QuantFormat::codes) << expected.name;
      ASSERT_EQ(tensor->shape, expected.shape) << expected.name;
      ASSERT_NE(tensor->coded, nullptr);
      std::vector<float> row(static_cast<std::size_t>(expected.shape[1])), wanted(row.size());
      for (std::int64_t r = 0; r < expected.shape[0]; ++r) {
        tensor->coded->decode_row(r, row.data());
        std::memcpy(wanted.data(), expected.data.data() + static_cast<std::size_t>(r) * row.size() * sizeof(float),
                    row.size() * sizeof(float));
        for (std::size_t k = 0; k < row.size(); ++k) {
          ASSERT_NEAR(row[k], wanted[k], 1e-6f * std::fabs(wanted[k])) << expected.name << ' ' << r << ' ' << k;
        }
      }
      checkpoint->release(*tensor);
      ++layers;
    }
    for (const auto& [name, tensor] : checkpoint->tensors()) EXPECT_FALSE(is_raw(tensor.format)) << name;
  }
  EXPECT_GE(layers, 56u);
}

TEST(Quantized, TheInt8OfCompressedTensorsWantsInputsOfEightBits) {
  Parts parts = Parts::of("ct_int8");
  ASSERT_EQ(parts.error(), "");
  EXPECT_TRUE(parts.at(".weight").coded->byte_inputs);
  parts = Parts::of("ct_int8");
  parts.quantization()["config_groups"]["group_0"]["input_activations"] = nullptr;
  ASSERT_EQ(parts.error(), "");
  EXPECT_FALSE(parts.at(".weight").coded->byte_inputs);
}

TEST(Quantized, ZeroPointsOfCompressedBytes) {
  Parts parts = Parts::of("ct_int8");
  const StoredTensor& scales = parts.at(".weight_scale");
  const std::vector<std::byte> zeros(static_cast<std::size_t>(scales.elements()), std::byte{3});
  StoredTensor tensor{.name = "zeros", .format = QuantFormat::i8, .shape = scales.shape, .data = zeros};
  parts.tensors.emplace(Parts::kLayer + ".weight_zero_point", tensor);
  const StoredTensor weight = parts.at(".weight");
  const std::uint16_t scale_bits =
      static_cast<std::uint16_t>(std::to_integer<int>(scales.data[0]) | std::to_integer<int>(scales.data[1]) << 8);
  ASSERT_EQ(scales.format, QuantFormat::bf16);
  const float scale = std::bit_cast<float>(static_cast<std::uint32_t>(scale_bits) << 16);
  ASSERT_EQ(parts.error(), "");
  const CodedMatrix& matrix = *parts.at(".weight").coded;
  std::vector<float> row(static_cast<std::size_t>(matrix.cols));
  matrix.decode_row(0, row.data());
  for (std::size_t k = 0; k < row.size(); ++k) {
    const auto code = static_cast<int>(std::to_integer<std::int8_t>(weight.data[k]));
    EXPECT_EQ(row[k], static_cast<float>(code - 3) * scale) << k;
  }
  EXPECT_FALSE(matrix.byte_input_group());
}

TEST(Quantized, TheSecondFormatOfGptqHasZerosAsTheyAre) {
  Parts first = Parts::of("gptq_sym"), second = Parts::of("gptq_sym");
  second.quantization()["checkpoint_format"] = "gptq_v2";
  ASSERT_EQ(first.error(), "");
  ASSERT_EQ(second.error(), "");
  EXPECT_EQ(first.at(".weight").coded->zero_offset, 1);
  EXPECT_EQ(second.at(".weight").coded->zero_offset, 0);
}

TEST(Quantized, OtherCheckpointsStayAsTheyAre) {
  Parts parts = Parts::of("awq");
  parts.config.erase("quantization_config");
  const std::size_t before = parts.tensors.size();
  EXPECT_EQ(parts.error(), "");
  EXPECT_EQ(parts.tensors.size(), before);
}

struct Damage {
  const char* fixture;
  std::function<void(Parts&)> apply;
  const char* words;
};

void put_index(StoredTensor& tensor, std::vector<std::byte>& memory, std::size_t index, std::int32_t value) {
  memory.assign(tensor.data.begin(), tensor.data.end());
  std::memcpy(memory.data() + index * 4, &value, 4);
  tensor.data = memory;
}

TEST(Quantized, WhatDoesNotFitIsRefused) {
  static std::vector<std::byte> memory;
  const Damage kDamages[] = {
      {"awq", [](Parts& p) { p.quantization()["quant_method"] = "hqq"; },
       "here: quantised by 'hqq': 'hqq' is not supported; this version reads gptq, awq, fp8, fbgemm_fp8, "
       "compressed-tensors and mxfp4"},
      {"awq", [](Parts& p) { p.quantization()["version"] = "gemv"; }, "the version 'gemv' of AWQ is not supported"},
      {"awq", [](Parts& p) { p.tensors.erase(Parts::kLayer + ".scales"); }, "q_proj.scales' is missing"},
      {"awq", [](Parts& p) { p.at(".qzeros").shape[0] += 1; }, "q_proj.qzeros' has shape"},
      {"awq", [](Parts& p) { p.at(".scales").format = QuantFormat::i32; }, "q_proj.scales' is i32"},
      {"awq", [](Parts& p) { p.at(".qweight").shape.push_back(1); }, "q_proj.qweight' has shape"},
      {"gptq_sym", [](Parts& p) { p.at(".qzeros").shape[1] = 3; }, "bits are not supported"},
      {"gptq_sym", [](Parts& p) { p.at(".qweight").shape[1] += 8; }, "q_proj.qweight' has shape"},
      {"gptq_act_order", [](Parts& p) { put_index(p.at(".g_idx"), memory, 3, 77); }, "speaks of group 77"},
      {"gptq_act_order", [](Parts& p) { put_index(p.at(".g_idx"), memory, 3, -2); }, "speaks of group -2"},
      {"gptq_act_order", [](Parts& p) { p.at(".g_idx").shape[0] -= 1; }, "has not one element for each of"},
      {"fp8_block",
       [](Parts& p) {
         p.quantization()["weight_block_size"] = {16, 16};
       },
       "weight_scale_inv' has shape"},
      {"fp8_block",
       [](Parts& p) {
         p.quantization()["weight_block_size"] = {0, -4};
       },
       "weight_scale_inv' has shape"},
      {"fp8_block", [](Parts& p) { p.tensors.erase(Parts::kLayer + ".weight_scale_inv"); },
       "q_proj.weight_scale' is missing"},
      {"ct_int8",
       [](Parts& p) {
         p.at(".weight_scale").shape = {2, 5};
       },
       "q_proj.weight_scale' has shape [2, 5]"},
      {"ct_int8",
       [](Parts& p) {
         p.quantization()["transform_config"] = {{"config_groups", 1}};
       },
       "\"transform_config\" is not supported"},
      {"ct_int8",
       [](Parts& p) {
         p.quantization()["sparsity_config"] = {{"format", "sparse-24-bitmask"}};
       },
       "\"sparsity_config\" is not supported"},
      {"ct_int4_asym", [](Parts& p) { p.at(".weight_packed").shape[1] += 1; }, "numbers of 2, 4 or 8 bits"},
      {"ct_int4_asym",
       [](Parts& p) {
         p.at(".weight_zero_point").shape = {1, 1};
       },
       "weight_zero_point' has shape"},
      {"ct_int4_asym", [](Parts& p) { p.at(".weight_shape").shape = {1}; }, "does not hold the two sizes"},
      {"ct_nvfp4", [](Parts& p) { p.at(".weight_global_scale").shape = {0}; }, "is no positive number"},
  };
  for (const Damage& damage : kDamages) {
    Parts parts = Parts::of(damage.fixture);
    damage.apply(parts);
    const std::string message = parts.error();
    EXPECT_NE(message.find(damage.words), std::string::npos) << damage.words << " in: " << message;
  }
}

}  // namespace
}  // namespace millrace
