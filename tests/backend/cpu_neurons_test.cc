// Rows of answers that compute some neurons of a gated FFN: close to the reference at every level and in every format,
// with the same bits alone, in company and with threads; and what is not chosen is not read.

#include <limits>

#include "backend/reference/reference_backend.h"
#include "backend/rows_world.h"
#include "core/float16.h"
#include "quant/codes.h"

namespace millrace {
namespace {

class CpuNeuronsTest : public CpuLevelTest {};

constexpr std::int64_t kRank = 5;

/// A row each of a sequence of its own at position 7 + row, as far as `answers` says of an answer.
ForwardBatch batch_of(const std::vector<bool>& answers, std::int64_t first_position = 7) {
  ForwardBatch batch;
  for (const bool answer : answers) {
    const auto row = static_cast<std::int32_t>(batch.token_ids.size());
    const std::int64_t position = first_position + row;
    batch.token_ids.push_back(0);
    batch.positions.push_back(position);
    batch.sequences.push_back({.first_row = row, .rows = 1, .first_position = position});
    if (answer) batch.sequences.back().answer_begin = position;
  }
  return batch;
}

struct NamedFormat {
  const char* name;
  LinearFormat format;
};

/// Those that lie neuron by neuron, and two that do not.
std::vector<NamedFormat> formats() {
  std::vector<NamedFormat> all{{"f32", {}}, {"bf16", {.input = DType::bf16}}};
  for (const char* name : {"int8", "int8.a16", "int4.g32"}) {
    all.push_back({name, {.codes = code_format_from_name(name)}});
  }
  return all;
}

/// A predictor that says what one input says: neuron i is predicted where x[i % inputs] is above a tenth.
std::shared_ptr<const NeuronProfile> profile_of(std::int64_t inputs, std::int64_t neurons) {
  auto profile = std::make_shared<NeuronProfile>();
  profile->inputs = inputs;
  profile->rank = kRank;
  profile->hot = 0.9;
  profile->in.assign(static_cast<std::size_t>(kRank * inputs), 0);
  profile->out.assign(static_cast<std::size_t>(neurons * kRank), 0);
  profile->bias.assign(static_cast<std::size_t>(neurons), -0.1f);
  for (std::int64_t j = 0; j < kRank; ++j) profile->in[static_cast<std::size_t>(j * inputs + j)] = float_to_bf16(1.0f);
  for (std::int64_t i = 0; i < neurons; ++i) {
    profile->out[static_cast<std::size_t>(i * kRank + i % kRank)] = float_to_bf16(1.0f);
    profile->frequency.push_back(static_cast<float>(i * 37 % neurons) / static_cast<float>(neurons));
  }
  return profile;
}

struct Case {
  const char* name;
  NeuronChoice choice;
  Activation activation;
};

std::vector<Case> cases(std::int64_t inputs, std::int64_t neurons) {
  NeuronChoice predicted{.method = NeuronMethod::predicted};
  predicted.profile = profile_of(inputs, neurons);
  return {{"exact relu", {}, Activation::relu},
          {"exact relu2", {}, Activation::relu2},
          {"predicted", predicted, Activation::relu2},
          {"imposed", {.method = NeuronMethod::imposed, .density = 0.2, .layer = 3}, Activation::silu}};
}

struct Choosing {
  std::unique_ptr<PackedNeurons> weights;
  GatedFfn ffn;
};

Choosing choosing(Backend& backend, const Ffn& ffn, const Case& c, const LinearFormat& format, bool bias = true) {
  const NeuronSource source{.gate_up = source_of(ffn.gate_up, 2 * ffn.intermediate, ffn.width),
                            .down = source_of(ffn.down, ffn.width, ffn.intermediate),
                            .gate_up_format = format,
                            .down_format = format,
                            .choice = c.choice};
  auto packed = backend.pack_neurons(source);
  MILLRACE_CHECK(packed.ok(), "{}", packed.ok() ? "" : packed.error().message);
  EXPECT_EQ((*packed)->bytes(), backend.packed_neuron_bytes(source));
  Choosing result{.weights = std::move(*packed), .ffn = {}};
  result.ffn = {{nullptr, bias ? ffn.gate_up_bias.data() : nullptr},
                {nullptr, bias ? ffn.down_bias.data() : nullptr},
                c.activation,
                0.0f,
                result.weights.get()};
  return result;
}

std::vector<float> run(Backend& backend, const Choosing& c, const std::vector<float>& x, std::int64_t rows) {
  std::vector<float> scratch(static_cast<std::size_t>(rows * 2 * c.weights->neurons()));
  std::vector<float> out(static_cast<std::size_t>(rows * c.weights->outputs()), -1.0f);
  backend.gated_ffn(c.ffn, x.data(), rows, scratch.data(), out.data());
  return out;
}

struct Shape {
  std::int64_t width, neurons;
};
// Remainders of blocks, lanes and tasks.
constexpr Shape kShapes[] = {{20, 7}, {96, 160}, {200, 333}, {1100, 64}};

std::vector<std::vector<bool>> companies() {
  std::vector<std::vector<bool>> all{{true}, {true, true}, {true, false, true}, {true, true, true, true}};
  for (const std::size_t rows : {5, 40}) {
    all.emplace_back(rows);
    for (std::size_t r = 0; r < rows; ++r) all.back()[r] = r % 3 != 1;
  }
  return all;
}

TEST_P(CpuNeuronsTest, IsCloseToTheReference) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(1);
  for (const Shape& shape : kShapes) {
    const Ffn ffn(random, shape.width, shape.neurons);
    for (const auto& [name, format] : formats()) {
      for (const Case& c : cases(shape.width, shape.neurons)) {
        const Choosing ours = choosing(*backend, ffn, c, format), theirs = choosing(*reference, ffn, c, format);
        for (const std::vector<bool>& answers : companies()) {
          SCOPED_TRACE(fmt::format("{} {} {} x {}, {} rows", name, c.name, shape.width, shape.neurons, answers.size()));
          const auto rows = static_cast<std::int64_t>(answers.size());
          const std::vector<float> x = random.normals(rows * shape.width);
          for (Backend* on : {backend.get(), reference.get()}) on->begin(batch_of(answers));
          // Where a number that is rounded to a code lies on a border, the two may take different ones.
          ASSERT_TRUE(close(run(*backend, ours, x, rows), run(*reference, theirs, x, rows), 2e-2f));
        }
      }
    }
  }
}

TEST_P(CpuNeuronsTest, ARowHasTheSameBitsAloneInCompanyAndWithThreads) {
  const auto backend = cpu_backend(GetParam()), threads = cpu_backend(GetParam(), 3);
  Random random(2);
  const Shape shape{1100, 333};
  const Ffn ffn(random, shape.width, shape.neurons);
  for (const auto& [name, format] : formats()) {
    for (const Case& c : cases(shape.width, shape.neurons)) {
      const Choosing one = choosing(*backend, ffn, c, format), many = choosing(*threads, ffn, c, format);
      const std::vector<float> first = random.normals(shape.width);
      backend->begin(batch_of({true}));
      const std::vector<float> alone = run(*backend, one, first, 1);
      for (const std::vector<bool>& answers : companies()) {
        SCOPED_TRACE(fmt::format("{} {}, {} rows", name, c.name, answers.size()));
        const auto rows = static_cast<std::int64_t>(answers.size());
        std::vector<float> x = first;
        const std::vector<float> others = random.normals((rows - 1) * shape.width);
        x.insert(x.end(), others.begin(), others.end());
        backend->begin(batch_of(answers));
        threads->begin(batch_of(answers));
        EXPECT_TRUE(identical(part(run(*backend, one, x, rows), 0, shape.width), alone));
        EXPECT_TRUE(identical(part(run(*threads, many, x, rows), 0, shape.width), alone));
      }
    }
  }
}

/// Levels of one numeric class may take each other's place.
TEST_P(CpuNeuronsTest, HasTheBitsOfItsNumericClass) {
  const auto backend = cpu_backend(GetParam());
  for (const IsaLevel level : kIsaLevels) {
    if (level == GetParam() || !isa_available(level)) continue;
    const auto other = cpu_backend(level);
    if (other->numeric_class() != backend->numeric_class()) continue;
    Random random(8);
    const Ffn ffn(random, 200, 333);
    const std::vector<float> x = random.normals(5 * 200);
    for (const auto& [name, format] : formats()) {
      for (const Case& c : cases(200, 333)) {
        for (Backend* on : {backend.get(), other.get()}) on->begin(batch_of({true, false, true, true, true}));
        EXPECT_TRUE(identical(run(*backend, choosing(*backend, ffn, c, format), x, 5),
                              run(*other, choosing(*other, ffn, c, format), x, 5)))
            << name << " " << c.name << " " << isa_level_name(level);
      }
    }
  }
}

/// Where only what is zero is left out, nothing is: the bits are those of a choice of all neurons.
TEST_P(CpuNeuronsTest, NothingIsLostOfNeuronsThatAreZero) {
  const auto backend = cpu_backend(GetParam());
  Random random(3);
  const Ffn ffn(random, 200, 333);
  for (const auto& [name, format] : formats()) {
    for (const Case& c : cases(200, 333)) {
      if (c.choice.method != NeuronMethod::exact) continue;
      const Case all{c.name, {.method = NeuronMethod::imposed, .density = 1.0}, c.activation};
      const std::vector<float> x = random.normals(3 * 200);
      backend->begin(batch_of({true, true, true}));
      EXPECT_TRUE(identical(run(*backend, choosing(*backend, ffn, c, format), x, 3),
                            run(*backend, choosing(*backend, ffn, all, format), x, 3)))
          << name << " " << c.name;
    }
  }
}

/// Sums of codes are exact, so that rows of answers have the bits of dense weights too where nothing is left out.
TEST_P(CpuNeuronsTest, RowsOfAnswersHaveTheBitsOfDenseCodes) {
  const auto backend = cpu_backend(GetParam());
  Random random(10);
  const LinearFormat format{.codes = code_format_from_name("int8")};
  for (const Shape& shape : kShapes) {
    Ffn ffn(random, shape.width, shape.neurons);
    for (const Case& c : cases(shape.width, shape.neurons)) {
      if (c.choice.method != NeuronMethod::exact) continue;
      for (const std::int64_t rows : {1, 2, 7, 33}) {
        const std::vector<float> x = random.normals(rows * shape.width);
        backend->begin(batch_of(std::vector<bool>(static_cast<std::size_t>(rows), true)));
        std::vector<float> dense(x.size()), space(static_cast<std::size_t>(rows * 2 * shape.neurons));
        backend->gated_ffn(ffn.on(*backend, c.activation, true, format), x.data(), rows, space.data(), dense.data());
        EXPECT_TRUE(identical(run(*backend, choosing(*backend, ffn, c, format), x, rows), dense))
            << c.name << " " << shape.width << " x " << shape.neurons << " " << rows;
      }
    }
  }
}

/// Alone, beside rows of answers, and more than kernels take at once.
TEST_P(CpuNeuronsTest, RowsOfPromptsHaveTheBitsOfDenseWeights) {
  const auto backend = cpu_backend(GetParam()), threads = cpu_backend(GetParam(), 3);
  Random random(9);
  for (const Shape& shape : kShapes) {
    Ffn ffn(random, shape.width, shape.neurons);
    for (const auto& [name, format] : formats()) {
      for (const Case& c : cases(shape.width, shape.neurons)) {
        const GatedFfn of_matrices = ffn.on(*backend, c.activation, true, format);
        const Choosing weights = choosing(*backend, ffn, c, format), shared = choosing(*threads, ffn, c, format);
        for (const std::int64_t rows : {1, 2, 7, 130}) {
          SCOPED_TRACE(fmt::format("{} {} {} x {}, {} rows", name, c.name, shape.width, shape.neurons, rows));
          const std::vector<float> x = random.normals(rows * shape.width);
          std::vector<bool> answers(static_cast<std::size_t>(rows), false);
          backend->begin(batch_of(answers));
          std::vector<float> dense(x.size()), space(static_cast<std::size_t>(rows * 2 * shape.neurons));
          backend->gated_ffn(of_matrices, x.data(), rows, space.data(), dense.data());
          ASSERT_TRUE(identical(run(*backend, weights, x, rows), dense));
          for (std::size_t r = 1; r < answers.size(); r += 2) answers[r] = true;
          threads->begin(batch_of(answers));
          const std::vector<float> mixed = run(*threads, shared, x, rows);
          for (std::int64_t r = 0; r < rows; r += 2) {
            ASSERT_TRUE(identical(part(mixed, r * shape.width, shape.width), part(dense, r * shape.width, shape.width)))
                << r;
          }
        }
      }
    }
  }
}

/// Weights of neurons that no row chooses are no numbers: who read them would show it.
TEST_P(CpuNeuronsTest, WhatIsNotChosenIsNotRead) {
  const auto backend = cpu_backend(GetParam());
  Random random(4);
  const Shape shape{96, 160};
  const Case c = cases(shape.width, shape.neurons)[2];
  ASSERT_EQ(c.choice.method, NeuronMethod::predicted);
  Ffn ffn(random, shape.width, shape.neurons);
  std::vector<float> x = random.normals(shape.width);
  for (std::int64_t j = 0; j < kRank; ++j) x[static_cast<std::size_t>(j)] = j == 2 ? 1.0f : -1.0f;
  backend->begin(batch_of({true}));
  const std::vector<float> expected = run(*backend, choosing(*backend, ffn, c, {}), x, 1);
  std::int64_t chosen = 0;
  const float no_number = std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t i = 0; i < shape.neurons; ++i) {
    const bool hot = double{c.choice.profile->frequency[static_cast<std::size_t>(i)]} >= c.choice.profile->hot;
    if (hot || i % kRank == 2) {
      ++chosen;
      continue;
    }
    for (std::int64_t k = 0; k < shape.width; ++k) {
      ffn.gate_up[static_cast<std::size_t>(i * shape.width + k)] = no_number;
      ffn.gate_up[static_cast<std::size_t>((shape.neurons + i) * shape.width + k)] = no_number;
      ffn.down[static_cast<std::size_t>(k * shape.neurons + i)] = no_number;
    }
  }
  EXPECT_LT(chosen, shape.neurons / 3);
  EXPECT_TRUE(identical(run(*backend, choosing(*backend, ffn, c, {}), x, 1), expected));
  backend->begin(batch_of({false}));
  EXPECT_TRUE(std::isnan(run(*backend, choosing(*backend, ffn, c, {}), x, 1).front())) << "a prompt reads all";
}

