// Damaged and malicious files: whatever the bytes, opening them ends soon with a checkpoint that can be read or with
// one line that says what is wrong, and without a large allocation.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>
#include <random>

#include "checkpoint/file_builders.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/gguf_file.h"

namespace {

std::atomic<std::size_t> largest_allocation{0};

void* counted(std::size_t size) {
  std::size_t largest = largest_allocation.load();
  while (size > largest && !largest_allocation.compare_exchange_weak(largest, size)) {
  }
  void* block = std::malloc(size == 0 ? 1 : size);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

}  // namespace

// The whole test program counts what it allocates.
void* operator new(std::size_t size) {
  return counted(size);
}
void* operator new[](std::size_t size) {
  return counted(size);
}
void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return std::malloc(size == 0 ? 1 : size);
}
void* operator new[](std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* block) noexcept {
  std::free(block);
}
void operator delete[](void* block) noexcept {
  std::free(block);
}
void operator delete(void* block, std::size_t /*size*/) noexcept {
  std::free(block);
}
void operator delete[](void* block, std::size_t /*size*/) noexcept {
  std::free(block);
}

namespace millrace {
namespace {

constexpr std::size_t kLargestAllowed = std::size_t{64} << 20;
constexpr int kTruncations = 200;
constexpr int kFlips = 10'000;

using Files = std::vector<std::pair<std::string, std::string>>;

/// Opens and demands one of the two outcomes; returns the message, or nothing for a checkpoint.
std::string open_and_check(const std::filesystem::path& path) {
  largest_allocation = 0;
  const auto opened = Checkpoint::open(path);
  EXPECT_LE(largest_allocation.load(), kLargestAllowed);
  if (!opened.ok()) {
    const std::string& message = opened.error().message;
    EXPECT_FALSE(message.empty());
    EXPECT_LT(message.size(), 1000u) << message;
    EXPECT_TRUE(std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c <= '~'; })) << message;
    return message;
  }
  std::size_t sum = 0;
  for (const auto& [name, tensor] : opened->tensors()) {
    EXPECT_EQ(tensor.data.size(), format_bytes(tensor.format, static_cast<std::size_t>(tensor.elements())));
    for (const std::byte byte : tensor.data) sum += static_cast<std::size_t>(byte);
    if (tensor.coded) {
      std::vector<float> row(static_cast<std::size_t>(tensor.coded->cols));
      for (std::int64_t r = 0; r < tensor.coded->rows; ++r) tensor.coded->decode_row(r, row.data());
    }
    opened->release(tensor);
  }
  EXPECT_GE(sum, 0u);
  EXPECT_TRUE(opened->config().at("architectures").at(0).is_string());
  EXPECT_TRUE(opened->config().at("model_type").is_string());
  return "";
}

/// A directory with files of which one at a time is damaged and put back.
class Victim {
 public:
  explicit Victim(Files files) : files_(std::move(files)) {
    for (const auto& [name, content] : files_) directory_.write(name, content);
  }

  [[nodiscard]] const Files& files() const { return files_; }
  [[nodiscard]] std::filesystem::path path() const {
    return files_.size() == 1 ? directory_.path() / files_.front().first : directory_.path();
  }
  /// With bits flipped at these places, in place: writing whole files would take most of the time.
  std::string open_flipped(std::size_t index, const std::vector<std::pair<std::size_t, int>>& flips) const {
    std::string content = files_[index].second;
    for (const auto& [place, bit] : flips) content[place] = static_cast<char>(content[place] ^ (1 << bit));
    std::fstream file(directory_.path() / files_[index].first, std::ios::binary | std::ios::in | std::ios::out);
    const auto patch = [&](const std::string& source) {
      for (const auto& [place, bit] : flips) {
        file.seekp(static_cast<std::streamoff>(place));
        file.put(source[place]);
      }
      file.flush();
    };
    patch(content);
    std::string message = open_and_check(path());
    patch(files_[index].second);
    return message;
  }
  std::string open_with(std::size_t index, const std::string& content) const {
    directory_.write(files_[index].first, content);
    std::string message = open_and_check(path());
    directory_.write(files_[index].first, files_[index].second);
    return message;
  }

