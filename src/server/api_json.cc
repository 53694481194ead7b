#include "server/api_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/json_extent.h"

namespace millrace {

namespace {

ApiError bad_body(std::string message) {
  return {.status = 400, .message = std::move(message)};
}

/// Bytes of the well-formed UTF-8 character at the start of `text` (Unicode 15, table 3-7); 0: there is none.
std::size_t character_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto trail = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return byte(i) >= low && byte(i) <= high;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return text.empty() ? 0 : 1;
  if (lead >= 0xC2 && lead <= 0xDF) return trail(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const bool second = trail(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
    return second && trail(2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const bool second = trail(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
    return second && trail(2) && trail(3) ? 4 : 0;
  }
  return 0;
}

void append_escaped(std::string& out, char c) {
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(c));
  }
}

/// `kind`: "integer" or "decimal", as the error codes have it.
ApiError outside(std::string param, std::string_view kind, bool below, const std::string& bound,
                 const std::string& got) {
  ApiError error;
  error.message = fmt::format("Invalid '{}': expected a value {} {}, got {}.", param, below ? ">=" : "<=", bound, got);
  error.param = std::move(param);
  error.code = fmt::format("{}_{}", kind, below ? "below_min_value" : "above_max_value");
  return error;
}

}  // namespace

ApiResult<Json> parse_body(std::string_view body) {
  const JsonExtent extent = json_extent(body, kBodyMaxDepth);
  if (extent.depth > kBodyMaxDepth) {
    return bad_body(fmt::format("The body is nested more than {} levels deep.", kBodyMaxDepth));
  }
  if (extent.values > kBodyMaxValues) {
    return bad_body(fmt::format("The body has more than {} values.", kBodyMaxValues));
  }
  if (extent.key_pairs > kBodyMaxKeyPairs) return bad_body("An object of the body has too many keys.");
  Json value;
  try {
    value = Json::parse(body);
  } catch (const Json::parse_error& error) {
    if (!is_utf8(body)) return bad_body("The body is not UTF-8.");
    return bad_body(fmt::format("The body is not valid JSON (byte {} of {}).", error.byte, body.size()));
  } catch (const Json::exception&) {
    return bad_body("The body holds a number that is out of range.");
  }
  if (!value.is_object()) return bad_body(fmt::format("The body is {}, expected a JSON object.", kind_name(value)));
  return value;
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  std::size_t plain = 0;  // start of what can be copied as it is
  std::size_t i = 0;
  while (i < text.size()) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
      ++i;
      continue;
    }
    if (c >= 0x80) {
      if (const std::size_t bytes = character_bytes(text.substr(i)); bytes != 0) {
        i += bytes;
        continue;
      }
    }
    out.append(text, plain, i - plain);
    if (c >= 0x80) {
      out += "\xEF\xBF\xBD";
    } else {
      append_escaped(out, text[i]);
    }
    plain = ++i;
  }
  out.append(text, plain, i - plain);
  out += '"';
}

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

void append_json_number(std::string& out, float value) {
  constexpr float kLeast = -9999.0f;
  fmt::format_to(std::back_inserter(out), "{}", std::isfinite(value) ? value : value > 0.0f ? -kLeast : kLeast);
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t bytes = character_bytes(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

std::string_view kind_name(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return "an integer";
    case Json::value_t::number_float:
      return "a decimal";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::array:
      return "an array";
    default:
      return "an object";
  }
}

ApiError invalid_type(std::string param, std::string_view expected, const Json& got) {
  ApiError error;
  error.message = fmt::format("Invalid type for '{}': expected {}, got {}.", param, expected, kind_name(got));
  error.param = std::move(param);
  error.code = "invalid_type";
  return error;
}

ApiError invalid_value(std::string param, std::string message) {
  ApiError error;
  error.message = fmt::format("Invalid '{}': {}.", param, message);
  error.param = std::move(param);
  error.code = "invalid_value";
  return error;
}

ApiError missing(std::string param) {
  ApiError error;
  error.message = fmt::format("Missing required parameter: '{}'.", param);
  error.param = std::move(param);
  error.code = "missing_required_parameter";
  return error;
}

const Json* Fields::find(std::string_view key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

double Fields::number(std::string_view key, double fallback, double low, double high) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) {
    refuse(invalid_type(path(key), "a number", *value));
    return fallback;
  }
  const double got = value->get<double>();
  if (got >= low && got <= high) return got;
  refuse(outside(path(key), "decimal", got < low, fmt::format("{}", got < low ? low : high), fmt::format("{}", got)));
  return fallback;
}

std::int64_t Fields::integer(std::string_view key, std::int64_t fallback, std::int64_t low, std::int64_t high) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number_integer()) {
    refuse(invalid_type(path(key), "an integer", *value));
    return fallback;
  }
  const bool huge = value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX;
  const std::int64_t got = huge ? INT64_MAX : value->get<std::int64_t>();
  if (!huge && got >= low && got <= high) return got;
  const bool below = !huge && got < low;
  refuse(outside(path(key), "integer", below, fmt::format("{}", below ? low : high), value->dump()));
  return fallback;
}

bool Fields::boolean(std::string_view key, bool fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  refuse(invalid_type(path(key), "a boolean", *value));
  return fallback;
}

std::string Fields::text(std::string_view key, std::string_view fallback) {
  const Json* value = find(key);
  if (value == nullptr) return std::string(fallback);
  if (value->is_string()) return value->get<std::string>();
  refuse(invalid_type(path(key), "a string", *value));
  return std::string(fallback);
}

std::string Fields::choice(std::string_view key, std::string_view fallback, std::span<const std::string_view> values) {
  std::string got = text(key, fallback);
  if (std::find(values.begin(), values.end(), got) != values.end()) return got;
  std::string known;
  for (const std::string_view value : values) known += fmt::format("{}'{}'", known.empty() ? "" : ", ", value);
  refuse(invalid_value(path(key), fmt::format("'{}' is none of {}", got.substr(0, 64), known)));
  return std::string(fallback);
}

const Json* Fields::object(std::string_view key) {
  const Json* value = find(key);
  if (value == nullptr || value->is_object()) return value;
  refuse(invalid_type(path(key), "an object", *value));
  return nullptr;
}

const Json* Fields::array(std::string_view key) {
  const Json* value = find(key);
  if (value == nullptr || value->is_array()) return value;
  refuse(invalid_type(path(key), "an array", *value));
  return nullptr;
}

std::string Fields::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

void Fields::refuse(ApiError problem) {
  if (!error) error = std::move(problem);
}

}  // namespace millrace
