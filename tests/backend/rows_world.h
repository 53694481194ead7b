// What the tests of operations other than attention share: rows to rotate and store, layers to multiply with.
#pragma once

#include <bit>
#include <cstring>

#include "backend/cpu_test_util.h"
#include "backend/staged_backend.h"
#include "kv/page_layout.h"

namespace millrace {

inline std::unique_ptr<PackedMatrix> packed(Backend& backend, const std::vector<float>& values, std::int64_t rows,
                                            std::int64_t cols, LinearFormat format = {}) {
  auto matrix = backend.pack(source_of(values, rows, cols), format);
  MILLRACE_CHECK(matrix.ok());
  return std::move(*matrix);
}

inline std::vector<float> part(const std::vector<float>& values, std::int64_t first, std::int64_t count) {
  return {values.begin() + first, values.begin() + first + count};
}

/// A rope_store over two sequences into fresh pages; returns the rows of qkv and what the pages then hold.
struct RopeCase {
  std::int32_t heads = 4, kv_heads = 2, head_dim = 16, rotary_dim = 16, page_tokens = 4;
  bool store = true, value_is_key = false, value_norm = false, rotate = true, q_scale = false, key_bounds = false;
  NormScope norm = NormScope::none;
  KvFormat format = KvFormat::f32;
  float deviation = 1.0f;         // of the numbers
  std::vector<float> first = {};  // numbers of the first row, as far as given
  std::int32_t rows[2] = {5, 3};
  std::int64_t position[2] = {0, 6};
};

inline std::pair<std::vector<float>, std::vector<std::byte>> run_rope(Backend& backend, const RopeCase& c,
                                                                      std::uint32_t seed) {
  Random random(seed);
  const std::int64_t kv_width = c.kv_heads * c.head_dim;
  const std::int64_t width = c.heads * c.head_dim + (c.store ? (c.value_is_key ? 1 : 2) * kv_width : 0);
  const std::int32_t rows = c.rows[0] + c.rows[1];
  std::vector<float> qkv = random.normals(rows * width, c.deviation);
  std::copy(c.first.begin(), c.first.end(), qkv.begin());
  const std::int64_t half = c.rotary_dim / 2;
  std::vector<float> cos(static_cast<std::size_t>(rows * half)), sin(cos.size());
  for (std::size_t i = 0; i < cos.size(); ++i) {
    const float angle = random.normal(3.0f);
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
  const std::vector<float> q_norm = random.normals(c.heads * c.head_dim), k_norm = random.normals(kv_width),
                           q_scale = random.normals(rows);
  const PageLayout layout = make_page_layout(
      std::vector<KvShape>{{.kv_heads = c.kv_heads, .head_dim = c.head_dim, .key_bounds = c.key_bounds}}, c.page_tokens,
      c.format);
  RopeStoreArgs args{.qkv = qkv.data(),
                     .qkv_width = width,
                     .heads = c.heads,
                     .kv_heads = c.kv_heads,
                     .head_dim = c.head_dim,
                     .rotary_dim = c.rotary_dim,
                     .store = c.store,
                     .value_is_key = c.value_is_key,
                     .value_norm = c.value_norm,
                     .norm = c.norm,
                     .q_norm = q_norm.data(),
                     .k_norm = k_norm.data(),
                     .eps = 1e-6f,
                     .cos = c.rotate ? cos.data() : nullptr,
                     .sin = c.rotate ? sin.data() : nullptr,
                     .q_scale = c.q_scale ? q_scale.data() : nullptr,
                     .kv = {}};
  // As a number small, so that it does not widen what is tolerated.
  std::vector<std::byte> pages(8 * layout.groups[0].page_bytes, std::byte{0x3a});
  const KvPlace& place = layout.layers.front();
  args.kv = {.pages = pages.data(),
             .page_bytes = layout.groups[0].page_bytes,
             .key_offset = place.key_offset,
             .value_offset = place.value_offset,
             .key_scale_offset = place.key_scale_offset,
             .value_scale_offset = place.value_scale_offset,
             .page_tokens = c.page_tokens,
             .group = 1,
             .format = c.format};
  // Behind the pages, in the bytes that are returned.
  if (c.key_bounds) {
    const std::size_t bytes = layout.key_bounds.front().page_bytes, start = pages.size();
    pages.resize(start + 8 * bytes, std::byte{0x3a});
    args.kv.pages = pages.data();
    args.kv.key_bounds = reinterpret_cast<std::uint16_t*>(pages.data() + start);
    args.kv.key_bound_numbers = bytes / sizeof(std::uint16_t);
  }
  const std::vector<std::int32_t> unused, first = {6, 2, 4}, second = {7, 1, 3, 0};
  ForwardBatch batch;
  batch.token_ids.resize(static_cast<std::size_t>(rows));
  batch.sequences.push_back(
      {.first_row = 0, .rows = c.rows[0], .first_position = c.position[0], .page_tables = {unused, first}});
  batch.sequences.push_back(
      {.first_row = c.rows[0], .rows = c.rows[1], .first_position = c.position[1], .page_tables = {unused, second}});
  set_pages(backend, pages);
  backend.begin(batch);
  backend.rope_store(batch, args);
  // What becomes of k and v in the rows is nobody's business.
  const std::int64_t q_width = std::int64_t{c.heads} * c.head_dim;
  for (std::int32_t r = 0; r < rows; ++r)
    std::fill(qkv.begin() + r * width + q_width, qkv.begin() + (r + 1) * width, 0.0f);
  return {qkv, pages};
}

inline std::vector<float> kv_floats(const std::vector<std::byte>& pages, KvFormat format) {
  const std::size_t bytes = format == KvFormat::bf16 ? 2 : 4;
  std::vector<float> values(pages.size() / bytes);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, pages.data() + i * bytes, bytes);
    values[i] = std::bit_cast<float>(format == KvFormat::f32 ? bits : bits << 16);
  }
  return values;
}

