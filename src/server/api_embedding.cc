#include "server/api_embedding.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "server/api_json.h"

namespace millrace {

namespace {

/// RFC 4648, section 4.
void append_base64(std::string& out, std::span<const unsigned char> bytes) {
  constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < 3; ++k) group = group << 8 | (k < count ? bytes[i + k] : 0u);
    for (std::size_t k = 0; k < 4; ++k) out += k <= count ? kLetters[group >> (18 - 6 * k) & 63u] : '=';
  }
}

}  // namespace

void append_embedding(std::string& out, std::span<const float> embedding, bool normalize, bool base64) {
  double squares = 0.0;
  for (const float value : embedding) squares += static_cast<double>(value) * static_cast<double>(value);
  const double scale = normalize && squares > 0.0 ? 1.0 / std::sqrt(squares) : 1.0;
  const auto scaled = [scale](float value) { return static_cast<float>(static_cast<double>(value) * scale); };
  if (base64) {
    std::vector<unsigned char> bytes;
    bytes.reserve(embedding.size() * sizeof(float));
    for (const float value : embedding) {
      const auto bits = std::bit_cast<std::uint32_t>(scaled(value));
      for (unsigned shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<unsigned char>(bits >> shift));
    }
    out += '"';
    append_base64(out, bytes);
    out += '"';
    return;
  }
  out += '[';
  for (const float value : embedding) {
    if (out.back() != '[') out += ',';
    append_json_number(out, scaled(value));
  }
  out += ']';
}

}  // namespace millrace
