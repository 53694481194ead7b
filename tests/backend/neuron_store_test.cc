// Neurons on disk: what is fetched is what was written, however small the memory for it; errors say what is wrong, and
// a disk that fails is told of; an FFN of which a part is on disk has the bits of one that is in memory.

#include "backend/cpu/neuron_store.h"

#include <filesystem>
#include <fstream>

#include "backend/rows_world.h"
#include "backend/unnamed_file.h"

namespace millrace {
namespace {

constexpr std::int64_t kBytes = 2 * NeuronStore::kAlign;

/// Where the tests run: a build folder, which lies on a disk as a rule.
std::string disk() {
  return std::filesystem::current_path().string();
}

class NeuronStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto store = NeuronStore::open({disk(), 0, 1 << 20});
    if (!store.ok() && store.error().message.find("this file system") != std::string::npos)
      GTEST_SKIP() << store.error().message;
  }
};

std::byte byte_of(std::int64_t bundle, std::int64_t place) {
  return static_cast<std::byte>((bundle * 31 + place * 7) & 0xff);
}

/// Aligned memory with `count` bundles.
std::shared_ptr<std::byte> bundles_of(std::int64_t first, std::int64_t count) {
  auto* memory = static_cast<std::byte*>(
      std::aligned_alloc(static_cast<std::size_t>(NeuronStore::kAlign), static_cast<std::size_t>(count * kBytes)));
  for (std::int64_t b = 0; b < count; ++b) {
    for (std::int64_t k = 0; k < kBytes; ++k) memory[b * kBytes + k] = byte_of(first + b, k);
  }
  return {memory, [](std::byte* p) { std::free(p); }};
}

TEST_F(NeuronStoreTest, GivesBackWhatWasWritten) {
  constexpr std::int64_t kCount = 300, kSlots = 80;
  auto store = NeuronStore::open({disk(), kCount * kBytes, kSlots * kBytes});
  ASSERT_TRUE(store.ok()) << store.error().message;
  for (std::int64_t b = 0; b < kCount; b += 100) {
    const auto first = (*store)->append(bundles_of(b, 100).get(), 100, kBytes);
    ASSERT_TRUE(first.ok()) << first.error().message;
    EXPECT_EQ(*first, b * kBytes);
  }
  EXPECT_EQ((*store)->slots(), kSlots);
  const auto pool = ThreadPool::create(2);
  Random random(1);
  double bytes = 0;
  std::vector<const std::byte*> found;
  for (int round = 0; round < 200; ++round) {
    std::vector<std::int64_t> wanted;
    for (std::int64_t b = 0; b < kCount && std::ssize(wanted) < kSlots; ++b) {
      if (random.below(5) == 0) wanted.push_back(b * kBytes);
    }
    found.assign(wanted.size(), nullptr);
    (*store)->fetch(wanted, kBytes, **pool, found.data());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      for (std::int64_t k = 0; k < kBytes; k += 511)
        ASSERT_EQ(found[i][k], byte_of(wanted[i] / kBytes, k)) << round << " " << wanted[i];
    }
    const double read = (*store)->bytes_read() - bytes;
    EXPECT_LE(read, static_cast<double>(std::ssize(wanted) * kBytes));
    bytes += read;
    // What was just read is there.
    (*store)->fetch(wanted, kBytes, **pool, found.data());
    ASSERT_EQ((*store)->bytes_read(), bytes);
  }
  EXPECT_GT(bytes, 100 * kBytes) << "else nothing was ever read again";
}

TEST_F(NeuronStoreTest, SaysWhatIsWrong) {
  const auto refused = [](const NeuronStoreOptions& options) {
    const auto store = NeuronStore::open(options);
    return store.ok() ? std::string() : store.error().message;
  };
  EXPECT_EQ(refused({"/no/such/place", 0, 1 << 20}),
            "the file for weights in /no/such/place: No such file or directory");
  EXPECT_NE(refused({"/proc", 0, 1 << 20}), "");
  EXPECT_NE(refused({disk(), std::uint64_t{1} << 60, 1 << 20}).find("there is no room for 1073741824.00 GiB"),
            std::string::npos)
      << refused({disk(), std::uint64_t{1} << 60, 1 << 20});
  const std::string file = testing::TempDir() + "no_directory";
  std::ofstream(file) << "x";
  EXPECT_NE(refused({file, 0, 1 << 20}), "");
  auto store = NeuronStore::open({disk(), 0, (NeuronStore::kLeast - 1) * kBytes});
  ASSERT_TRUE(store.ok()) << store.error().message;
  const auto bundles = bundles_of(0, 1);
  EXPECT_EQ((*store)->append(bundles.get(), 1, kBytes).error().message,
            "504.0 KiB of memory for weights that are on disk do not hold 64 neurons of 8.0 KiB");
}

TEST_F(NeuronStoreTest, LeavesNoFile) {
  const auto files = [] {
    return std::distance(std::filesystem::directory_iterator(disk()), std::filesystem::directory_iterator());
  };
  const auto before = files();
  const auto store = NeuronStore::open({disk(), 1 << 20, 1 << 20});
  ASSERT_TRUE(store.ok()) << store.error().message;
  EXPECT_EQ(files(), before);
}