struct Ffn {
  std::vector<float> gate_up, down, gate_up_bias, down_bias;
  std::int64_t width, intermediate;
  std::unique_ptr<PackedMatrix> packed_gate_up, packed_down;

  Ffn(Random& random, std::int64_t w, std::int64_t i)
      : gate_up(random.normals(2 * i * w, 1.0f / std::sqrt(static_cast<float>(w)))),
        down(random.normals(w * i, 1.0f / std::sqrt(static_cast<float>(i)))),
        gate_up_bias(random.normals(2 * i)),
        down_bias(random.normals(w)),
        width(w),
        intermediate(i) {}

  /// The same numbers, not packed.
  [[nodiscard]] Ffn copy() const { return {gate_up, down, gate_up_bias, down_bias, width, intermediate}; }

  Ffn(std::vector<float> of_gate_up, std::vector<float> of_down, std::vector<float> of_gate_up_bias,
      std::vector<float> of_down_bias, std::int64_t w, std::int64_t i)
      : gate_up(std::move(of_gate_up)),
        down(std::move(of_down)),
        gate_up_bias(std::move(of_gate_up_bias)),
        down_bias(std::move(of_down_bias)),
        width(w),
        intermediate(i) {}

  GatedFfn on(Backend& backend, Activation activation, bool bias, LinearFormat format = {}) {
    packed_gate_up = packed(backend, gate_up, 2 * intermediate, width, format);
    packed_down = packed(backend, down, width, intermediate, format);
    return {{packed_gate_up.get(), bias ? gate_up_bias.data() : nullptr},
            {packed_down.get(), bias ? down_bias.data() : nullptr},
            activation,
            1.5f};
  }
};

inline constexpr Activation kActivations[] = {Activation::silu,         Activation::gelu_tanh, Activation::gelu_erf,
                                              Activation::swiglu_clamp, Activation::relu,      Activation::relu2};

inline std::vector<float> run_ffn(Backend& backend, const GatedFfn& ffn, const std::vector<float>& x,
                                  std::int64_t rows) {
  std::vector<float> scratch(static_cast<std::size_t>(rows * 2 * ffn.intermediate()));
  std::vector<float> out(static_cast<std::size_t>(rows * ffn.down.weight->rows()), -1.0f);
  backend.gated_ffn(ffn, x.data(), rows, scratch.data(), out.data());
  return out;
}

inline std::vector<float> run_moe(Backend& backend, MoeArgs args, const std::vector<float>& router,
                                  const std::vector<float>& router_bias, const std::vector<float>& router_x,
                                  const std::vector<float>& x, std::int64_t width,
                                  const std::vector<GatedFfn>& experts) {
  const auto count = static_cast<std::int64_t>(experts.size());
  const auto matrix = packed(backend, router, count, width);
  std::vector<float> out(x.size(), 7.0f);
  args.router = {matrix.get(), router_bias.data()};
  args.rows = static_cast<std::int64_t>(x.size()) / width;
  args.router_x = router_x.data();
  args.x = x.data();
  args.out = out.data();
  args.experts = experts;
  backend.moe(args);
  return out;
}

}  // namespace millrace