 private:
  Files files_;
  TempDirectory directory_;
};

Files gguf_files() {
  return {{"model.gguf", small_gguf()}};
}

/// A directory of tests/fixtures/quantized.
Files quantized_files(const std::string& name) {
  Files files;
  for (const char* file : {"config.json", "model.safetensors"}) {
    std::ifstream stream(std::filesystem::path(MILLRACE_SOURCE_DIR) / "tests/fixtures/quantized" / name / file,
                         std::ios::binary);
    files.emplace_back(file, std::string(std::istreambuf_iterator<char>(stream), {}));
  }
  return files;
}

constexpr const char* kQuantized[] = {"gptq_act_order", "awq",          "fp8_block", "ct_int8",
                                      "ct_fp8_channel", "ct_int4_asym", "ct_nvfp4"};

/// Part of a file that says something; behind it lie weights, where every byte is as good as another.
std::size_t telling_bytes(const std::string& name, const std::string& content) {
  if (name.ends_with(".gguf")) return content.size() - 2700;
  if (!name.ends_with(".safetensors")) return content.size();
  std::uint64_t header = 0;
  std::memcpy(&header, content.data(), sizeof header);
  return std::min<std::size_t>(content.size(), sizeof header + header);
}

void truncate_everywhere(const Files& files) {
  const Victim victim(files);
  ASSERT_EQ(open_and_check(victim.path()), "");
  int refused = 0;
  for (std::size_t f = 0; f < files.size(); ++f) {
    const std::string& content = files[f].second;
    const int places = std::min<int>(kTruncations, static_cast<int>(content.size()));
    for (int i = 0; i < places; ++i) {
      const std::size_t length = content.size() * static_cast<std::size_t>(i) / static_cast<std::size_t>(places);
      refused += !victim.open_with(f, content.substr(0, length)).empty();
    }
  }
  EXPECT_GT(refused, 0);
}

void flip_bits(const Files& files, std::uint64_t seed, int rounds = kFlips) {
  const Victim victim(files);
  std::mt19937_64 random(seed);
  int refused = 0;
  for (int i = 0; i < rounds; ++i) {
    const std::size_t f = static_cast<std::size_t>(i) % files.size();
    std::vector<std::pair<std::size_t, int>> flips;
    // Every fourth time several bits at once, to get past a check that sees one.
    for (int left = i % 4 == 3 ? 8 : 1; left > 0; --left) {
      const std::size_t place = random() % telling_bytes(files[f].first, files[f].second);
      flips.emplace_back(place, static_cast<int>(random() % 8));
    }
    refused += !victim.open_flipped(f, flips).empty();
  }
  EXPECT_GT(refused, rounds / 10);
  EXPECT_LT(refused, rounds);
}

TEST(Hostile, TruncatedGguf) {
  truncate_everywhere(gguf_files());
}

TEST(Hostile, TruncatedDirectories) {
  truncate_everywhere(small_huggingface(false));
  truncate_everywhere(small_huggingface(true));
}

TEST(Hostile, FlippedBitsInGguf) {
  flip_bits(gguf_files(), 1);
}

TEST(Hostile, FlippedBitsInDirectories) {
  flip_bits(small_huggingface(false), 2);
  flip_bits(small_huggingface(true), 3);
}

TEST(Hostile, TruncatedQuantizedDirectories) {
  for (const char* name : kQuantized) truncate_everywhere(quantized_files(name));
}

TEST(Hostile, FlippedBitsInQuantizedDirectories) {
  std::uint64_t seed = 4;
  for (const char* name : kQuantized) flip_bits(quantized_files(name), seed++, kFlips / 5);
}

