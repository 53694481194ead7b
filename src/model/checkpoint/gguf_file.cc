#include "model/checkpoint/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "model/checkpoint/json.h"

namespace millrace {

namespace {

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint32_t kMaxDimensions = 4;
constexpr int kMaxArrayDepth = 4;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 1 << 20;
// Smallest encodings: key of one byte, type, value of one byte; name of one byte, dimensions, type, offset.
constexpr std::uint64_t kMinPair = 8 + 1 + 4 + 1;
constexpr std::uint64_t kMinInfo = 8 + 1 + 4 + 8 + 4 + 8;

struct TensorType {
  std::uint32_t number;
  std::string_view name;
  std::optional<QuantFormat> format;
  bool plain = false;  // no block format: a tensor of it is no weight, and none is missed
};

constexpr TensorType kTensorTypes[] = {
    {0, "F32", QuantFormat::f32},
    {1, "F16", QuantFormat::f16},
    {2, "Q4_0", QuantFormat::q4_0},
    {3, "Q4_1", QuantFormat::q4_1},
    {6, "Q5_0", QuantFormat::q5_0},
    {7, "Q5_1", QuantFormat::q5_1},
    {8, "Q8_0", QuantFormat::q8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", QuantFormat::q2_k},
    {11, "Q3_K", QuantFormat::q3_k},
    {12, "Q4_K", QuantFormat::q4_k},
    {13, "Q5_K", QuantFormat::q5_k},
    {14, "Q6_K", QuantFormat::q6_k},
    {15, "Q8_K", {}},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", QuantFormat::iq4_nl},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", QuantFormat::iq4_xs},
    {24, "I8", {}, true},
    {25, "I16", {}, true},
    {26, "I32", {}, true},
    {27, "I64", {}, true},
    {28, "F64", {}, true},
    {29, "IQ1_M", {}},
    {30, "BF16", QuantFormat::bf16},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {39, "MXFP4", QuantFormat::mxfp4},
    {40, "NVFP4", {}},
};

std::string supported_types() {
  std::string names;
  for (const TensorType& type : kTensorTypes) {
    if (!type.format) continue;
    names += names.empty() ? "" : ", ";
    names += type.name;
  }
  return names;
}

/// Bytes of an element of fixed size; 0 for strings, arrays and what is no type.
std::size_t type_bytes(GgufType type) {
  switch (type) {
    case GgufType::uint8:
    case GgufType::int8:
    case GgufType::boolean:
      return 1;
    case GgufType::uint16:
    case GgufType::int16:
      return 2;
    case GgufType::uint32:
    case GgufType::int32:
    case GgufType::float32:
      return 4;
    case GgufType::uint64:
    case GgufType::int64:
    case GgufType::float64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      break;
  }
  return 0;
}

template <typename T>
T load(const std::byte* source) {
  T value;
  std::memcpy(&value, source, sizeof(T));  // little endian, as every machine that we build for
  return value;
}

/// Walks over the file. A read that would pass the end fails and leaves the position.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  [[nodiscard]] std::size_t position() const { return position_; }
  [[nodiscard]] std::size_t left() const { return bytes_.size() - position_; }
  [[nodiscard]] std::span<const std::byte> since(std::size_t start) const {
    return bytes_.subspan(start, position_ - start);
  }

