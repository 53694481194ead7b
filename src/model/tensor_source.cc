#include "model/tensor_source.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "core/cpu_info.h"
#include "core/float16.h"
#include "core/philox.h"

namespace millrace {

namespace {

std::uint64_t fnv1a_64(std::string_view text) {
  std::uint64_t hash = 14695981039346656037ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return hash;
}

/// How the values of a tensor, multiples of 2^-23 in [-1, 1), become weights: offset + scale * value.
struct DummyScale {
  float offset = 0.0f, scale = 0.25f;
};

DummyScale dummy_scale(std::string_view name, const std::vector<std::int64_t>& shape) {
  if (shape.size() >= 2) {
    const int log2_columns = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(shape.back()))) - 1;
    return {0.0f, std::ldexp(1.0f, 1 - log2_columns / 2)};
  }
  const bool near_one = name.ends_with("layer_scalar") || name.find("norm") != std::string_view::npos;
  return near_one ? DummyScale{1.0f, 0.125f} : DummyScale{};
}

std::uint16_t float_to_f16(float value) {
  // Exact for every value that occurs here: |value| < 4, and what is below half's normal range rounds to even there.
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (magnitude < 0x1p-14f) {
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const std::uint32_t rounded = (bits & 0x7fffffffu) + 0xfffu + ((bits >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

void store(QuantFormat format, float value, std::byte* target) {
  if (format == QuantFormat::f32) {
    std::memcpy(target, &value, sizeof value);
    return;
  }
  const std::uint16_t bits = format == QuantFormat::bf16 ? float_to_bf16(value) : float_to_f16(value);
  std::memcpy(target, &bits, sizeof bits);
}

/// Elements [begin, end) of a tensor; begin is a multiple of 4.
void fill(std::uint64_t key, DummyScale scale, QuantFormat format, std::int64_t begin, std::int64_t end,
          std::byte* target) {
  const std::size_t size = format == QuantFormat::f32 ? 4 : 2;
  const std::array<std::uint32_t, 2> words{static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)};
  for (std::int64_t i = begin; i < end; i += 4) {
    const auto block = static_cast<std::uint64_t>(i / 4);
    const PhiloxBlock random =
        philox4x32_10({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0}, words);
    for (std::int64_t j = 0; j < std::min<std::int64_t>(4, end - i); ++j) {
      const float unit = (static_cast<float>(random[static_cast<std::size_t>(j)] >> 8) - 0x1p23f) * 0x1p-23f;
      store(format, scale.offset + unit * scale.scale, target + static_cast<std::size_t>(i + j) * size);
    }
  }
}

/// In parallel, because a model of a billion parameters is made in seconds that way; values do not depend on the cut.
void fill_parallel(std::uint64_t key, DummyScale scale, QuantFormat format, std::int64_t count, std::byte* target) {
  constexpr std::int64_t kWorthAThread = 1 << 20;
  const std::int64_t parts = std::clamp<std::int64_t>(count / kWorthAThread, 1, usable_cores());
  const std::int64_t step = (count / parts + 4) / 4 * 4;
  std::vector<std::jthread> threads;
  for (std::int64_t begin = step; begin < count; begin += step) {
    threads.emplace_back(fill, key, scale, format, begin, std::min(count, begin + step), target);
  }
  fill(key, scale, format, 0, std::min(count, step), target);
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

}  // namespace

TensorSource TensorSource::of_checkpoint(const Checkpoint& checkpoint) {
  TensorSource source;
  source.checkpoint_ = &checkpoint;
  return source;
}

Result<TensorSource> TensorSource::dummy(const nlohmann::json& config) {
  TensorSource source;
  const nlohmann::json* inner = &config;
  if (const auto text = config.find("text_config"); text != config.end() && text->is_object()) inner = &*text;
  for (const nlohmann::json* place : {inner, &config}) {
    for (const char* key : {"dtype", "torch_dtype"}) {
      const auto found = place->find(key);
      if (found == place->end() || !found->is_string()) continue;
      const auto name = found->get<std::string>();
      if (name == "float32") return source;
      source.format_ = name == "bfloat16" ? QuantFormat::bf16 : QuantFormat::f16;
      if (name == "bfloat16" || name == "float16") return source;
      return fail("config: \"{}\" is {}, expected float32, float16 or bfloat16", key,
                  nlohmann::json(name.substr(0, 40)).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
    }
  }
  return source;
}

bool TensorSource::has(std::string_view name) const {
  return checkpoint_ == nullptr || checkpoint_->find(name) != nullptr;
}

bool TensorSource::differ(std::string_view one, std::string_view other) const {
  if (checkpoint_ == nullptr) return false;
  const StoredTensor* a = checkpoint_->find(one);
  const StoredTensor* b = checkpoint_->find(other);
  if (a == nullptr || b == nullptr) return false;
  const bool same = a->format == b->format && a->shape == b->shape &&
                    std::memcmp(a->data.data(), b->data.data(), a->data.size()) == 0;
  release(*a);
  release(*b);
  return !same;
}

Result<SourceTensor> TensorSource::describe(const std::string& name, const std::vector<std::int64_t>& shape) const {
  if (checkpoint_ == nullptr) {
    SourceTensor tensor{{.name = name, .format = format_, .shape = shape, .data = {}}, {}};
    constexpr std::int64_t kMaxElements = std::int64_t{1} << 48;
    std::int64_t elements = 1;
    for (const std::int64_t size : shape) {
      if (size < 1 || elements > kMaxElements / size)
        return fail("tensor {} would be too large: {}", name, shape_text(shape));
      elements *= size;
    }
    return tensor;
  }
  const StoredTensor* found = checkpoint_->find(name);
  if (found == nullptr) {
    const auto unreadable = checkpoint_->unreadable().find(name);
    if (unreadable == checkpoint_->unreadable().end()) {
      return fail("{}: tensor {} {} is missing", checkpoint_->path(), name, shape_text(shape));
    }
    return fail("{}: tensor {} cannot be used: it is stored as {}, expected F32, F16, BF16 or a block type of GGUF",
                checkpoint_->path(), name, unreadable->second);
  }
  if (found->shape != shape) {
    return fail("{}: tensor {} has shape {}, expected {}", checkpoint_->path(), name, shape_text(found->shape),
                shape_text(shape));
  }
  return SourceTensor{*found, {}};
}

Result<SourceTensor> TensorSource::read(const std::string& name, const std::vector<std::int64_t>& shape) const {
  MILLRACE_TRY(SourceTensor tensor, describe(name, shape));
  if (checkpoint_ != nullptr) return tensor;
  const std::int64_t count = tensor.stored.elements();
  tensor.owned.resize(format_bytes(format_, static_cast<std::size_t>(count)));
  fill_parallel(fnv1a_64(name), dummy_scale(name, shape), format_, count, tensor.owned.data());
  tensor.stored.data = tensor.owned;
  return tensor;
}

void TensorSource::release(const StoredTensor& tensor) const {
  if (checkpoint_ != nullptr) checkpoint_->release(tensor);
}

bool TensorSource::norms_include_one() const {
  return checkpoint_ != nullptr && checkpoint_->norms_include_one();
}

}  // namespace millrace
