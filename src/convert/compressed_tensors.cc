#include "convert/compressed_tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/float16.h"
#include "quant/small_float.h"

namespace millrace {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kWordBits = 32, kNibbles = 8;  // of a word

bool is_nvfp4(const CodeFormat& format) {
  return format.kind == CodeKind::e2m1 && format.group == 16;
}

template <typename Element>
void append(std::vector<std::byte>& bytes, Element element) {
  const auto* first = reinterpret_cast<const std::byte*>(&element);
  bytes.insert(bytes.end(), first, first + sizeof element);
}

std::vector<std::byte> scale_bytes(const CodedRows& coded, ScaleType type) {
  std::vector<std::byte> bytes;
  for (const float scale : coded.scales) {
    if (is_nvfp4(coded.format)) {
      append(bytes, float_to_e4m3(scale));
    } else if (coded.format.kind == CodeKind::e2m1) {
      append(bytes, static_cast<std::uint8_t>(scale > 0.0f ? std::ilogb(scale) + 127 : 0));
    } else if (type == ScaleType::f32) {
      append(bytes, scale);
    } else {
      append(bytes, type == ScaleType::bf16 ? float_to_bf16(scale) : float_to_f16(scale));
    }
  }
  return bytes;
}

/// Codes of a row, eight to a word.
std::vector<std::byte> packed_rows(const CodedRows& coded) {
  std::vector<std::byte> bytes;
  for (std::int64_t row = 0; row < coded.rows; ++row) {
    const std::int8_t* codes = coded.codes.data() + row * coded.cols;
    for (std::int64_t k = 0; k < coded.cols; k += kNibbles) {
      std::uint32_t word = 0;
      for (std::int64_t i = 0; i < std::min(kNibbles, coded.cols - k); ++i) {
        word |= (static_cast<std::uint32_t>(codes[k + i]) & 15u) << (4 * i);
      }
      append(bytes, word);
    }
  }
  return bytes;
}

/// Two codes to a byte.
std::vector<std::byte> packed_pairs(const CodedRows& coded) {
  std::vector<std::byte> bytes(coded.codes.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>((coded.codes[2 * i] & 15) | (coded.codes[2 * i + 1] & 15) << 4);
  }
  return bytes;
}

/// Zero points [rows / 8][groups], eight rows to a word.
std::vector<std::byte> packed_zeros(const CodedRows& coded) {
  std::vector<std::byte> bytes;
  const std::int64_t groups = coded.groups();
  for (std::int64_t row = 0; row < coded.rows; row += kNibbles) {
    for (std::int64_t g = 0; g < groups; ++g) {
      std::uint32_t word = 0;
      for (std::int64_t i = 0; i < std::min(kNibbles, coded.rows - row); ++i) {
        word |= static_cast<std::uint32_t>(coded.zeros[static_cast<std::size_t>((row + i) * groups + g)]) << (4 * i);
      }
      append(bytes, word);
    }
  }
  return bytes;
}

Json weights_of(const CodeFormat& format) {
  Json weights{{"num_bits", format.four_bits() ? 4 : 8},
               {"type", format.kind == CodeKind::e2m1 || format.kind == CodeKind::e4m3 ? "float" : "int"},
               {"symmetric", format.symmetric},
               {"strategy", format.group == 0  ? "channel"
                            : is_nvfp4(format) ? "tensor_group"
                                               : "group"},
               {"group_size", nullptr},
               {"block_structure", nullptr},
               {"actorder", nullptr},
               {"dynamic", false},
               {"observer", "minmax"},
               {"observer_kwargs", Json::object()}};
  if (format.group != 0) weights["group_size"] = format.group;
  if (format.kind == CodeKind::e2m1 && !is_nvfp4(format)) weights["scale_dtype"] = "torch.uint8";
  if (is_nvfp4(format)) weights["scale_dtype"] = "torch.float8_e4m3fn";
  return weights;
}

/// Rounded for each row as it comes, as they are here; null: not rounded.
Json inputs_of(const CodeFormat& format) {
  if (format.four_bits() || format.float_inputs) return nullptr;
  return {{"num_bits", 8},         {"type", format.kind == CodeKind::e4m3 ? "float" : "int"},
          {"symmetric", true},     {"strategy", "token"},
          {"group_size", nullptr}, {"block_structure", nullptr},
          {"actorder", nullptr},   {"dynamic", true},
          {"observer", nullptr},   {"observer_kwargs", Json::object()}};
}

std::string format_name(const CodeFormat& format) {
  switch (format.kind) {
    case CodeKind::int8:
      return "int-quantized";
    case CodeKind::int4:
      return "pack-quantized";
    case CodeKind::e2m1:
      return is_nvfp4(format) ? "nvfp4-pack-quantized" : "mxfp4-pack-quantized";
    case CodeKind::e4m3:
      break;
  }
  return "float-quantized";
}

}  // namespace