TEST_F(NeuronStoreTest, ADiskThatFailsGivesZerosAndAReason) {
  constexpr std::int64_t kCount = 100;
  auto store = NeuronStore::open({disk(), kCount * kBytes, NeuronStore::kLeast * kBytes});
  ASSERT_TRUE(store.ok()) << store.error().message;
  ASSERT_TRUE((*store)->append(bundles_of(0, kCount).get(), kCount, kBytes).ok());
  UnnamedFile file(disk());
  ASSERT_TRUE(file.found());
  const auto pool = ThreadPool::create(2);
  const auto fetch = [&](std::initializer_list<std::int64_t> bundles) {
    std::vector<std::int64_t> offsets;
    for (const std::int64_t bundle : bundles) offsets.push_back(bundle * kBytes);
    std::vector<const std::byte*> found(offsets.size());
    (*store)->fetch(offsets, kBytes, **pool, found.data());
    std::vector<std::byte> bytes;
    for (const std::byte* bundle : found) bytes.push_back(bundle[5]);
    return bytes;
  };
  using Bytes = std::vector<std::byte>;
  EXPECT_EQ(fetch({3, 9}), (Bytes{byte_of(3, 5), byte_of(9, 5)}));
  EXPECT_TRUE((*store)->take_failure().ok());

  ASSERT_TRUE(file.cut(10 * kBytes + kBytes / 2));
  const double read = (*store)->bytes_read();
  EXPECT_EQ(fetch({2, 3, 10, 50}), Bytes(4));
  EXPECT_EQ(fetch({3}), Bytes(1)) << "what is there too, until somebody has been told";
  EXPECT_EQ((*store)->bytes_read(), read);
  const Status failure = (*store)->take_failure();
  ASSERT_FALSE(failure.ok());
  EXPECT_EQ(failure.error().message,
            "weights could not be read from the file in " + disk() +
                ": the file has become shorter; check that disk, or name a directory on another one with "
                "--weight-file");
  EXPECT_TRUE((*store)->take_failure().ok()) << "told once";
  // What is left of the file can be read still, and all of it when it is whole again.
  EXPECT_EQ(fetch({2, 3}), (Bytes{byte_of(2, 5), byte_of(3, 5)}));
  EXPECT_TRUE((*store)->take_failure().ok());
  EXPECT_EQ(fetch({50}), Bytes(1));
  EXPECT_FALSE((*store)->take_failure().ok());
  ASSERT_TRUE(file.restore());
  EXPECT_EQ(fetch({10, 50, 3}), (Bytes{byte_of(10, 5), byte_of(50, 5), byte_of(3, 5)}));
  EXPECT_TRUE((*store)->take_failure().ok());
}

/// Rows of prompts read all neurons, more than memory for them holds: in parts.
TEST_F(NeuronStoreTest, AnFfnOnDiskHasTheBitsOfOneInMemory) {
  constexpr std::int64_t kWidth = 200, kNeurons = 333;
  Random random(3);
  const Ffn ffn(random, kWidth, kNeurons);
  for (const char* format : {"", "bf16", "int8"}) {
    LinearFormat of_weights{.codes = code_format_from_name(format)};
    if (!of_weights.codes && *format != '\0') of_weights.input = DType::bf16;
    NeuronSource source{.gate_up = source_of(ffn.gate_up, 2 * kNeurons, kWidth),
                        .down = source_of(ffn.down, kWidth, kNeurons),
                        .gate_up_format = of_weights,
                        .down_format = of_weights,
                        .choice = {.method = NeuronMethod::imposed, .density = 0.3, .layer = 1}};
    const auto memory = cpu_backend(best_isa_level(), 2), on_disk = cpu_backend(best_isa_level(), 2);
    auto all = memory->pack_neurons(source);
    ASSERT_TRUE(all.ok());
    source.choice.resident = 40;
    ASSERT_TRUE(on_disk->open_neuron_store({disk(), 0, 70 * 4096}).ok());
    auto some = on_disk->pack_neurons(source);
    ASSERT_TRUE(some.ok()) << some.error().message;
    EXPECT_EQ((*some)->bytes(), on_disk->packed_neuron_bytes(source));
    EXPECT_LE((*some)->bytes(), 41 * 4096) << "those that are in memory, and scales";
    const auto run = [&](Backend& backend, const PackedNeurons& weights, const std::vector<float>& x, bool answers) {
      const std::int64_t rows = std::ssize(x) / kWidth;
      ForwardBatch batch;
      batch.token_ids.resize(static_cast<std::size_t>(rows));
      batch.sequences.push_back({.first_row = 0, .rows = static_cast<std::int32_t>(rows), .first_position = 5});
      for (std::int64_t r = 0; r < rows; ++r) batch.positions.push_back(5 + r);
      if (answers) batch.sequences.front().answer_begin = 5;
      backend.begin(batch);
      std::vector<float> scratch(static_cast<std::size_t>(rows * 2 * kNeurons)), out(x.size());
      backend.gated_ffn(
          {{nullptr, ffn.gate_up_bias.data()}, {nullptr, ffn.down_bias.data()}, Activation::silu, 0.0f, &weights},
          x.data(), rows, scratch.data(), out.data());
      return out;
    };
    for (const std::int64_t rows : {1, 3, 9, 100}) {
      for (const bool answers : {true, false}) {
        const std::vector<float> x = random.normals(rows * kWidth);
        EXPECT_TRUE(identical(run(*on_disk, **some, x, answers), run(*memory, **all, x, answers)))
            << format << " " << rows << " " << answers;
      }
    }
    EXPECT_GT(on_disk->skip_counts().disk_bytes, 0);
    EXPECT_EQ(memory->skip_counts().disk_bytes, 0);
  }
}

}  // namespace
}  // namespace millrace