  bool skip(std::uint64_t count) {
    if (count > left()) return false;
    position_ += count;
    return true;
  }
  template <typename T>
  bool read(T& value) {
    if (sizeof(T) > left()) return false;
    value = load<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return true;
  }
  bool read(std::string_view& text) {
    const std::size_t start = position_;
    std::uint64_t length = 0;
    if (!read(length) || length > left()) {
      position_ = start;
      return false;
    }
    text = {reinterpret_cast<const char*>(bytes_.data() + position_), length};
    position_ += length;
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

class Parser {
 public:
  Parser(std::span<const std::byte> file, std::string_view what) : file_(file), cursor_(file), what_(what) {}

  Result<GgufFile> parse() {
    MILLRACE_CHECK_OK(header());
    for (std::uint64_t i = 0; i < pair_count_; ++i) MILLRACE_CHECK_OK(pair());
    MILLRACE_TRY(const std::uint64_t alignment, read_alignment());
    std::vector<Info> infos;
    for (std::uint64_t i = 0; i < tensor_count_; ++i) {
      MILLRACE_TRY(Info tensor, info());
      infos.push_back(std::move(tensor));
    }
    MILLRACE_CHECK_OK(check_names(infos));
    MILLRACE_CHECK_OK(place(infos, alignment));
    return std::move(result_);
  }

 private:
  struct Info {
    GgufTensor tensor;
    const TensorType* type = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
  };

  [[nodiscard]] Error truncated(std::string_view in) const {
    return fail("{}: the file ends within {}, at byte {} of {}", what_, in, cursor_.position(), file_.size());
  }

  Status header() {
    std::uint32_t magic = 0;
    std::uint32_t version = 0;
    if (!cursor_.read(magic) || magic != kMagic) return fail("{}: not a GGUF file: it does not begin with GGUF", what_);
    if (!cursor_.read(version)) return truncated("the header");
    if (version != 0 && (version & 0xffff) == 0) {
      return fail("{}: a big-endian GGUF file; only little-endian ones are supported", what_);
    }
    if (version != 2 && version != 3) {
      return fail("{}: GGUF version {}, but only versions 2 and 3 are supported", what_, version);
    }
    if (!cursor_.read(tensor_count_) || !cursor_.read(pair_count_)) return truncated("the header");
    if (pair_count_ > cursor_.left() / kMinPair || tensor_count_ > cursor_.left() / kMinInfo) {
      return fail("{}: the header claims {} metadata pairs and {} tensors, more than {} bytes can hold", what_,
                  pair_count_, tensor_count_, file_.size());
    }
    return Ok{};
  }

  Status pair() {
    std::string_view key;
    std::uint32_t type = 0;
    if (!cursor_.read(key) || !cursor_.read(type)) return truncated("the metadata");
    if (key.empty()) return fail("{}: a metadata key is empty", what_);
    MILLRACE_TRY(GgufValue parsed, value(static_cast<GgufType>(type), key));
    if (!result_.metadata.emplace(key, parsed).second) {
      return fail("{}: the metadata key {} is there twice", what_, shown(key));
    }
    return Ok{};
  }

  template <typename Stored, typename As>
  Result<GgufValue> scalar(std::string_view key) {
    Stored stored{};
    if (!cursor_.read(stored)) return truncated(key_name(key));
    return GgufValue(static_cast<As>(stored));
  }

  static std::string key_name(std::string_view key) { return "the metadata key " + shown(key); }

  Result<GgufValue> value(GgufType type, std::string_view key) {
    switch (type) {
      case GgufType::uint8:
        return scalar<std::uint8_t, std::uint64_t>(key);
      case GgufType::int8:
        return scalar<std::int8_t, std::int64_t>(key);
      case GgufType::uint16:
        return scalar<std::uint16_t, std::uint64_t>(key);
      case GgufType::int16:
        return scalar<std::int16_t, std::int64_t>(key);
      case GgufType::uint32:
        return scalar<std::uint32_t, std::uint64_t>(key);
      case GgufType::int32:
        return scalar<std::int32_t, std::int64_t>(key);
      case GgufType::uint64:
        return scalar<std::uint64_t, std::uint64_t>(key);
      case GgufType::int64:
        return scalar<std::int64_t, std::int64_t>(key);
      case GgufType::float32:
        return scalar<float, float>(key);
      case GgufType::float64:
        return scalar<double, double>(key);
      case GgufType::boolean:
        return boolean(key);
      case GgufType::string: {
        std::string_view text;
        if (!cursor_.read(text)) return truncated(key_name(key));
        return GgufValue(text);
      }
      case GgufType::array: {
        MILLRACE_TRY(const GgufArray parsed, array(key, 1));
        return GgufValue(parsed);
      }
    }
    return fail("{}: {} has the unknown type {}", what_, key_name(key), static_cast<std::uint32_t>(type));
  }

  Result<GgufValue> boolean(std::string_view key) {
    std::uint8_t stored = 0;
    if (!cursor_.read(stored)) return truncated(key_name(key));
    if (stored > 1) return fail("{}: {} is a boolean with the value {}", what_, key_name(key), stored);
    return GgufValue(stored == 1);
  }

  Result<GgufArray> array(std::string_view key, int depth) {
    std::uint32_t type = 0;
    GgufArray parsed;
    if (!cursor_.read(type) || !cursor_.read(parsed.count)) return truncated(key_name(key));
    parsed.type = static_cast<GgufType>(type);
    const std::size_t start = cursor_.position();
    if (const std::size_t size = type_bytes(parsed.type); size > 0) {
      if (parsed.count > cursor_.left() / size || !cursor_.skip(parsed.count * size)) return truncated(key_name(key));
    } else if (parsed.type == GgufType::string) {
      std::string_view text;
      for (std::uint64_t i = 0; i < parsed.count; ++i) {
        if (!cursor_.read(text)) return truncated(key_name(key));
      }
    } else if (parsed.type == GgufType::array) {
      if (depth == kMaxArrayDepth) return fail("{}: {} nests arrays too deep", what_, key_name(key));
      for (std::uint64_t i = 0; i < parsed.count; ++i) MILLRACE_CHECK_OK(array(key, depth + 1));
    } else {
      return fail("{}: {} is an array of the unknown type {}", what_, key_name(key), type);
    }
    parsed.bytes = cursor_.since(start);
    return parsed;
  }

  Result<std::uint64_t> read_alignment() {
    const auto found = result_.metadata.find("general.alignment");
    if (found == result_.metadata.end()) return kDefaultAlignment;
    const auto* stored = std::get_if<std::uint64_t>(&found->second);
    if (stored == nullptr || *stored == 0 || *stored > kMaxAlignment || (*stored & (*stored - 1)) != 0) {
      return fail("{}: general.alignment must be a power of two up to {}", what_, kMaxAlignment);
    }
    return *stored;
  }

  Result<Info> info() {
    Info result;
    std::uint32_t dimensions = 0;
    std::uint32_t number = 0;
    if (!cursor_.read(result.tensor.name) || !cursor_.read(dimensions)) return truncated("the tensor infos");
    const std::string name = shown(result.tensor.name);
    if (result.tensor.name.empty()) return fail("{}: a tensor has no name", what_);
    if (dimensions == 0 || dimensions > kMaxDimensions) {
      return fail("{}: tensor {} has {} dimensions, expected 1 to {}", what_, name, dimensions, kMaxDimensions);
    }
    std::int64_t elements = 1;
    for (std::uint32_t i = 0; i < dimensions; ++i) {
      std::int64_t dimension = 0;
      if (!cursor_.read(dimension)) return truncated("the tensor infos");
      if (dimension <= 0 || __builtin_mul_overflow(elements, dimension, &elements)) {
        return fail("{}: tensor {} has an impossible shape: dimension {} is {}", what_, name, i, dimension);
      }
      result.tensor.shape.push_back(dimension);
    }
    if (!cursor_.read(number) || !cursor_.read(result.offset)) return truncated("the tensor infos");
    const auto* type = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                    [&](const TensorType& row) { return row.number == number; });
    if (type == std::end(kTensorTypes)) {
      return fail("{}: tensor {} has the unknown type {}; supported are {}", what_, name, number, supported_types());
    }
    if (!type->format && !type->plain) {
      return fail("{}: tensor {} has the type {}; supported are {}", what_, name, type->name, supported_types());
    }
    result.type = type;
    if (type->format) {
      const QuantFormatInfo& format = format_info(*type->format);
      const auto block = static_cast<std::int64_t>(format.block_elements);
      if (result.tensor.shape.front() % block != 0 ||
          __builtin_mul_overflow(static_cast<std::uint64_t>(elements / block), format.block_bytes, &result.bytes)) {
        return fail("{}: tensor {} has rows of {} elements, expected a multiple of {} for {}", what_, name,
                    result.tensor.shape.front(), block, type->name);
      }
      result.tensor.format = *type->format;
    }
    std::reverse(result.tensor.shape.begin(), result.tensor.shape.end());
    return result;
  }

  Status check_names(const std::vector<Info>& infos) const {
    std::vector<std::string_view> names;
    names.reserve(infos.size());
    for (const Info& info : infos) names.push_back(info.tensor.name);
    std::sort(names.begin(), names.end());
    const auto twin = std::adjacent_find(names.begin(), names.end());
    if (twin != names.end()) return fail("{}: tensor {} is there twice", what_, shown(*twin));
    return Ok{};
  }

  /// Gives each tensor its bytes in the data section, which begins at the next aligned byte.
  Status place(std::vector<Info>& infos, std::uint64_t alignment) {
    const std::uint64_t start = (cursor_.position() + alignment - 1) / alignment * alignment;
    const std::uint64_t room = start < file_.size() ? file_.size() - start : 0;
    std::vector<const Info*> order;
    order.reserve(infos.size());
    for (Info& info : infos) {
      if (info.offset % alignment != 0 || info.offset > room || info.bytes > room - info.offset) {
        return fail("{}: tensor {} claims {} bytes at offset {} of {} data bytes with alignment {}", what_,
                    shown(info.tensor.name), info.bytes, info.offset, room, alignment);
      }
      order.push_back(&info);
    }
    std::sort(order.begin(), order.end(), [](const Info* a, const Info* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
        return fail("{}: tensors {} and {} overlap", what_, shown(order[i - 1]->tensor.name),
                    shown(order[i]->tensor.name));
      }
    }
    result_.tensors.reserve(infos.size());
    for (Info& info : infos) {
      if (!info.type->format) {
        result_.unreadable.emplace(info.tensor.name, info.type->name);
        continue;
      }
      info.tensor.data = file_.subspan(start + info.offset, info.bytes);
      result_.tensors.push_back(std::move(info.tensor));
    }
    return Ok{};
  }

  std::span<const std::byte> file_;
  Cursor cursor_;
  std::string_view what_;
  std::uint64_t tensor_count_ = 0, pair_count_ = 0;
  GgufFile result_;
};

template <typename T>
void append_integers(const GgufArray& array, std::vector<std::int64_t>& target) {
  for (std::uint64_t i = 0; i < array.count; ++i) {
    const T value = load<T>(array.bytes.data() + i * sizeof(T));
    constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
    target.push_back(std::cmp_greater(value, kMost) ? kMost : static_cast<std::int64_t>(value));
  }
}

}  // namespace

std::vector<std::string_view> GgufArray::strings() const {
  std::vector<std::string_view> result;
  if (type != GgufType::string) return result;
  result.reserve(count);
  Cursor cursor(bytes);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::string_view text;
    cursor.read(text);
    result.push_back(text);
  }
  return result;
}