TEST_P(CpuNeuronsTest, CountsWhatItComputes) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(5);
  const Ffn ffn(random, 96, 160);
  for (const Case& c : cases(96, 160)) {
    const std::vector<float> x = random.normals(2 * 96);
    for (Backend* on : {backend.get(), reference.get()}) {
      on->begin(batch_of({true, false}));
      run(*on, choosing(*on, ffn, c, {}), x, 2);
    }
    EXPECT_EQ(backend->skip_counts().all, reference->skip_counts().all) << c.name;
    EXPECT_EQ(backend->skip_counts().kept, reference->skip_counts().kept) << c.name;
  }
  EXPECT_EQ(backend->skip_counts().all, 4 * 3 * 96 * 160);
  EXPECT_LT(backend->skip_counts().kept, 0.75 * backend->skip_counts().all);
}

TEST_P(CpuNeuronsTest, WhatIsNoNumberIsNotLeftOut) {
  const auto backend = cpu_backend(GetParam());
  Random random(6);
  const Ffn ffn(random, 96, 160);
  std::vector<float> x = random.normals(96);
  x[50] = std::numeric_limits<float>::quiet_NaN();
  for (const Case& c : cases(96, 160)) {
    if (c.choice.method == NeuronMethod::predicted) continue;  // who compares with it chooses nothing
    backend->begin(batch_of({true}));
    EXPECT_TRUE(std::isnan(run(*backend, choosing(*backend, ffn, c, {}), x, 1).front())) << c.name;
  }
}

