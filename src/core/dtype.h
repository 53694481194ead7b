// Element types of plain (unquantised) tensors. Block formats live in quant/.
#pragma once

#include <string_view>

namespace millrace {

enum class DType : unsigned char { f32, f16, bf16 };

constexpr std::string_view dtype_name(DType type) {
  switch (type) {
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
  }
  return "?";
}

}  // namespace millrace