TEST(Hostile, MissingFiles) {
  for (const bool sharded : {false, true}) {
    const Files files = small_huggingface(sharded);
    for (std::size_t missing = 0; missing < files.size(); ++missing) {
      const TempDirectory directory;
      for (std::size_t f = 0; f < files.size(); ++f) {
        if (f != missing) directory.write(files[f].first, files[f].second);
      }
      const bool optional = files[missing].first.find("config.json") > 0;  // generation_config, tokenizer_config
      const bool weights = files[missing].first.starts_with("model");
      EXPECT_EQ(open_and_check(directory.path()).empty(), optional && !weights) << files[missing].first;
    }
  }
}

TEST(Hostile, ExtraBytesAndWrongKinds) {
  const Files files = small_huggingface(false);
  const Victim victim(files);
  EXPECT_NE(victim.open_with(3, files[3].second + "x"), "");
  EXPECT_NE(victim.open_with(3, small_gguf()), "");
  EXPECT_NE(victim.open_with(0, std::string(1 << 20, '{')), "");
  EXPECT_NE(victim.open_with(0, std::string("\xff\xfe{}", 4)), "");
  const Victim gguf(gguf_files());
  EXPECT_NE(gguf.open_with(0, files[3].second), "");
  EXPECT_NE(gguf.open_with(0, ""), "");
}

/// The message for a GGUF file that is wrong in one way.
std::string gguf_error(const std::string& file) {
  largest_allocation = 0;
  const auto parsed = parse_gguf(std::as_bytes(std::span(file)), "file");
  EXPECT_LE(largest_allocation.load(), kLargestAllowed);
  return parsed.ok() ? "" : parsed.error().message;
}

std::string gguf_error(const GgufBuilder& gguf) {
  return gguf_error(gguf.build());
}

void expect_words(const std::string& message, const std::string& words) {
  EXPECT_NE(message.find(words), std::string::npos) << words << " in: " << message;
}

TEST(Hostile, GgufHeaders) {
  EXPECT_EQ(gguf_error(GgufBuilder("llama")), "");
  expect_words(gguf_error(std::string("GGU")), "not a GGUF file");
  expect_words(gguf_error(std::string("GGML0000")), "not a GGUF file");
  expect_words(gguf_error(std::string("GGUF\3\0\0\0", 8)), "ends within the header");
  for (const std::uint32_t version : {0u, 1u, 4u}) {
    GgufBuilder gguf("llama");
    gguf.version = version;
    expect_words(gguf_error(gguf), "GGUF version");
  }
  GgufBuilder big("llama");
  big.version = 0x03000000;
  expect_words(gguf_error(big), "big-endian");
  for (const std::uint64_t more : {std::uint64_t{100}, std::uint64_t{1} << 40, ~std::uint64_t{0} - 1}) {
    GgufBuilder tensors("llama"), pairs("llama");
    tensors.more_tensors = more;
    pairs.more_pairs = more;
    expect_words(gguf_error(tensors), "the header claims");
    expect_words(gguf_error(pairs), "the header claims");
  }
  GgufBuilder one("llama");
  one.text("padding", std::string(100, 'x'));
  one.more_pairs = 1;
  expect_words(gguf_error(one), "ends within");
}

