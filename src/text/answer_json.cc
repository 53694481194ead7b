#include "text/answer_json.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace millrace {

namespace {

void append_utf8(std::string& out, std::uint32_t code) {
  const auto byte = [&](std::uint32_t value) { out += static_cast<char>(value); };
  if (code < 0x80) return byte(code);
  if (code < 0x800) {
    byte(0xC0U | code >> 6U);
  } else {
    if (code < 0x10000) {
      byte(0xE0U | code >> 12U);
    } else {
      byte(0xF0U | code >> 18U);
      byte(0x80U | (code >> 12U & 0x3FU));
    }
    byte(0x80U | (code >> 6U & 0x3FU));
  }
  byte(0x80U | (code & 0x3FU));
}

constexpr std::uint32_t kReplacement = 0xFFFD;
constexpr std::string_view kGemmaQuote = "<|\"|>";

bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20;
}

}  // namespace

void append_json_escaped(std::string& out, std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (is_control(c)) {
          out += "\\u00";
          out += kHex[static_cast<unsigned char>(c) >> 4U];
          out += kHex[static_cast<unsigned char>(c) & 15U];
        } else {
          out += c;
        }
    }
  }
}

std::string_view trim_blanks(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

bool is_json(std::string_view text) {
  return nlohmann::json::accept(text);
}

// ---- JsonString -----------------------------------------------------------------------------------------------------

bool JsonString::feed(char c, std::string& out) {
  if (state_ == State::unicode) {
    const bool digit = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
    if (digit) {
      const char lower = static_cast<char>(c | 0x20);
      unit_ = unit_ * 16 + static_cast<std::uint32_t>(c <= '9' ? c - '0' : lower - 'a' + 10);
      if (++digits_ == 4) code_unit(out);
      return false;
    }
    unit_ = kReplacement;  // not an escape after all
    code_unit(out);
  }
  if (state_ == State::escape) {
    if (c == 'u') {
      state_ = State::unicode;
      digits_ = 0;
      unit_ = 0;
      return false;
    }
    state_ = State::text;
    if (high_ != 0) append_utf8(out, kReplacement), high_ = 0;
    constexpr std::string_view kNames = "nrtbf", kMeanings = "\n\r\t\b\f";
    const std::size_t name = kNames.find(c);
    out += name == std::string_view::npos ? c : kMeanings[name];
    return false;
  }
  if (c == '\\') {
    state_ = State::escape;
    return false;
  }
  if (high_ != 0) append_utf8(out, kReplacement), high_ = 0;
  if (c == '"') return true;
  out += c;
  return false;
}

void JsonString::code_unit(std::string& out) {
  state_ = State::text;
  const bool low = unit_ >= 0xDC00 && unit_ < 0xE000;
  if (high_ != 0 && low) {
    append_utf8(out, 0x10000 + ((high_ - 0xD800) << 10U) + (unit_ - 0xDC00));
    high_ = 0;
    return;
  }
  if (high_ != 0) append_utf8(out, kReplacement), high_ = 0;
  if (unit_ >= 0xD800 && unit_ < 0xDC00) {
    high_ = unit_;
  } else {
    append_utf8(out, low ? kReplacement : unit_);
  }
}

// ---- JsonValue ------------------------------------------------------------------------------------------------------

JsonValue::Step JsonValue::feed(char c, std::string& out) {
  if (state_ == State::begin) {
    if (is_blank(c)) return Step::more;
    if (c == ',' || c == '}' || c == ']') {
      out += "{}";  // no value at all
      return Step::done_before;
    }
    state_ = c == '{' || c == '[' ? State::nested : c == '"' ? State::quoted : State::scalar;
    if (state_ == State::quoted) return Step::more;
  }
  switch (state_) {
    case State::begin:
    case State::quoted:
      if (const std::size_t before = out.size(); string_.feed(c, out)) {
        if (empty_ && out.size() == before) out += "{}";
        return Step::done;
      } else {
        empty_ = empty_ && out.size() == before;
      }
      return Step::more;
    case State::scalar:
      if (is_blank(c) || c == ',' || c == '}' || c == ']') {
        out += scalar_ == "null" ? "{}" : scalar_;
        return Step::done_before;
      }
      scalar_ += c;
      return Step::more;
    case State::nested:
      break;
  }
  if (in_string_) {
    if (is_control(c)) {
      append_json_escaped(out, {&c, 1});
      escaped_ = false;
      return Step::more;
    }
    out += c;
    if (escaped_) {
      escaped_ = false;
    } else if (c == '\\') {
      escaped_ = true;
    } else if (c == '"') {
      in_string_ = false;
    }
    return Step::more;
  }
  out += c;
  if (c == '"') in_string_ = true;
  if (c == '{' || c == '[') ++depth_;
  if (c == '}' || c == ']') --depth_;
  return depth_ == 0 ? Step::done : Step::more;
}

void JsonValue::finish(std::string& out) {
  if (state_ == State::scalar) out += scalar_;
}

// ---- GemmaValue -----------------------------------------------------------------------------------------------------

GemmaValue::Step GemmaValue::feed(char c, std::string& out) {
  if (in_json_string_) {
    if (is_control(c)) {
      append_json_escaped(out, {&c, 1});
    } else {
      out += c;
    }
    if (!escaped_ && c == '"') in_json_string_ = false;
    escaped_ = !escaped_ && c == '\\';
    return Step::more;
  }
  if (held_.empty() && c != kGemmaQuote[0]) return plain(c, out);
  held_ += c;
  if (!kGemmaQuote.starts_with(held_)) {
    const std::string text = std::exchange(held_, {});
    Step step = plain(text[0], out);
    for (const char next : std::string_view(text).substr(1)) step = feed(next, out);
    return step;  // what was held ends nothing, so only `c` can have done so
  }
  if (held_ == kGemmaQuote) {
    held_.clear();
    if (!in_string_) flush_word(out);
    quoted_key_ = key_;
    in_string_ = !in_string_;
    out += '"';
  }
  return Step::more;
}

GemmaValue::Step GemmaValue::plain(char c, std::string& out) {
  if (in_string_) {
    append_json_escaped(out, {&c, 1});
    return Step::more;
  }
  switch (c) {
    case '"':
      flush_word(out);
      in_json_string_ = true;
      quoted_key_ = key_;
      out += c;
      return Step::more;
    case '{':
    case '[':
      flush_word(out);
      stack_ += c;
      key_ = c == '{';
      quoted_key_ = false;
      out += c;
      return Step::more;
    case '}':
    case ']':
      flush_word(out);
      if (!stack_.empty()) stack_.pop_back();
      key_ = false;
      out += c;
      return stack_.empty() ? Step::done : Step::more;
    case ',':
      flush_word(out);
      key_ = !stack_.empty() && stack_.back() == '{';
      quoted_key_ = false;
      out += c;
      return Step::more;
    case ':':
      if (!key_) break;
      if (!quoted_key_) {
        out += '"';
        append_json_escaped(out, trim_blanks(word_));
        out += '"';
      }
      word_.clear();
      key_ = false;
      out += c;
      return Step::more;
    default:
      break;
  }
  word_ += c;
  return Step::more;
}

void GemmaValue::flush_word(std::string& out) {
  const std::string_view word = trim_blanks(word_);
  if (!word.empty()) {
    if (word == "None") {
      out += "null";
    } else if (is_json(word)) {
      out += word;
    } else {
      out += '"';
      append_json_escaped(out, word);
      out += '"';
    }
  }
  word_.clear();
}

void GemmaValue::finish(std::string& out) {
  for (const char c : held_) plain(c, out);
  held_.clear();
  flush_word(out);
}

// ---- ParameterTypes -------------------------------------------------------------------------------------------------

ParameterTypes::ParameterTypes(std::string_view tools_json) {
  const nlohmann::json tools = nlohmann::json::parse(tools_json, nullptr, false);
  if (!tools.is_array()) return;
  const auto member = [](const nlohmann::json& from, const char* key) {
    return from.is_object() && from.contains(key) ? from[key] : nlohmann::json();
  };
  for (const nlohmann::json& entry : tools) {
    const nlohmann::json tool = entry.is_object() && entry.contains("function") ? entry["function"] : entry;
    const nlohmann::json name = member(tool, "name");
    const nlohmann::json properties = member(member(tool, "parameters"), "properties");
    if (!name.is_string() || !properties.is_object()) continue;
    auto& kinds = kinds_[name.get<std::string>()];
    for (const auto& [parameter, schema] : properties.items()) {
      const nlohmann::json type = member(schema, "type");
      // A list of types, or none, leaves it to the value's looks.
      kinds[parameter] = !type.is_string() ? Kind::unknown : type == "string" ? Kind::string : Kind::other;
    }
  }
}

ParameterTypes::Kind ParameterTypes::kind(const std::string& tool, const std::string& parameter) const {
  const auto kinds = kinds_.find(tool);
  if (kinds == kinds_.end()) return Kind::unknown;
  const auto kind = kinds->second.find(parameter);
  return kind == kinds->second.end() ? Kind::unknown : kind->second;
}

}  // namespace millrace
