// Rows of answers that leave out inputs: to the bit what dense products make of rows with zeros, at every level, in
// every format, alone and in company; and close to the reference.

#include <limits>

#include "backend/cpu/input_rows.h"
#include "backend/reference/reference_backend.h"
#include "backend/rows_world.h"
#include "quant/codes.h"

namespace millrace {
namespace {

class CpuSkip : public CpuLevelTest {};

/// A row each of a sequence of its own, as far as `answers` says of an answer.
ForwardBatch batch_of(const std::vector<bool>& answers) {
  ForwardBatch batch;
  for (const bool answer : answers) {
    const auto row = static_cast<std::int32_t>(batch.token_ids.size());
    batch.token_ids.push_back(0);
    batch.positions.push_back(7);
    batch.sequences.push_back({.first_row = row, .rows = 1, .first_position = 7});
    if (answer) batch.sequences.back().answer_begin = 7;
  }
  return batch;
}

std::vector<float> masked(std::vector<float> x, const std::vector<bool>& answers, float threshold) {
  const std::size_t cols = x.size() / answers.size();
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (answers[i / cols] && std::fabs(x[i]) <= threshold) x[i] = 0.0f;
  }
  return x;
}

struct NamedFormat {
  const char* name;
  LinearFormat format;
};

std::vector<NamedFormat> formats() {
  std::vector<NamedFormat> all{{"f32", {}}, {"bf16", {.input = DType::bf16}}};
  for (const char* name : {"int8", "int4", "int4.g32", "int4.g64.sym", "int4.g32.a16", "int8.a16", "nvfp4", "mxfp4",
                           "fp8_e4m3", "fp8_e4m3.a16"}) {
    all.push_back({name, {.codes = code_format_from_name(name)}});
  }
  return all;
}

/// Which rows are of answers. The first is of an answer alone.
std::vector<std::vector<bool>> companies() {
  std::vector<std::vector<bool>> all{{true}, {true, true}, {true, false, true}, {true, true, true, true}};
  for (const std::size_t rows : {5, 14, 40}) {
    all.emplace_back(rows);
    for (std::size_t r = 0; r < rows; ++r) all.back()[r] = r % 3 != 1;
  }
  return all;
}

struct Shape {
  std::int64_t rows, cols;
};
// Remainders of panels, of wide tiles, of blocks and groups of inputs.
constexpr Shape kShapes[] = {{1, 1}, {16, 64}, {33, 100}, {300, 257}, {1040, 160}};
// Of normal numbers: none, some, most, all.
constexpr float kThresholds[] = {0.0f, 0.3f, 0.7f, 2.0f, 100.0f};

std::unique_ptr<PackedMatrix> with_skip(Backend& backend, const std::vector<float>& weights, const Shape& shape,
                                        LinearFormat format, float threshold) {
  format.skip.threshold = threshold;
  EXPECT_EQ(backend.packed_bytes(source_of(weights, shape.rows, shape.cols), format),
            packed(backend, weights, shape.rows, shape.cols, format)->bytes());
  return packed(backend, weights, shape.rows, shape.cols, format);
}

TEST_P(CpuSkip, GivesTheBitsOfDenseProductsWithZeros) {
  const auto backend = cpu_backend(GetParam());
  Random random(1);
  for (const auto& [name, format] : formats()) {
    for (const Shape& shape : kShapes) {
      const std::vector<float> weights = random.normals(shape.rows * shape.cols), bias = random.normals(shape.rows);
      const auto dense = packed(*backend, weights, shape.rows, shape.cols, format);
      for (const float threshold : kThresholds) {
        const auto skipping = with_skip(*backend, weights, shape, format, threshold);
        for (const std::vector<bool>& answers : companies()) {
          if (answers.size() > 4 && threshold != 0.7f && threshold != 2.0f) continue;
          SCOPED_TRACE(fmt::format("{} {} x {}, {} rows, threshold {}", name, shape.rows, shape.cols, answers.size(),
                                   threshold));
          const auto count = static_cast<std::int64_t>(answers.size());
          const std::vector<float> x = random.normals(count * shape.cols);
          backend->begin(batch_of(answers));
          ASSERT_TRUE(identical(multiply(*backend, *skipping, x, bias.data()),
                                multiply(*backend, *dense, masked(x, answers, threshold), bias.data())));
        }
      }
    }
  }
}

/// How many lists of kept inputs a product is made with; none where the dense kernels make it.
TEST_P(CpuSkip, ManyRowsOrInputsAreLeftToTheDenseKernels) {
  const auto backend = cpu_backend(GetParam());
  const auto pool = ThreadPool::create(1);
  ASSERT_TRUE(pool.ok());
  const KernelTable kernels = kernel_table(GetParam());
  InputRows inputs(kernels, **pool);
  const Shape shape{64, 400};
  const std::vector<float> weights(64 * 400, 1.0f);
  for (const LinearFormat& format : {LinearFormat{}, LinearFormat{.input = DType::bf16}}) {
    const auto matrix = with_skip(*backend, weights, shape, format, 0.5f);
    std::vector<float> out(20 * 64);
    // Of each row a tenth of the inputs is kept: its own, or that of the first row.
    const auto lists = [&](std::int64_t rows, bool own, bool answers = true) {
      std::vector<float> x(static_cast<std::size_t>(rows * shape.cols), 0.1f);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t first = own ? r % 10 * 40 : 0;
        std::fill_n(x.begin() + r * shape.cols + first, 40, 1.0f);
      }
      inputs.begin(batch_of(std::vector<bool>(static_cast<std::size_t>(rows), answers)));
      return inputs
          .prepare({static_cast<const CpuMatrix*>(matrix.get()), nullptr, x.data(), shape.cols, rows, out.data(), 64})
          .kept.size();
    };
    EXPECT_EQ(lists(1, true), 1u);
    EXPECT_EQ(lists(4, true), 1u);
    EXPECT_EQ(lists(5, true), 2u);
    EXPECT_EQ(lists(12, true), 3u);
    EXPECT_EQ(lists(16, false), 4u);
    EXPECT_EQ(lists(17, false), 0u);        // too many
    EXPECT_EQ(lists(12, true, false), 0u);  // rows of prompts keep all
  }
}

