#include "server/api_id.h"

#include <cstdint>
#include <random>
#include <string_view>

namespace millrace {

std::string random_letters(std::size_t count) {
  constexpr std::string_view kLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  constexpr std::uint32_t kUniform = UINT32_MAX / 62 * 62;  // draws from here on would favour some letters
  std::random_device device;
  std::string letters;
  letters.reserve(count);
  while (letters.size() < count) {
    const std::uint32_t draw = device();
    if (draw < kUniform) letters += kLetters[draw % kLetters.size()];
  }
  return letters;
}

}  // namespace millrace
