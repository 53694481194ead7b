#include "convert/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <variant>

#include "core/check.h"

namespace millrace {

namespace {

constexpr std::uint32_t kVersion = 3;

template <typename T>
void append(std::string& target, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));  // little endian, as every machine that we build for
  target.append(bytes, sizeof(T));
}

void append_text(std::string& target, std::string_view text) {
  append<std::uint64_t>(target, text.size());
  target += text;
}

std::string of_type(GgufType type) {
  std::string value;
  append(value, static_cast<std::uint32_t>(type));
  return value;
}

std::string array_of(GgufType type, std::size_t count) {
  std::string value = of_type(GgufType::array) + of_type(type);
  append<std::uint64_t>(value, count);
  return value;
}

std::uint64_t aligned(std::uint64_t offset) {
  return (offset + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment;
}

/// The number that stands for a type in tensor infos.
std::uint32_t type_number(QuantFormat format) {
  switch (format) {
    case QuantFormat::f32:
      return 0;
    case QuantFormat::f16:
      return 1;
    case QuantFormat::q4_0:
      return 2;
    case QuantFormat::q4_1:
      return 3;
    case QuantFormat::q5_0:
      return 6;
    case QuantFormat::q5_1:
      return 7;
    case QuantFormat::q8_0:
      return 8;
    case QuantFormat::q2_k:
      return 10;
    case QuantFormat::q3_k:
      return 11;
    case QuantFormat::q4_k:
      return 12;
    case QuantFormat::q5_k:
      return 13;
    case QuantFormat::q6_k:
      return 14;
    case QuantFormat::iq4_nl:
      return 20;
    case QuantFormat::iq4_xs:
      return 23;
    case QuantFormat::bf16:
      return 30;
    case QuantFormat::mxfp4:
      return 39;
    default:
      break;
  }
  MILLRACE_CHECK(false, "GGUF has no type {}", format_info(format).name);
  return 0;
}

/// Bytes of a value, whose type stands before it; `start`: where it begins.
std::span<const std::byte> stored_value(GgufType type, const std::byte* start, const GgufValue& value) {
  switch (type) {
    case GgufType::uint8:
    case GgufType::int8:
    case GgufType::boolean:
      return {start, 1};
    case GgufType::uint16:
    case GgufType::int16:
      return {start, 2};
    case GgufType::uint32:
    case GgufType::int32:
    case GgufType::float32:
      return {start, 4};
    case GgufType::uint64:
    case GgufType::int64:
    case GgufType::float64:
      return {start, 8};
    case GgufType::string:
      return {start, sizeof(std::uint64_t) + std::get<std::string_view>(value).size()};
    case GgufType::array: {
      const std::span<const std::byte> elements = std::get<GgufArray>(value).bytes;
      return {start, elements.data() + elements.size()};
    }
  }
  MILLRACE_CHECK(false, "type {}", static_cast<std::uint32_t>(type));
  return {};
}

}  // namespace

void GgufMetadataWriter::set(std::string_view key, std::string value) {
  const auto found = std::ranges::find(pairs_, key, [](const auto& pair) { return std::string_view(pair.first); });
  if (found != pairs_.end()) {
    found->second = std::move(value);
  } else {
    pairs_.emplace_back(key, std::move(value));
  }
}

void GgufMetadataWriter::set_uint32(std::string_view key, std::uint64_t value) {
  MILLRACE_CHECK(value <= std::numeric_limits<std::uint32_t>::max(), "{} is {}", key, value);
  std::string encoded = of_type(GgufType::uint32);
  append(encoded, static_cast<std::uint32_t>(value));
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_int32(std::string_view key, std::int32_t value) {
  std::string encoded = of_type(GgufType::int32);
  append(encoded, value);
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_float(std::string_view key, double value) {
  std::string encoded = of_type(GgufType::float32);
  append(encoded, static_cast<float>(value));
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_flag(std::string_view key, bool value) {
  std::string encoded = of_type(GgufType::boolean);
  encoded += static_cast<char>(value ? 1 : 0);
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_text(std::string_view key, std::string_view value) {
  std::string encoded = of_type(GgufType::string);
  append_text(encoded, value);
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_texts(std::string_view key, const std::vector<std::string>& values) {
  std::string encoded = array_of(GgufType::string, values.size());
  for (const std::string& value : values) append_text(encoded, value);
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_int32s(std::string_view key, const std::vector<std::int32_t>& values) {
  std::string encoded = array_of(GgufType::int32, values.size());
  for (const std::int32_t value : values) append(encoded, value);
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_floats(std::string_view key, const std::vector<float>& values) {
  std::string encoded = array_of(GgufType::float32, values.size());
  for (const float value : values) append(encoded, value);
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_flags(std::string_view key, const std::vector<bool>& values) {
  std::string encoded = array_of(GgufType::boolean, values.size());
  for (const bool value : values) encoded += static_cast<char>(value ? 1 : 0);
  set(key, std::move(encoded));
}

void GgufMetadataWriter::set_stored(std::string_view key, GgufType type, std::span<const std::byte> value) {
  std::string encoded = of_type(type);
  encoded.append(reinterpret_cast<const char*>(value.data()), value.size());
  set(key, std::move(encoded));
}

GgufMetadataWriter copy_metadata(const GgufMetadata& metadata) {
  // A key's text lies in the file, and its type and value right behind it.
  std::vector<std::pair<std::string_view, const GgufValue*>> in_order;
  for (const auto& [key, value] : metadata) in_order.emplace_back(key, &value);
  std::ranges::sort(in_order, std::less<>(), [](const auto& pair) { return pair.first.data(); });
  GgufMetadataWriter copy;
  for (const auto& [key, value] : in_order) {
    const auto* behind = reinterpret_cast<const std::byte*>(key.data() + key.size());
    std::uint32_t number = 0;
    std::memcpy(&number, behind, sizeof number);
    const auto type = static_cast<GgufType>(number);
    copy.set_stored(key, type, stored_value(type, behind + sizeof number, *value));
  }
  return copy;
}

std::uint64_t GgufOutputTensor::bytes() const {
  std::size_t count = 1;
  for (const std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  return format_bytes(format, count);
}

StepFileLayout gguf_layout(const GgufMetadataWriter& metadata, const std::vector<GgufOutputTensor>& tensors) {
  StepFileLayout layout;
  std::string& header = layout.header;
  header = "GGUF";
  append(header, kVersion);
  append<std::uint64_t>(header, tensors.size());
  append<std::uint64_t>(header, metadata.pairs().size());
  for (const auto& [key, value] : metadata.pairs()) {
    append_text(header, key);
    header += value;
  }
  std::uint64_t offset = 0;
  for (const GgufOutputTensor& tensor : tensors) {
    append_text(header, tensor.name);
    append(header, static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) append<std::uint64_t>(header, *size);
    append(header, type_number(tensor.format));
    append(header, offset);
    layout.places.emplace(tensor.name, StepFileLayout::Place{offset, tensor.bytes()});
    offset = aligned(offset + tensor.bytes());
  }
  header.resize(aligned(header.size()), '\0');
  for (auto& [name, place] : layout.places) place.offset += header.size();
  layout.bytes = header.size() + offset;
  return layout;
}

}  // namespace millrace
