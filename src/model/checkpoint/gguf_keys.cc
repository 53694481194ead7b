#include "model/checkpoint/gguf_keys.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace millrace {

namespace {

constexpr std::int64_t kMaxInteger = std::int64_t{1} << 53;

std::optional<std::int64_t> as_integer(const GgufValue& value) {
  if (const auto* plain = std::get_if<std::uint64_t>(&value)) {
    if (*plain <= static_cast<std::uint64_t>(kMaxInteger)) return static_cast<std::int64_t>(*plain);
  } else if (const auto* with_sign = std::get_if<std::int64_t>(&value)) {
    if (*with_sign >= 0 && *with_sign <= kMaxInteger) return *with_sign;
  }
  return std::nullopt;
}

}  // namespace

double shortest_decimal(float value) {
  std::array<char, 64> text{};
  const auto written = std::to_chars(text.data(), text.data() + text.size(), value);
  double result = value;
  std::from_chars(text.data(), written.ptr, result);
  return result;
}

const GgufValue* GgufKeys::find(std::string_view key) const {
  const auto found = metadata_.find(prefix_ + std::string(key));
  return found == metadata_.end() ? nullptr : &found->second;
}

void GgufKeys::wrong(std::string_view key, std::string_view expected) {
  refuse(fail("{}: the metadata key {}{} must be {}", what_, prefix_, key, expected));
}

bool GgufKeys::has(std::string_view key) const {
  return find(key) != nullptr;
}

std::optional<std::int64_t> GgufKeys::integer(std::string_view key) {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<std::int64_t> result = as_integer(*value);
  if (!result) wrong(key, "an integer from 0 to 2^53");
  return result;
}

std::int64_t GgufKeys::required_integer(std::string_view key) {
  const std::optional<std::int64_t> value = integer(key);
  if (!value || *value < 1) wrong(key, "there, and an integer above 0");
  return std::max<std::int64_t>(value.value_or(1), 1);
}

std::vector<std::int64_t> GgufKeys::per_layer(std::string_view key, std::int64_t count) {
  const GgufValue* value = find(key);
  if (value == nullptr) return {};
  const auto layers = static_cast<std::size_t>(count);
  const auto* array = std::get_if<GgufArray>(value);
  if (array == nullptr) {
    const std::optional<std::int64_t> one = integer(key);
    return std::vector<std::int64_t>(layers, one.value_or(1));
  }
  std::vector<std::int64_t> result;
  if (array->count == layers) result = array->integers();
  const bool fine = result.size() == layers && std::all_of(result.begin(), result.end(), [](std::int64_t item) {
                      return item >= 0 && item <= kMaxInteger;
                    });
  if (!fine) {
    wrong(key, fmt::format("an integer, or an array with one for each of {} layers", count));
    return std::vector<std::int64_t>(layers, 1);
  }
  return result;
}

std::optional<double> GgufKeys::number(std::string_view key) {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  std::optional<double> result;
  if (const auto* single = std::get_if<float>(value)) {
    if (std::isfinite(*single)) result = shortest_decimal(*single);
  } else if (const auto* wide = std::get_if<double>(value)) {
    if (std::isfinite(*wide)) result = *wide;
  } else if (const std::optional<std::int64_t> whole = as_integer(*value)) {
    result = static_cast<double>(*whole);
  }
  if (!result) wrong(key, "a finite number");
  return result;
}

double GgufKeys::required_number(std::string_view key) {
  const std::optional<double> value = number(key);
  if (!value) wrong(key, "there, and a number");
  return value.value_or(1.0);
}

std::optional<bool> GgufKeys::flag(std::string_view key) {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto* result = std::get_if<bool>(value);
  if (result == nullptr) {
    wrong(key, "a boolean");
    return std::nullopt;
  }
  return *result;
}

std::optional<std::string> GgufKeys::text(std::string_view key) {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto* result = std::get_if<std::string_view>(value);
  if (result == nullptr) {
    wrong(key, "a string");
    return std::nullopt;
  }
  return std::string(*result);
}

const GgufArray* GgufKeys::array(std::string_view key, GgufType type) {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  const auto* result = std::get_if<GgufArray>(value);
  if (result == nullptr || result->type != type) {
    wrong(key, "an array of the right type");
    return nullptr;
  }
  return result;
}

}  // namespace millrace
