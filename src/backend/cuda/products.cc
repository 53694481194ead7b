#include "backend/cuda/products.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "core/check.h"

namespace millrace::cuda {

namespace {

RoundLaunch round_launch(const CudaMatrix::Segment& segment, const float* x, std::int64_t x_stride, std::int64_t rows) {
  RoundLaunch launch = {};
  launch.x = x;
  launch.x_stride = x_stride;
  launch.rows = rows;
  launch.cols = segment.view.cols;
  launch.order = segment.order;
  launch.rounding = segment.plan.rounding;
  launch.group = segment.plan.input_group;
  return launch;
}

const Linear& layer_of(const GatedFfn& ffn, bool down) {
  return down ? ffn.down : ffn.gate_up;
}

}  // namespace

ProductKernel Products::kernel_for(const CudaMatrix::Segment& segment, std::int64_t rows) const {
  const Device& device = step_->device();
  return choose_product(device.capability(), device.multiprocessors(), segment.view, segment.plan.rounding, rows);
}

/// Inputs of a segment as numbers in rows, rounded; x itself where nothing is to be done.
std::pair<const float*, std::int64_t> Products::rounded(const CudaMatrix::Segment& segment, const float* x,
                                                        std::int64_t x_stride, std::int64_t rows) {
  if (segment.plan.rounding == Rounding::none && segment.order == nullptr) return {x, x_stride};
  RoundLaunch launch = round_launch(segment, x, x_stride, rows);
  launch.values = step_->floats(values_, rows * segment.view.cols, "inputs of a product");
  step_->add(round_inputs, launch);
  return {launch.values, segment.view.cols};
}

/// Inputs in tiles for the launch's kernel.
void Products::round_to_tiles(RoundLaunch inputs, MatmulLaunch& launch) {
  const std::int64_t groups = inputs.group == 0 ? 1 : (inputs.cols + inputs.group - 1) / inputs.group;
  inputs.core_matrices = uses_wgmma(launch.kernel);
  const auto bytes =
      static_cast<std::size_t>(input_tile_bytes(inputs.rounding, inputs.core_matrices, inputs.rows, inputs.cols));
  inputs.tiles = step_->workspace(tiles_, bytes, "inputs of a product");
  inputs.scales = step_->floats(scales_, inputs.rows * groups, "scales of inputs");
  launch.tiles = inputs.tiles;
  launch.input_scales = inputs.scales;
  launch.input_group = inputs.group;
  if (!step_->round_in_norm(inputs)) step_->add(round_inputs, inputs);
}

void Products::multiply(const Linear& linear, const float* x, std::int64_t x_stride, std::int64_t rows, float* out,
                        std::int64_t out_stride, const RoundLaunch* gate) {
  if (rows == 0) return;
  for (const CudaMatrix::Segment& segment : as_cuda(*linear.weight).segments()) {
    MatmulLaunch launch = {};
    launch.kernel = kernel_for(segment, rows);
    launch.weight = segment.view;
    launch.rounding = segment.plan.rounding;
    launch.rows = rows;
    launch.out = out + segment.plan.first_row;
    launch.out_stride = out_stride;
    launch.bias = linear.bias != nullptr ? linear.bias + segment.plan.first_row : nullptr;
    if (launch.kernel == ProductKernel::dot) {
      std::tie(launch.x, launch.x_stride) = rounded(segment, x, x_stride, rows);
    } else {
      RoundLaunch inputs = round_launch(segment, x, x_stride, rows);
      if (gate != nullptr) {
        inputs.other = gate->other;
        inputs.activation = gate->activation;
        inputs.clamp_limit = gate->clamp_limit;
      }
      round_to_tiles(inputs, launch);
    }
    step_->add(cuda::multiply, launch);
  }
}

/// Gate and up of rows [2 * width] become the input of the down projection, in the gate's place.
void Products::activate(const GatedFfn& ffn, float* gate_up, std::int64_t rows) {
  const std::int64_t width = ffn.intermediate();
  ActivateLaunch launch = {};
  launch.activation = static_cast<std::int32_t>(ffn.activation);
  launch.clamp_limit = ffn.clamp_limit;
  launch.gate = gate_up;
  launch.gate_stride = 2 * width;
  launch.other = gate_up + width;
  launch.other_stride = 2 * width;
  launch.rows = rows;
  launch.width = width;
  launch.out = gate_up;
  launch.out_stride = 2 * width;
  step_->add(cuda::activate, launch);
}

void Products::gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) {
  const std::int64_t width = ffn.intermediate();
  multiply(ffn.gate_up, x, ffn.gate_up.weight->cols(), rows, scratch, 2 * width, nullptr);
  // Inputs that are rounded to tiles are activated on the way there.
  const bool on_the_way = std::ranges::all_of(as_cuda(*ffn.down.weight).segments(), [&](const auto& segment) {
    return kernel_for(segment, rows) != ProductKernel::dot && segment.order == nullptr;
  });
  RoundLaunch gate = {};
  gate.other = scratch + width;
  gate.activation = static_cast<std::int32_t>(ffn.activation);
  gate.clamp_limit = ffn.clamp_limit;
  if (!on_the_way) activate(ffn, scratch, rows);
  multiply(ffn.down, scratch, 2 * width, rows, out, ffn.down.weight->rows(), on_the_way ? &gate : nullptr);
}