TEST(SkipChoice, GoesByWhatAllGroupsOfRowsKeep) {
  for (const std::optional<CodeKind> codes : {std::optional<CodeKind>(), std::optional(CodeKind::int8)}) {
    EXPECT_TRUE(skipping_pays(codes, 0.0));
    EXPECT_TRUE(skipping_pays(codes, 1.0)) << "one group of rows, whatever it keeps";
    EXPECT_FALSE(skipping_pays(codes, 2.1));
  }
}

TEST_P(CpuSkip, ThresholdZeroIsDense) {
  const auto backend = cpu_backend(GetParam());
  Random random(2);
  const Shape shape{530, 160};
  for (const auto& [name, format] : formats()) {
    const std::vector<float> weights = random.normals(shape.rows * shape.cols), x = random.normals(3 * shape.cols);
    const auto dense = packed(*backend, weights, shape.rows, shape.cols, format);
    const auto skipping = with_skip(*backend, weights, shape, format, 0.0f);
    backend->begin(batch_of({true, true, true}));
    EXPECT_TRUE(identical(multiply(*backend, *skipping, x), multiply(*backend, *dense, x))) << name;
  }
}

TEST_P(CpuSkip, ARowHasTheSameBitsAloneInCompanyAndWithThreads) {
  const auto backend = cpu_backend(GetParam()), threads = cpu_backend(GetParam(), 3);
  Random random(3);
  const Shape shape{1100, 384};
  for (const auto& [name, format] : formats()) {
    const std::vector<float> weights = random.normals(shape.rows * shape.cols);
    const auto one = with_skip(*backend, weights, shape, format, 0.7f),
               many = with_skip(*threads, weights, shape, format, 0.7f);
    const std::vector<float> first = random.normals(shape.cols);
    backend->begin(batch_of({true}));
    const std::vector<float> alone = multiply(*backend, *one, first);
    for (const std::vector<bool>& answers : companies()) {
      std::vector<float> x = first;
      const std::vector<float> others = random.normals(static_cast<std::int64_t>(answers.size() - 1) * shape.cols);
      x.insert(x.end(), others.begin(), others.end());
      backend->begin(batch_of(answers));
      threads->begin(batch_of(answers));
      EXPECT_TRUE(identical(part(multiply(*backend, *one, x), 0, shape.rows), alone)) << name << answers.size();
      EXPECT_TRUE(identical(part(multiply(*threads, *many, x), 0, shape.rows), alone)) << name << answers.size();
    }
  }
}

