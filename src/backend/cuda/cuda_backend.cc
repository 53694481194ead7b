#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "backend/cuda/batch_tables.h"
#include "backend/cuda/cuda_limits.h"
#include "backend/cuda/cuda_matrix.h"
#include "backend/cuda/device.h"
#include "backend/cuda/kernels/attend_mma.h"
#include "backend/cuda/kernels/launch.h"
#include "backend/cuda/products.h"
#include "backend/cuda/step.h"
#include "core/check.h"
#include "core/thread_pool.h"

namespace millrace {

namespace {

using namespace cuda;

KvView kv_view(const KvLayer& kv) {
  KvView view = {};
  view.pages = kv.pages;
  view.page_bytes = kv.page_bytes;
  view.key_offset = kv.key_offset;
  view.value_offset = kv.value_offset;
  view.key_scale_offset = kv.key_scale_offset;
  view.value_scale_offset = kv.value_scale_offset;
  view.page_tokens = kv.page_tokens;
  view.format = kv.format;
  return view;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<Device> device, std::unique_ptr<ThreadPool> pool)
      : device_(std::move(device)), pool_(std::move(pool)), step_(*device_), products_(step_) {}

  ~CudaBackend() override { device_->wait(); }

  [[nodiscard]] std::string numeric_class() const override { return fmt::format("cuda/sm{}/2", device_->capability()); }
  Result<DeviceLimits> measure_limits() override {
    step_.flush();
    return measure_cuda_limits(*device_);
  }
  [[nodiscard]] bool host_memory() const override { return false; }
  [[nodiscard]] std::uint64_t free_memory() const override { return device_->free_memory(); }

  Result<Buffer> allocate(std::size_t bytes) override {
    MILLRACE_TRY(std::shared_ptr<void> memory, device_->allocate(bytes, "a buffer"));
    return Buffer{std::move(memory), bytes};
  }

  Result<Buffer> allocate_host(std::size_t bytes) override {
    MILLRACE_TRY(std::shared_ptr<void> memory, device_->allocate_host(bytes));
    return Buffer{std::move(memory), bytes};
  }

  void write(const Buffer& target, std::size_t offset, std::span<const std::byte> source) override {
    check_range(target, offset, source.size());
    step_.flush();
    device_->write(target.data() + offset, source);
  }

  void read(const Buffer& source, std::size_t offset, std::span<std::byte> target) override {
    check_range(source, offset, target.size());
    step_.flush();
    device_->read(source.data() + offset, target);
  }

  void copy(const Buffer& target, std::size_t target_offset, const Buffer& source, std::size_t source_offset,
            std::size_t bytes) override {
    check_copy(target, target_offset, source, source_offset, bytes);
    step_.flush();
    if (bytes == 0) return;
    MILLRACE_CUDA_CHECK(cudaMemcpyAsync(target.data() + target_offset, source.data() + source_offset, bytes,
                                        cudaMemcpyDeviceToDevice, device_->stream()));
  }

  Result<std::unique_ptr<PackedMatrix>> pack(const MatrixSource& source, LinearFormat format) override {
    // Products with experts read inputs in one order for all of them.
    const auto of_experts = [](const std::string& layer) { return layer.find(".experts.") != std::string::npos; };
    if (std::ranges::any_of(source.layers, of_experts) &&
        std::ranges::any_of(plan_segments(source, format), &SegmentPlan::ordered)) {
      return fail("experts with an order of their own for their inputs do not run with CUDA: use --device cpu");
    }
    MILLRACE_TRY(std::unique_ptr<CudaMatrix> matrix, CudaMatrix::pack(source, format, *device_, *pool_));
    return std::unique_ptr<PackedMatrix>(std::move(matrix));
  }

  [[nodiscard]] std::size_t packed_bytes(const MatrixSource& source, LinearFormat format) const override {
    return planned_bytes(plan_segments(source, format), source.cols());
  }

  [[nodiscard]] std::span<const KvFormat> kv_formats() const override {
    static constexpr KvFormat kFormats[] = {KvFormat::f32, KvFormat::bf16, KvFormat::int8, KvFormat::fp8_e4m3};
    return kFormats;
  }
  [[nodiscard]] Arithmetic attend_arithmetic(KvFormat format) const override {
    return format == KvFormat::f32 || device_->capability() < 80 ? Arithmetic::f32 : Arithmetic::bf16;
  }

  void wait() override {
    step_.flush();
    device_->wait();
  }

  void begin(const ForwardBatch& batch) override {
    step_.flush();
    tables_.make(batch);
    step_.set_repeats(tables_.decodes());
    const auto words = tables_.words();
    auto* start =
        static_cast<std::int32_t*>(table_memory_.at_least(*device_, tables_.capacity_bytes(), "the tables of a step"));
    device_->write(start, std::as_bytes(words));
    start_ = start;
  }