TEST_P(CpuNeuronsTest, AWeightThatCannotBeRoundedIsRefused) {
  const auto backend = cpu_backend(GetParam());
  Random random(7);
  Ffn ffn(random, 96, 160);
  ffn.down[17] = std::numeric_limits<float>::infinity();
  const LinearFormat format{.codes = code_format_from_name("int8")};
  const auto packed = backend->pack_neurons({.gate_up = source_of(ffn.gate_up, 320, 96),
                                             .down = source_of(ffn.down, 96, 160),
                                             .gate_up_format = format,
                                             .down_format = format,
                                             .choice = {}});
  ASSERT_FALSE(packed.ok());
  EXPECT_EQ(packed.error().message, "weight of output 0 is not finite: it cannot be rounded to int8");
}

MILLRACE_ON_EACH_LEVEL(CpuNeuronsTest);

TEST(ImposedNeurons, HaveTheDensityAndDifferByRowAndLayer) {
  std::int64_t fired = 0, both = 0, layers = 0;
  constexpr std::int64_t kNeurons = 8192, kPositions = 20;
  for (std::int64_t t = 0; t < kPositions; ++t) {
    for (std::int64_t i = 0; i < kNeurons; ++i) {
      const bool fires = imposed_fires(0, i, t, 0.1);
      fired += fires ? 1 : 0;
      both += fires && imposed_fires(0, i, t + 1, 0.1) ? 1 : 0;
      layers += fires && imposed_fires(1, i, t, 0.1) ? 1 : 0;
    }
  }
  constexpr double kAll = static_cast<double>(kNeurons * kPositions);
  EXPECT_NEAR(static_cast<double>(fired) / kAll, 0.1, 0.003);
  EXPECT_NEAR(static_cast<double>(both) / kAll, 0.01, 0.002);
  EXPECT_NEAR(static_cast<double>(layers) / kAll, 0.01, 0.002);
}

}  // namespace
}  // namespace millrace