TEST_P(CpuSkip, IsCloseToTheReference) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(4);
  const Shape shape{300, 256};
  for (const auto& [name, format] : formats()) {
    const std::vector<float> weights = random.normals(shape.rows * shape.cols), x = random.normals(2 * shape.cols);
    const auto ours = with_skip(*backend, weights, shape, format, 0.7f),
               theirs = with_skip(*reference, weights, shape, format, 0.7f);
    for (const auto& b : {backend.get(), reference.get()}) b->begin(batch_of({true, false}));
    EXPECT_TRUE(close(multiply(*backend, *ours, x), multiply(*reference, *theirs, x), 1e-4f)) << name;
    EXPECT_EQ(backend->skip_counts().kept, reference->skip_counts().kept) << name;
    EXPECT_EQ(backend->skip_counts().all, reference->skip_counts().all) << name;
  }
}

TEST_P(CpuSkip, DrawsTheInputsThatTheReferenceDraws) {
  const auto backend = cpu_backend(GetParam());
  const auto reference = make_reference_backend();
  Random random(6);
  const Shape shape{300, 257};
  const DrawnInputs drawn{.density = 0.5, .key = 11};
  for (const auto& [name, format] : formats()) {
    const std::vector<float> weights = random.normals(shape.rows * shape.cols);
    const auto dense = packed(*backend, weights, shape.rows, shape.cols, format);
    LinearFormat skipping = format;
    skipping.skip.drawn = drawn;
    const auto ours = packed(*backend, weights, shape.rows, shape.cols, skipping),
               theirs = packed(*reference, weights, shape.rows, shape.cols, skipping);
    for (const std::vector<bool>& answers : companies()) {
      const std::vector<float> x = random.normals(static_cast<std::int64_t>(answers.size()) * shape.cols);
      std::vector<float> zeroed = x;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto row = static_cast<std::int64_t>(i) / shape.cols, input = static_cast<std::int64_t>(i) % shape.cols;
        if (answers[static_cast<std::size_t>(row)] && !drawn.keeps(7, input)) zeroed[i] = 0.0f;
      }
      for (const auto& b : {backend.get(), reference.get()}) b->begin(batch_of(answers));
      const std::vector<float> out = multiply(*backend, *ours, x);
      EXPECT_TRUE(identical(out, multiply(*backend, *dense, zeroed))) << name;
      if (answers.size() > 4) continue;
      EXPECT_TRUE(close(out, multiply(*reference, *theirs, x), 1e-4f)) << name;
    }
  }
}

TEST_P(CpuSkip, CountsWhatItKeeps) {
  const auto backend = cpu_backend(GetParam());
  const Shape shape{16, 5};
  const auto matrix = with_skip(*backend, std::vector<float>(80, 1.0f), shape, {}, 1.0f);
  backend->begin(batch_of({true, false}));
  multiply(*backend, *matrix, {0.5f, -1.0f, 1.5f, -2.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f});
  EXPECT_EQ(backend->skip_counts().kept, 2 * 16);
  EXPECT_EQ(backend->skip_counts().all, 5 * 16);
}