  void embed(const ForwardBatch& /*batch*/, const PackedMatrix& table, float scale, float* out) override {
    std::int64_t first_row = 0;
    for (const CudaMatrix::Segment& segment : as_cuda(table).segments()) {
      EmbedLaunch args = {};
      args.batch = tables_.view(start_);
      args.table = segment.view;
      args.order = segment.order;
      args.first_row = first_row;
      args.scale = scale;
      args.out = out;
      step_.add(cuda::embed, args);
      first_row += segment.view.rows;
    }
  }

  void residual_norm(const ResidualNormArgs& args) override {
    NormLaunch launch = {};
    launch.rows = args.rows;
    launch.width = args.width;
    launch.h = args.h;
    launch.delta = args.delta;
    launch.delta_norm = args.delta_norm;
    launch.norm = args.norm;
    launch.out = args.out;
    launch.delta_scale = args.delta_scale;
    launch.h_scale = args.h_scale;
    launch.eps = args.eps;
    step_.put_off(launch);
  }

  void linear(const Linear& linear, const float* x, std::int64_t rows, float* out, std::int64_t out_stride) override {
    products_.linear(linear, x, linear.weight->cols(), rows, out, out_stride);
  }

  void rope_store(const ForwardBatch& batch, const RopeStoreArgs& args) override {
    if (args.store) check_pages(batch, args.kv);
    RopeLaunch launch = {};
    launch.batch = tables_.view(start_);
    launch.qkv = args.qkv;
    launch.qkv_width = args.qkv_width;
    launch.heads = args.heads;
    launch.kv_heads = args.kv_heads;
    launch.head_dim = args.head_dim;
    launch.rotary_dim = args.rotary_dim;
    launch.norm = static_cast<std::int32_t>(args.norm);
    launch.store = args.store;
    launch.value_is_key = args.value_is_key;
    launch.value_norm = args.value_norm;
    launch.eps = args.eps;
    launch.q_norm = args.q_norm;
    launch.k_norm = args.k_norm;
    launch.cos = args.cos;
    launch.sin = args.sin;
    launch.q_scale = args.q_scale;
    launch.group = args.kv.group;
    launch.kv = kv_view(args.kv);
    step_.add(cuda::rope_store, launch);
  }

  void attend(const ForwardBatch& /*batch*/, const AttendArgs& args) override {
    const BatchView view = tables_.view(start_);
    AttendLaunch launch = {};
    launch.q = args.q;
    launch.q_stride = args.q_stride;
    launch.out = args.out;
    launch.heads = args.heads;
    launch.kv_heads = args.kv_heads;
    launch.head_dim = args.head_dim;
    launch.window = static_cast<std::int32_t>(args.window);
    launch.scale = args.scale;
    launch.softcap = args.softcap;
    launch.sinks = args.sinks;
    launch.kv = kv_view(args.kv);
    launch.table_offsets = view.table_offsets + std::int64_t{args.kv.group} * view.sequences;
    launch.page_tables = view.page_tables;
    launch.row_sequence = view.row_sequence;
    launch.row_position = view.row_position;
    launch.rows = view.rows;
    launch.wgmma = have_wgmma(device_->capability());
    // Rounded up to a power of two, so that steps differ only when a sequence doubles.
    launch.splits = static_cast<std::int32_t>(
        std::bit_ceil(static_cast<std::uint64_t>(tables_.last_position() / kAttendSplit + 1)));
    if (!attend_mma_supports(device_->capability(), launch)) {
      step_.add(attend_exact, launch);
      return;
    }
    // Sequences with one row are cut along their positions, so that few of them keep the device busy too.
    launch.tiles = tables_.tiles(start_);
    launch.tile_count = tables_.single_tiles();
    launch.tile_rows = 1;
    if (launch.tile_count > 0) {
      launch.partials =
          step_.floats(partial_memory_, static_cast<std::int64_t>(attend_partial_floats(launch)), "parts of attention");
      step_.add(attend_mma, launch);
    }
    launch.tiles += launch.tile_count;
    launch.tile_count = tables_.tile_count() - launch.tile_count;
    launch.tile_rows = BatchTables::kTileRowsMost;
    launch.partials = nullptr;
    if (launch.tile_count > 0) step_.add(attend_mma, launch);
  }

  [[nodiscard]] bool activates(Activation activation) const override { return !gives_zeros(activation); }