TEST(Hostile, GgufValues) {
  const auto with = [](std::uint32_t type, const std::string& value) {
    return gguf_error(GgufBuilder("llama").raw("key", type, value));
  };
  const auto array = [](std::uint32_t type, std::uint64_t count, const std::string& rest = "") {
    std::string bytes;
    append(bytes, type);
    append(bytes, count);
    return bytes + rest;
  };
  std::string long_string;
  append(long_string, std::uint64_t{1} << 62);
  EXPECT_EQ(with(0, "x"), "");
  expect_words(with(8, long_string), "ends within the metadata key 'key'");
  expect_words(with(13, "x"), "unknown type 13");
  expect_words(with(7, "\2"), "boolean with the value 2");
  expect_words(with(9, array(4, std::uint64_t{1} << 62)), "ends within");
  expect_words(with(9, array(10, ~std::uint64_t{0})), "ends within");
  expect_words(with(9, array(8, 1'000'000'000'000)), "ends within");
  expect_words(with(9, array(77, 1)), "array of the unknown type 77");
  EXPECT_EQ(with(9, array(9, 1, array(9, 1, array(4, 0)))), "");
  std::string deep = array(4, 0);
  for (int i = 0; i < 100'000; ++i) deep = array(9, 1) + deep.substr(0, 60);
  expect_words(with(9, deep), "too deep");
  std::string wide = array(9, 100'000);
  for (int i = 0; i < 100'000; ++i) wide += array(4, 0);
  EXPECT_EQ(with(9, wide), "");
  expect_words(gguf_error(GgufBuilder("llama").u32("a", 1).u32("a", 2)), "'a' is there twice");
  expect_words(gguf_error(GgufBuilder("llama").u32("", 1)), "key is empty");
  for (const std::uint32_t alignment : {0u, 3u, 1u << 31}) {
    expect_words(gguf_error(GgufBuilder("llama").u32("general.alignment", alignment)), "general.alignment");
  }
  expect_words(gguf_error(GgufBuilder("llama").text("general.alignment", "32")), "general.alignment");
  expect_words(gguf_error(GgufBuilder("llama").text("a\nb", "").text("a\nb", "")), "'a?b' is there twice");
}

TEST(Hostile, GgufTensors) {
  const auto placed = [](const std::vector<std::uint64_t>& shape, std::uint32_t type = 0, std::uint64_t offset = 0) {
    return gguf_error(GgufBuilder("llama").floats("first", {64}).placed("x", shape, type, offset));
  };
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 63;
  EXPECT_EQ(gguf_error(GgufBuilder("llama").floats("first", {64})), "");
  expect_words(placed({}), "0 dimensions");
  expect_words(placed({1, 1, 1, 1, 1}), "5 dimensions");
  expect_words(placed({kHuge}), "impossible shape");
  expect_words(placed({~std::uint64_t{0}}), "impossible shape");
  expect_words(placed({0, 4}), "impossible shape");
  expect_words(placed({std::uint64_t{1} << 32, std::uint64_t{1} << 31}), "impossible shape");
  expect_words(placed({std::uint64_t{1} << 62}), "multiple of 1");
  expect_words(placed({std::uint64_t{1} << 40}), "claims");
  expect_words(placed({64, 1'000'000}), "claims");
  expect_words(placed({4}, 0, 1 << 20), "claims");
  expect_words(placed({4}, 0, ~std::uint64_t{31}), "claims");
  expect_words(placed({4}, 0, 4), "alignment 32");
  expect_words(placed({4}, 0, 32), "overlap");
  expect_words(placed({4}, 0, 0), "overlap");
  expect_words(placed({4, 33}, 8), "multiple of 32 for Q8_0");
  expect_words(placed({4, 32}, 12), "multiple of 256 for Q4_K");
  expect_words(placed({256}, 16), "the type IQ2_XXS; supported are F32, F16");
  expect_words(placed({4}, 4), "unknown type 4");
  expect_words(placed({4}, 1000), "unknown type 1000");
  expect_words(gguf_error(GgufBuilder("llama").floats("x", {8}).floats("x", {8})), "'x' is there twice");
  expect_words(gguf_error(GgufBuilder("llama").floats("", {8})), "no name");
  expect_words(gguf_error(GgufBuilder("llama").floats("x\ty", {8}).floats("x\ty", {8})), "'x?y'");
}

TEST(Hostile, NamesThatMeetAfterTranslation) {
  const TempDirectory directory;
  GgufBuilder gguf("llama");
  gguf.sizes("llama").floats("token_embd.weight", {5, 8}).floats("model.embed_tokens.weight", {5, 8});
  expect_words(open_and_check(directory.write("model.gguf", gguf.build())), "two tensors stand for");
}

}  // namespace
}  // namespace millrace