TEST_P(CpuSkip, WhatIsNoNumberIsNotLeftOut) {
  const auto backend = cpu_backend(GetParam());
  const Shape shape{16, 64};
  for (const LinearFormat& format : {LinearFormat{}, LinearFormat{.input = DType::bf16}}) {
    const auto matrix = with_skip(*backend, std::vector<float>(16 * 64, 1.0f), shape, format, 1.0f);
    std::vector<float> x(64, 0.5f);
    x[3] = std::numeric_limits<float>::quiet_NaN();
    backend->begin(batch_of({true}));
    EXPECT_TRUE(std::isnan(multiply(*backend, *matrix, x).front()));
  }
}

/// A gated FFN whose rows of answers leave out neurons, as weights are loaded for it.
GatedFfn leaving_out(Backend& backend, Ffn& weights, Activation activation, LinearFormat format, float threshold) {
  format.chosen_up = true;
  GatedFfn result = weights.on(backend, activation, true, format);
  format.chosen_up = false;
  format.skip.gate_threshold = threshold;
  weights.packed_down = packed(backend, weights.down, weights.width, weights.intermediate, format);
  result.down.weight = weights.packed_down.get();
  return result;
}

/// act(gate) * up of rows of answers, by parts, with zeros where |act(gate)| is not above the threshold.
std::vector<float> hidden_of(Backend& backend, const GatedFfn& dense, const std::vector<float>& x,
                             const std::vector<bool>& answers, float threshold) {
  const std::int64_t neurons = dense.intermediate(), rows = std::ssize(answers);
  std::vector<float> both = multiply(backend, *dense.gate_up.weight, x, dense.gate_up.bias), gate, hidden;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::vector<float> of_row = part(both, r * 2 * neurons, neurons);
    gate.insert(gate.end(), of_row.begin(), of_row.end());
  }
  hidden = gate;
  const std::vector<float> ones(gate.size(), 1.0f);
  backend.activate_multiply(dense.activation, gate.data(), ones.data(), neurons, rows, neurons);
  backend.activate_multiply(dense.activation, hidden.data(), both.data() + neurons, 2 * neurons, rows, neurons);
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    if (answers[i / static_cast<std::size_t>(neurons)] && std::fabs(gate[i]) <= threshold) hidden[i] = 0.0f;
  }
  return hidden;
}

TEST_P(CpuSkip, NeuronsWhoseGateIsSmallGiveNothing) {
  const auto backend = cpu_backend(GetParam()), threads = cpu_backend(GetParam(), 3);
  const auto reference = make_reference_backend();
  Random random(5);
  // Remainders of panels, blocks of inputs and tasks.
  for (const auto& [width, intermediate] :
       {std::pair<std::int64_t, std::int64_t>{96, 560}, {52, 200}, {20, 7}, {1100, 40}}) {
    std::vector<std::vector<bool>> companies{{true}, {true, false, true}};
    for (const std::size_t rows : {4, 9, 20}) companies.emplace_back(rows, true);
    if (width == 52) companies.emplace_back(130, false);
    for (const auto& [name, format] : formats()) {
      for (const Activation activation : kActivations) {
        if (width != 96 && activation != Activation::silu) continue;
        Ffn ffn(random, width, intermediate);
        Ffn gated = ffn.copy(), shared = ffn.copy(), of_reference = ffn.copy();
        const GatedFfn dense = ffn.on(*backend, activation, true, format);
        const GatedFfn ours = leaving_out(*backend, gated, activation, format, 0.2f),
                       theirs = leaving_out(*reference, of_reference, activation, format, 0.2f),
                       of_threads = leaving_out(*threads, shared, activation, format, 0.2f);
        for (const std::vector<bool>& answers : companies) {
          SCOPED_TRACE(fmt::format("{} activation {}, {} x {}, {} rows", name, static_cast<int>(activation), width,
                                   intermediate, answers.size()));
          const auto rows = std::ssize(answers);
          const std::vector<float> x = random.normals(rows * width);
          for (Backend* on : {backend.get(), threads.get(), reference.get()}) on->begin(batch_of(answers));
          const std::vector<float> some = run_ffn(*backend, ours, x, rows);
          EXPECT_TRUE(close(some, run_ffn(*reference, theirs, x, rows), 1e-2f));
          EXPECT_TRUE(identical(some, run_ffn(*threads, of_threads, x, rows)));
          // As a matrix it is what it was.
          EXPECT_TRUE(identical(multiply(*backend, *ours.gate_up.weight, x, ours.gate_up.bias),
                                multiply(*backend, *dense.gate_up.weight, x, dense.gate_up.bias)));
          if (!answers.front()) EXPECT_TRUE(identical(some, run_ffn(*backend, dense, x, rows))) << "prompts";
          if (activation == Activation::swiglu_clamp) continue;
          const std::vector<float> hidden = hidden_of(*backend, dense, x, answers, 0.2f);
          EXPECT_TRUE(identical(some, multiply(*backend, *dense.down.weight, hidden, dense.down.bias)));
        }
        // Nothing is left out.
        const std::vector<float> x = random.normals(width);
        backend->begin(batch_of({true}));
        EXPECT_TRUE(identical(run_ffn(*backend, leaving_out(*backend, gated, activation, format, 0.0f), x, 1),
                              run_ffn(*backend, dense, x, 1)))
            << name;
      }
    }
  }
}