std::vector<std::int64_t> GgufArray::integers() const {
  std::vector<std::int64_t> result;
  switch (type) {
    case GgufType::uint8:
    case GgufType::boolean:
      append_integers<std::uint8_t>(*this, result);
      break;
    case GgufType::int8:
      append_integers<std::int8_t>(*this, result);
      break;
    case GgufType::uint16:
      append_integers<std::uint16_t>(*this, result);
      break;
    case GgufType::int16:
      append_integers<std::int16_t>(*this, result);
      break;
    case GgufType::uint32:
      append_integers<std::uint32_t>(*this, result);
      break;
    case GgufType::int32:
      append_integers<std::int32_t>(*this, result);
      break;
    case GgufType::uint64:
      append_integers<std::uint64_t>(*this, result);
      break;
    case GgufType::int64:
      append_integers<std::int64_t>(*this, result);
      break;
    default:
      break;
  }
  return result;
}

std::vector<float> GgufArray::floats() const {
  std::vector<float> result;
  if (type != GgufType::float32) return result;
  result.resize(count);
  if (count > 0) std::memcpy(result.data(), bytes.data(), count * sizeof(float));
  return result;
}

std::string_view GgufArray::raw() const {
  if (type != GgufType::uint8 && type != GgufType::int8) return {};
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<GgufFile> parse_gguf(std::span<const std::byte> file, std::string_view what) {
  return Parser(file, what).parse();
}

}  // namespace millrace