std::string_view dtype_of(ScaleType type) {
  return type == ScaleType::f32 ? "F32" : type == ScaleType::f16 ? "F16" : "BF16";
}

Result<std::vector<OutputTensor>> compressed_tensors(const std::string& layer, const CodeFormat& format, ScaleType type,
                                                     std::int64_t rows, std::int64_t cols) {
  if (format.group != 0 && cols % format.group != 0) {
    return fail("{} has {} inputs, which groups of {} do not divide: choose another format for it in a recipe", layer,
                cols, format.group);
  }
  const std::int64_t groups = format.groups(cols);
  switch (format.kind) {
    case CodeKind::int8:
    case CodeKind::e4m3:
      return std::vector<OutputTensor>{
          {layer + ".weight", format.kind == CodeKind::int8 ? "I8" : "F8_E4M3", {rows, cols}},
          {layer + ".weight_scale", dtype_of(type), {rows, 1}}};
    case CodeKind::e2m1: {
      std::vector<OutputTensor> tensors{{layer + ".weight_packed", "U8", {rows, cols / 2}},
                                        {layer + ".weight_scale", is_nvfp4(format) ? "F8_E4M3" : "U8", {rows, groups}}};
      if (is_nvfp4(format)) tensors.push_back({layer + ".weight_global_scale", "F32", {1}});
      return tensors;
    }
    case CodeKind::int4:
      break;
  }
  std::vector<OutputTensor> tensors{{layer + ".weight_packed", "I32", {rows, (cols * 4 + kWordBits - 1) / kWordBits}},
                                    {layer + ".weight_scale", dtype_of(type), {rows, groups}},
                                    {layer + ".weight_shape", "I64", {2}}};
  if (!format.symmetric) {
    tensors.push_back({layer + ".weight_zero_point", "I32", {(rows * 4 + kWordBits - 1) / kWordBits, groups}});
  }
  return tensors;
}

Status write_compressed(StepFile& writer, const std::string& layer, ScaleType type, const CodedRows& coded,
                        std::int64_t first_row, std::int64_t rows) {
  const CodeFormat& format = coded.format;
  const std::vector<std::byte> scales = scale_bytes(coded, type);
  const auto row_share = [&](std::size_t bytes) {
    return static_cast<std::uint64_t>(first_row) * (bytes / static_cast<std::size_t>(coded.rows));
  };
  MILLRACE_CHECK_OK(writer.write(layer + ".weight_scale", row_share(scales.size()), scales));
  if (!format.four_bits()) {
    return writer.write(layer + ".weight", row_share(coded.codes.size()), std::as_bytes(std::span(coded.codes)));
  }
  const std::vector<std::byte> packed = format.kind == CodeKind::e2m1 ? packed_pairs(coded) : packed_rows(coded);
  MILLRACE_CHECK_OK(writer.write(layer + ".weight_packed", row_share(packed.size()), packed));
  if (is_nvfp4(format)) {
    const float divisor = 1.0f / coded.unit;
    return writer.write(layer + ".weight_global_scale", 0, std::as_bytes(std::span(&divisor, 1)));
  }
  if (format.kind == CodeKind::e2m1) return Ok{};
  const std::int64_t shape[2] = {rows, coded.cols};
  MILLRACE_CHECK_OK(writer.write(layer + ".weight_shape", 0, std::as_bytes(std::span(shape))));
  if (format.symmetric) return Ok{};
  const std::vector<std::byte> zeros = packed_zeros(coded);
  return writer.write(layer + ".weight_zero_point",
                      static_cast<std::uint64_t>(first_row / kPackedRows * coded.groups()) * sizeof(std::uint32_t),
                      zeros);
}

nlohmann::ordered_json quantization_config(const std::vector<std::pair<std::string, CodeFormat>>& layers,
                                           const std::vector<std::string>& ignored) {
  std::vector<CodeFormat> formats;
  for (const auto& [layer, format] : layers) {
    if (std::ranges::find(formats, format) == formats.end()) formats.push_back(format);
  }
  Json groups = Json::object();
  for (std::size_t i = 0; i < formats.size(); ++i) {
    Json targets = Json::array();
    if (formats.size() == 1) {
      targets.push_back("Linear");
    } else {
      for (const auto& [layer, format] : layers) {
        if (format == formats[i]) targets.push_back(layer);
      }
    }
    groups[fmt::format("group_{}", i)] = {{"targets", targets},
                                          {"weights", weights_of(formats[i])},
                                          {"input_activations", inputs_of(formats[i])},
                                          {"output_activations", nullptr},
                                          {"format", format_name(formats[i])}};
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", formats.size() == 1 ? format_name(formats.front()) : "mixed-precision"},
          {"quantization_status", "compressed"},
          {"config_groups", groups},
          {"ignore", ignored},
          {"kv_cache_scheme", nullptr},
          {"global_compression_ratio", nullptr}};
}

}  // namespace millrace