/// Ups of neurons that no row keeps are no numbers: who read them would show it.
TEST_P(CpuSkip, UpsOfNeuronsThatNoRowKeepsAreNotRead) {
  const auto backend = cpu_backend(GetParam());
  Random random(6);
  constexpr std::int64_t kWidth = 96, kNeurons = 560;
  constexpr float kThreshold = 0.3f;
  for (const DType input : {DType::f32, DType::bf16}) {
    const std::vector<bool> answers{true, true};
    const std::vector<float> x = random.normals(2 * kWidth);
    Ffn ffn(random, kWidth, kNeurons), gated = ffn.copy();
    const GatedFfn dense = ffn.on(*backend, Activation::silu, true, {.input = input});
    backend->begin(batch_of(answers));
    const std::vector<float> hidden = hidden_of(*backend, dense, x, answers, kThreshold);
    const std::vector<float> expected = multiply(*backend, *dense.down.weight, hidden, dense.down.bias);
    std::int64_t left_out = 0;
    for (std::int64_t i = 0; i < kNeurons; ++i) {
      const auto neuron = static_cast<std::size_t>(i);
      if (hidden[neuron] != 0.0f || hidden[neuron + kNeurons] != 0.0f) continue;
      ++left_out;
      std::fill_n(gated.gate_up.begin() + (kNeurons + i) * kWidth, kWidth, std::numeric_limits<float>::quiet_NaN());
    }
    EXPECT_GT(left_out, kNeurons / 10);
    const GatedFfn some = leaving_out(*backend, gated, Activation::silu, {.input = input}, kThreshold);
    EXPECT_TRUE(identical(run_ffn(*backend, some, x, 2), expected));
    backend->begin(batch_of({false, true}));
    EXPECT_TRUE(std::isnan(run_ffn(*backend, some, x, 2).front())) << "a prompt reads all";
  }
}

/// A gate that is no number is not small.
TEST_P(CpuSkip, GatesThatAreNoNumbersLeaveNothingOut) {
  const auto backend = cpu_backend(GetParam());
  Random random(7);
  Ffn ffn(random, 96, 160);
  std::vector<float> x = random.normals(96);
  x[50] = std::numeric_limits<float>::quiet_NaN();
  backend->begin(batch_of({true}));
  const GatedFfn some = leaving_out(*backend, ffn, Activation::silu, {}, 0.3f);
  EXPECT_TRUE(std::isnan(run_ffn(*backend, some, x, 1).front()));
}

MILLRACE_ON_EACH_LEVEL(CpuSkip);

}  // namespace
}  // namespace millrace