const Products::ExpertTable& Products::expert_table(std::span<const GatedFfn> experts, bool down) {
  const CudaMatrix& first = as_cuda(*layer_of(experts.front(), down).weight);
  ExpertTable& table = expert_tables_[first.id()];
  if (table.memory != nullptr) return table;
  const auto& like = first.segments();
  table.segments = like.size();
  table.experts = experts.size();
  std::vector<WeightView> views;
  std::vector<const float*> biases;
  for (std::size_t s = 0; s < like.size(); ++s) {
    for (const GatedFfn& ffn : experts) {
      const Linear& layer = layer_of(ffn, down);
      const auto& segments = as_cuda(*layer.weight).segments();
      MILLRACE_CHECK(segments.size() == like.size() && segments[s].plan.rows == like[s].plan.rows &&
                         (experts.size() == 1 || segments[s].plan.joins(like[s].plan)),
                     "experts whose weights are stored in different ways");
      views.push_back(segments[s].view);
      biases.push_back(layer.bias != nullptr ? layer.bias + segments[s].plan.first_row : nullptr);
    }
  }
  const std::size_t view_bytes = views.size() * sizeof(WeightView);
  auto memory = step_->device().allocate(view_bytes + biases.size() * sizeof(float*), "the table of experts");
  MILLRACE_CHECK(memory.ok(), "{}", memory.error().message);
  table.memory = std::move(*memory);
  step_->flush();
  step_->device().write(table.memory.get(), std::as_bytes(std::span(views)));
  step_->device().write(static_cast<std::byte*>(table.memory.get()) + view_bytes, std::as_bytes(std::span(biases)));
  return table;
}

void Products::multiply_experts(std::span<const GatedFfn> experts, bool down, const ExpertInputs& inputs, float* out,
                                std::int64_t out_stride) {
  const ExpertTable& table = expert_table(experts, down);
  const CudaMatrix& like = as_cuda(*layer_of(experts.front(), down).weight);
  const auto* views = static_cast<const WeightView*>(table.memory.get());
  const auto* biases = reinterpret_cast<const float* const*>(views + table.segments * table.experts);
  for (std::size_t s = 0; s < table.segments; ++s) {
    const CudaMatrix::Segment& segment = like.segments()[s];
    ExpertsLaunch launch = {};
    launch.weights = views + s * table.experts;
    launch.biases = biases + s * table.experts;
    launch.like = segment.view;
    launch.choice = inputs.choice;
    launch.pairs = inputs.pairs;
    launch.x_rows = inputs.x_rows;
    std::tie(launch.x, launch.x_stride) = rounded(segment, inputs.x, inputs.stride, inputs.count);
    launch.out = out + segment.plan.first_row;
    launch.out_stride = out_stride;
    step_->add(dot_experts, launch);
  }
}

void Products::moe(const MoeArgs& args) {
  const auto experts = static_cast<std::int64_t>(args.experts.size());
  const std::int64_t width = args.router.weight->cols(), pairs = args.rows * args.top_k;
  MILLRACE_CHECK(args.router.weight->rows() == experts && args.top_k > 0 && args.top_k <= experts,
                 "{} experts, {} router outputs, top {}", experts, args.router.weight->rows(), args.top_k);
  const std::int64_t inner = args.experts.front().intermediate();
  constexpr const char* kPurpose = "experts";
  float* logits = step_->floats(logits_, args.rows * experts, kPurpose);
  float* weights = step_->floats(weights_, pairs, kPurpose);
  float* hidden = step_->floats(hidden_, pairs * 2 * inner, kPurpose);
  float* results = step_->floats(expert_out_, pairs * width, kPurpose);
  auto* choice = reinterpret_cast<std::int32_t*>(step_->floats(choice_, pairs, kPurpose));
  linear(args.router, args.router_x, width, args.rows, logits, experts);
  RouteLaunch route = {};
  route.logits = logits;
  route.expert_scale = args.expert_scale;
  route.rows = args.rows;
  route.experts = static_cast<std::int32_t>(experts);
  route.top_k = args.top_k;
  route.weighting = static_cast<std::int32_t>(args.weighting);
  route.choice = choice;
  route.weights = weights;
  step_->add(cuda::route, route);

  multiply_experts(args.experts, false, {args.x, width, args.rows, args.top_k, choice, pairs}, hidden, 2 * inner);
  activate(args.experts.front(), hidden, pairs);
  multiply_experts(args.experts, true, {hidden, 2 * inner, pairs, 1, choice, pairs}, results, width);
  SumExpertsLaunch sum = {};
  sum.x = results;
  sum.weights = weights;
  sum.rows = args.rows;
  sum.top_k = args.top_k;
  sum.width = width;
  sum.out = args.out;
  step_->add(sum_experts, sum);
}

}  // namespace millrace::cuda
