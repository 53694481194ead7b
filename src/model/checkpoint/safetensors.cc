#include "model/checkpoint/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "model/checkpoint/json.h"

namespace millrace {

namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // as in the reference implementation
constexpr std::size_t kMaxDimensions = 8;

struct SafetensorsType {
  std::string_view name;
  unsigned bits;
  std::optional<QuantFormat> format;  // empty: not a number format of weights
};

constexpr SafetensorsType kTypes[] = {
    {"F32", 32, QuantFormat::f32},
    {"F16", 16, QuantFormat::f16},
    {"BF16", 16, QuantFormat::bf16},
    {"U8", 8, QuantFormat::u8},
    {"BOOL", 8, {}},
    {"I8", 8, QuantFormat::i8},
    {"I16", 16, {}},
    {"U16", 16, {}},
    {"I32", 32, QuantFormat::i32},
    {"U32", 32, {}},
    {"I64", 64, QuantFormat::i64},
    {"U64", 64, {}},
    {"F64", 64, {}},
    {"C64", 64, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E4M3", 8, QuantFormat::f8_e4m3},
    {"F8_E8M0", 8, QuantFormat::u8},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"F4", 4, {}},
};

const SafetensorsType* find_type(std::string_view name) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& t) { return t.name == name; });
  return found == std::end(kTypes) ? nullptr : found;
}

struct Entry {
  std::string name;
  const SafetensorsType* type = nullptr;
  std::vector<std::int64_t> shape;
  std::vector<std::uint64_t> offsets;
  bool has_shape = false, has_offsets = false;
};

/// Reads the header as a stream of events, so that nothing is built but the entries, and the first thing that has no
/// place in a header ends it.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool null() override { return refuse("null"); }
  bool boolean(bool /*value*/) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t /*value*/) override { return refuse("a negative number"); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return refuse("a fraction"); }
  bool binary(binary_t& /*value*/) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return refuse("a dimension above 2^63");
      }
      if (entries.back().shape.size() == kMaxDimensions) return refuse("more than 8 dimensions");
      entries.back().shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (state_ == State::offsets) {
      if (entries.back().offsets.size() == 2) return refuse("more than two data_offsets");
      entries.back().offsets.push_back(value);
      return true;
    }
    return refuse("a number");
  }

  bool string(string_t& value) override {
    if (state_ == State::metadata) {
      metadata[key_] = value;
      return true;
    }
    if (state_ != State::tensor || key_ != "dtype") return refuse("a string");
    entries.back().type = find_type(value);
    if (entries.back().type == nullptr) return refuse("the unknown dtype " + shown(value));
    return true;
  }

  bool key(string_t& value) override {
    if (state_ == State::tensor) {
      const Entry& entry = entries.back();
      if ((value == "dtype" && entry.type != nullptr) || (value == "shape" && entry.has_shape) ||
          (value == "data_offsets" && entry.has_offsets)) {
        return refuse("the key " + shown(value) + " twice");
      }
      if (value != "dtype" && value != "shape" && value != "data_offsets") return refuse("the key " + shown(value));
    }
    key_ = std::move(value);
    return true;
  }

  bool start_object(std::size_t /*size*/) override {
    if (state_ == State::start) {
      state_ = State::top;
      return true;
    }
    if (state_ != State::top) return refuse("an object");
    if (key_ == "__metadata__") {
      state_ = State::metadata;
      return true;
    }
    state_ = State::tensor;
    entries.push_back({.name = key_, .shape = {}, .offsets = {}});
    return true;
  }

  bool end_object() override {
    if (state_ == State::tensor) {
      const Entry& entry = entries.back();
      if (entry.type == nullptr || !entry.has_shape || entry.offsets.size() != 2) {
        return refuse("a tensor without dtype, shape and two data_offsets");
      }
    }
    state_ = state_ == State::top ? State::done : State::top;
    return true;
  }

  bool start_array(std::size_t /*size*/) override {
    if (state_ != State::tensor || (key_ != "shape" && key_ != "data_offsets")) return refuse("an array");
    const bool shape = key_ == "shape";
    (shape ? entries.back().has_shape : entries.back().has_offsets) = true;
    state_ = shape ? State::shape : State::offsets;
    return true;
  }

  bool end_array() override {
    state_ = State::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    problem = fmt::format("is not valid JSON at byte {}", position);
    return false;
  }

 private:
  enum class State : std::uint8_t { start, top, metadata, tensor, shape, offsets, done };

  bool refuse(const std::string& found) {
    problem = "holds " + found + (state_ == State::top || state_ == State::start ? "" : " at " + place()) +
              ", which has no place there";
    return false;
  }
  [[nodiscard]] std::string place() const {
    return state_ == State::metadata || entries.empty() ? "__metadata__" : shown(entries.back().name);
  }

  State state_ = State::start;
  std::string key_;
};