  void gated_ffn(const GatedFfn& ffn, const float* x, std::int64_t rows, float* scratch, float* out) override {
    products_.gated_ffn(ffn, x, rows, scratch, out);
  }

  void moe(const MoeArgs& args) override { products_.moe(args); }

  void activate_multiply(Activation activation, float* gate, const float* other, std::int64_t other_stride,
                         std::int64_t rows, std::int64_t width) override {
    MILLRACE_CHECK(activation != Activation::swiglu_clamp, "swiglu_clamp needs a limit");
    ActivateLaunch launch = {};
    launch.activation = static_cast<std::int32_t>(activation);
    launch.gate = gate;
    launch.gate_stride = width;
    launch.other = other;
    launch.other_stride = other_stride;
    launch.rows = rows;
    launch.width = width;
    launch.out = gate;
    launch.out_stride = width;
    step_.add(cuda::activate, launch);
  }

  void combine(float a, const float* x, float b, const float* y, float* out, std::int64_t count) override {
    CombineLaunch args = {};
    args.a = a;
    args.b = b;
    args.x = x;
    args.y = y;
    args.out = out;
    args.count = count;
    step_.add(cuda::combine, args);
  }

  void gather_rows(const float* x, std::span<const std::int32_t> indices, std::int64_t width, float* out) override {
    GatherLaunch args = {};
    args.x = x;
    args.rows = static_cast<std::int64_t>(indices.size());
    args.width = width;
    args.out = out;
    if (tables_.are_logit_rows(indices)) {
      args.indices = tables_.logit_rows(start_);
    } else {
      step_.flush();
      auto* memory = static_cast<std::int32_t*>(index_memory_.at_least(*device_, indices.size_bytes(), "indices"));
      device_->write(memory, std::as_bytes(indices));
      args.indices = memory;
    }
    if (args.rows > 0) step_.add(cuda::gather_rows, args);
  }

  void scale_softcap(float* x, std::int64_t count, float scale, float softcap) override {
    SoftcapLaunch args = {};
    args.x = x;
    args.count = count;
    args.scale = scale;
    args.softcap = softcap;
    step_.add(cuda::scale_softcap, args);
  }

  [[nodiscard]] bool draws(const TokenDraw& draw, std::int64_t vocab) const override {
    return draws_on_device(draw, vocab);
  }

  void draw_tokens(const float* logits, std::int64_t vocab, std::span<const TokenDraw> draws,
                   std::span<std::int32_t> tokens) override {
    if (draws.empty()) return;
    step_.flush();
    auto* drawn = static_cast<std::int32_t*>(drawn_memory_.at_least(*device_, tokens.size_bytes(), "drawn tokens"));
    auto* on_device = static_cast<TokenDraw*>(draw_memory_.at_least(*device_, draws.size_bytes(), "draws"));
    device_->write(on_device, std::as_bytes(draws));
    DrawLaunch launch = {};
    launch.logits = logits;
    launch.vocab = vocab;
    launch.draws = on_device;
    launch.count = std::ssize(draws);
    launch.tokens = drawn;
    MILLRACE_CUDA_CHECK(cuda::draw_tokens(launch, device_->stream()));
    device_->read(drawn, std::as_writable_bytes(tokens));
  }

 private:
  /// The pages that rows are stored in exist.
  static void check_pages(const ForwardBatch& batch, const KvLayer& kv) {
    for (const SequenceRows& sequence : batch.sequences) {
      const auto table = sequence.page_tables[static_cast<std::size_t>(kv.group)];
      const std::int64_t end = sequence.first_position + sequence.rows;
      for (std::int64_t page = sequence.first_position / kv.page_tokens; page * kv.page_tokens < end; ++page) {
        const auto index = static_cast<std::size_t>(page);
        MILLRACE_CHECK(index < table.size() && table[index] >= 0, "page {} of a sequence is missing", page);
      }
    }
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<ThreadPool> pool_;
  BatchTables tables_;
  const std::int32_t* start_ = nullptr;  // of tables_ on the device
  Step step_;
  Products products_;
  GrowingMemory table_memory_, index_memory_, partial_memory_, draw_memory_, drawn_memory_;
};

}  // namespace

bool cuda_available() {
  int count = 0, major = 0, minor = 0;
  const bool available = cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
                         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
                         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) == cudaSuccess &&
                         major * 10 + minor >= Device::kOldest;
  cudaGetLastError();  // a later call must not report it
  return available;
}

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaBackendOptions& options) {
  MILLRACE_TRY(std::unique_ptr<Device> device, Device::open(0));
  MILLRACE_TRY(std::unique_ptr<ThreadPool> pool, ThreadPool::create(options.threads));
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(std::move(device), std::move(pool)));
}

}  // namespace millrace
