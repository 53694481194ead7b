// The container: what is written is what the format's reader finds, and a copy of its metadata is the same bytes.
#include "convert/gguf_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "core/mapped_file.h"
#include "model/checkpoint/gguf_file.h"
#include "model/checkpoint/gguf_keys.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

/// The file without data.
std::string whole(const StepFileLayout& layout) {
  std::string bytes = layout.header;
  bytes.resize(layout.bytes, '\0');
  return bytes;
}

GgufMetadataWriter all_types() {
  GgufMetadataWriter metadata;
  metadata.set_text("general.architecture", "llama");
  metadata.set_uint32("a.count", 4294967295u);
  metadata.set_int32("a.signed", -7);
  metadata.set_float("a.number", 1e-5);
  metadata.set_flag("a.flag", true);
  metadata.set_texts("a.texts", {"x", "", "\u2581y"});
  metadata.set_int32s("a.integers", {1, -2, 3});
  metadata.set_floats("a.numbers", {0.5f, -1.5f});
  metadata.set_flags("a.flags", {true, false, true});
  return metadata;
}

TEST(GgufWriter, TheReaderFindsIt) {
  const std::vector<GgufOutputTensor> tensors{{"b", QuantFormat::f32, {3}},
                                              {"a", QuantFormat::q8_0, {2, 5, 64}},
                                              {"c", QuantFormat::q6_k, {4, 256}},
                                              {"d", QuantFormat::bf16, {2, 7}}};
  const StepFileLayout layout = gguf_layout(all_types(), tensors);
  const std::string bytes = whole(layout);
  EXPECT_EQ(layout.header.size() % kGgufAlignment, 0u);
  const auto file = parse_gguf(std::as_bytes(std::span(bytes)), "file");
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_EQ(file->tensors.size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const GgufTensor& tensor = file->tensors[i];
    EXPECT_EQ(tensor.name, tensors[i].name);
    EXPECT_EQ(tensor.format, tensors[i].format);
    EXPECT_EQ(tensor.shape, tensors[i].shape);
    const auto place = layout.places.at(tensors[i].name);
    EXPECT_EQ(tensor.data.data(), std::as_bytes(std::span(bytes)).data() + place.offset);
    EXPECT_EQ(tensor.data.size(), place.bytes);
    EXPECT_EQ(place.offset % kGgufAlignment, 0u);
  }
  GgufKeys keys(file->metadata, "a.", "file");
  EXPECT_EQ(keys.integer("count"), 4294967295);
  EXPECT_EQ(keys.number("number"), 1e-5);
  EXPECT_EQ(keys.flag("flag"), true);
  EXPECT_EQ(keys.array("texts", GgufType::string)->strings(), (std::vector<std::string_view>{"x", "", "\u2581y"}));
  EXPECT_EQ(keys.array("integers", GgufType::int32)->integers(), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_EQ(keys.array("numbers", GgufType::float32)->floats(), (std::vector<float>{0.5f, -1.5f}));
  EXPECT_EQ(keys.array("flags", GgufType::boolean)->integers(), (std::vector<std::int64_t>{1, 0, 1}));
  EXPECT_TRUE(keys.status().ok());
}

TEST(GgufWriter, ACopyOfMetadataIsTheSameBytes) {
  const std::string bytes = whole(gguf_layout(all_types(), {{"t", QuantFormat::f32, {1}}}));
  const auto file = parse_gguf(std::as_bytes(std::span(bytes)), "file");
  ASSERT_TRUE(file.ok()) << file.error().message;
  const GgufMetadataWriter copy = copy_metadata(file->metadata);
  EXPECT_EQ(copy.pairs(), all_types().pairs());
}

TEST(GgufWriter, AKeyIsSetOnce) {
  GgufMetadataWriter metadata;
  metadata.set_uint32("a", 1);
  metadata.set_uint32("b", 2);
  metadata.set_text("a", "now a text");
  ASSERT_EQ(metadata.pairs().size(), 2u);
  EXPECT_EQ(metadata.pairs().front().first, "a");
  EXPECT_NE(metadata.pairs().front().second.find("now a text"), std::string::npos);
}

TEST(GgufWriter, CopiesWhatOthersWrote) {
  // Files of the gguf package, with types that this program does not write.
  const fs::path fixtures = fs::path(MILLRACE_SOURCE_DIR) / "tests/fixtures/checkpoint";
  for (const char* name : {"llama.gguf", "qwen3.gguf", "gemma3.gguf"}) {
    const auto map = MappedFile::open(fixtures / name);
    ASSERT_TRUE(map.ok());
    const auto file = parse_gguf(map->bytes(), name);
    ASSERT_TRUE(file.ok());
    std::vector<GgufOutputTensor> tensors;
    for (const GgufTensor& tensor : file->tensors) {
      tensors.push_back({std::string(tensor.name), tensor.format, tensor.shape});
    }
    const StepFileLayout layout = gguf_layout(copy_metadata(file->metadata), tensors);
    // Tensors lie there in their order as well, so the whole header is equal.
    ASSERT_LT(layout.header.size(), map->bytes().size());
    EXPECT_EQ(std::memcmp(layout.header.data(), map->bytes().data(), layout.header.size()), 0) << name;
  }
}

}  // namespace
}  // namespace millrace