/// Bytes of a tensor, or nothing where they overflow or are no whole number.
std::optional<std::uint64_t> tensor_bytes(const Entry& entry) {
  std::uint64_t bits = entry.type->bits;
  for (const std::int64_t dimension : entry.shape) {
    if (__builtin_mul_overflow(bits, static_cast<std::uint64_t>(dimension), &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

/// Every tensor's range must fit its type and shape and begin where the one before ended, up to the end of the file.
Status check_layout(const std::vector<Entry>& entries, std::uint64_t data_bytes, std::string_view what) {
  std::vector<const Entry*> order;
  order.reserve(entries.size());
  for (const Entry& entry : entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return a->offsets < b->offsets; });
  std::uint64_t position = 0;
  for (const Entry* entry : order) {
    const std::uint64_t begin = entry->offsets[0];
    const std::uint64_t end = entry->offsets[1];
    if (begin > end || end > data_bytes) {
      return fail("{}: tensor {} claims the bytes {} to {} of {} that there are", what, shown(entry->name), begin, end,
                  data_bytes);
    }
    const std::optional<std::uint64_t> bytes = tensor_bytes(*entry);
    if (!bytes || *bytes != end - begin) {
      return fail("{}: tensor {} has {} bytes, which does not fit its dtype {} and shape [{}]", what,
                  shown(entry->name), end - begin, entry->type->name, fmt::join(entry->shape, ", "));
    }
    if (begin != position) {
      return fail("{}: tensor {} begins at byte {}, where {} was expected: tensors {}", what, shown(entry->name), begin,
                  position, begin < position ? "overlap" : "leave a hole");
    }
    position = end;
  }
  if (position != data_bytes) {
    return fail("{}: the tensors end at byte {} of {} data bytes", what, position, data_bytes);
  }
  return Ok{};
}

Status check_names(const std::vector<Entry>& entries, std::string_view what) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const Entry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin != names.end()) return fail("{}: tensor {} is there twice", what, shown(*twin));
  return Ok{};
}

}  // namespace

Result<SafetensorsFile> parse_safetensors(std::span<const std::byte> file, std::string_view what) {
  std::uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) {
    return fail("{}: {} bytes are too few for a safetensors file", what, file.size());
  }
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));  // little endian, as every machine that we build for
  const std::uint64_t room = file.size() - sizeof(header_bytes);
  if (header_bytes > room || header_bytes > kMaxHeader) {
    return fail("{}: the safetensors header claims {} bytes, but the file has {} and {} is the limit", what,
                header_bytes, room, kMaxHeader);
  }
  const auto* text = reinterpret_cast<const char*>(file.data() + sizeof(header_bytes));
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text, text + header_bytes, &reader)) {
    return fail("{}: the safetensors header {}", what, reader.problem);
  }
  const std::span<const std::byte> data = file.subspan(sizeof(header_bytes) + header_bytes);
  MILLRACE_CHECK_OK(check_names(reader.entries, what));
  MILLRACE_CHECK_OK(check_layout(reader.entries, data.size(), what));

  SafetensorsFile result;
  result.metadata = std::move(reader.metadata);
  result.tensors.reserve(reader.entries.size());
  for (Entry& entry : reader.entries) {
    const bool empty = entry.offsets[0] == entry.offsets[1];
    if (!entry.type->format || empty) {
      result.unreadable.emplace(std::move(entry.name), empty ? "no elements" : entry.type->name);
      continue;
    }
    StoredTensor tensor;
    tensor.name = std::move(entry.name);
    tensor.format = *entry.type->format;
    tensor.shape = std::move(entry.shape);
    tensor.data = data.subspan(entry.offsets[0], entry.offsets[1] - entry.offsets[0]);
    result.tensors.push_back(std::move(tensor));
  }
  return result;
}

}  // namespace millrace
