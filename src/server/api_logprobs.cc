#include "server/api_logprobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "server/api_json.h"

namespace millrace {

namespace {

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; }));
}

void append_item(std::string& list, std::string_view item) {
  if (!list.empty()) list += ',';
  list += item;
}

/// "token":...,"logprob":...,"bytes":[...]
void append_chat_token(std::string& out, const std::string& bytes, float logprob) {
  out += R"("token":)";
  append_json_string(out, shown_token(bytes, ""));
  out += R"(,"logprob":)";
  append_json_number(out, logprob);
  out += R"(,"bytes":[)";
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    fmt::format_to(std::back_inserter(out), "{}{}", i == 0 ? "" : ",", static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

}  // namespace

void ChoiceLogprobs::add(std::int32_t token, const TokenLogprobs* logprobs, bool silent) {
  held_.push_back({bytes_, offset_, token, logprobs != nullptr, logprobs != nullptr ? *logprobs : TokenLogprobs{}});
  const TokenText::Piece piece = text_->of(token);
  if (silent || (piece.special && !special_text_)) return;
  bytes_ += piece.bytes.size();
  offset_ += characters(piece.bytes);
}

void ChoiceLogprobs::end_prompt() {
  finish(true);
  bytes_ = 0;
}

void ChoiceLogprobs::told(std::size_t bytes) {
  while (!held_.empty() && held_.front().start < bytes) {
    release(held_.front());
    held_.pop_front();
  }
}

void ChoiceLogprobs::finish(bool keep) {
  if (keep) {
    for (const Held& held : held_) release(held);
  }
  held_.clear();
}

std::string ChoiceLogprobs::take() {
  std::string out;
  if (shape_ == Shape::chat) {
    out = fmt::format(R"({{"content":[{}],"refusal":null}})", tokens_);
  } else {
    out = fmt::format(R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})", tokens_,
                      values_, tops_, offsets_);
  }
  tokens_.clear();
  values_.clear();
  tops_.clear();
  offsets_.clear();
  return out;
}

void ChoiceLogprobs::release(const Held& held) {
  const std::string bytes = text_->of(held.token).bytes;
  if (shape_ == Shape::chat) {
    release_chat(held, bytes);
  } else {
    release_legacy(held, bytes);
  }
}

void ChoiceLogprobs::release_chat(const Held& held, const std::string& bytes) {
  std::string item = "{";
  append_chat_token(item, bytes, held.logprobs.logprob);
  item += R"(,"top_logprobs":[)";
  std::int32_t count = 0;
  for (const auto& [token, logprob] : held.logprobs.top) {
    if (count == most_) break;
    item += count++ == 0 ? "{" : ",{";
    append_chat_token(item, text_->of(token).bytes, logprob);
    item += '}';
  }
  append_item(tokens_, item += "]}");
}

void ChoiceLogprobs::release_legacy(const Held& held, const std::string& bytes) {
  constexpr const char* kPrefix = "bytes:";
  append_item(tokens_, json_string(shown_token(bytes, kPrefix)));
  append_item(offsets_, fmt::format("{}", held.offset));
  if (!held.known) {
    append_item(values_, "null");
    append_item(tops_, "null");
    return;
  }
  std::string value;
  append_json_number(value, held.logprobs.logprob);
  append_item(values_, value);
  // An object has each key once, and tokens may look the same; the most likely one stays. The token itself is always
  // in.
  std::vector<std::pair<std::string, float>> told;
  const auto tell = [&](std::string shown, float logprob) {
    const bool is_new = std::none_of(told.begin(), told.end(), [&](const auto& one) { return one.first == shown; });
    if (is_new) told.emplace_back(std::move(shown), logprob);
  };
  std::int32_t count = 0;
  for (const auto& [token, logprob] : held.logprobs.top) {
    if (count++ == most_) break;
    tell(shown_token(text_->of(token).bytes, kPrefix), logprob);
  }
  tell(shown_token(bytes, kPrefix), held.logprobs.logprob);
  std::string top = "{";
  for (const auto& [shown, logprob] : told) {
    if (top.size() > 1) top += ',';
    append_json_string(top, shown);
    top += ':';
    append_json_number(top, logprob);
  }
  append_item(tops_, top += '}');
}

}  // namespace millrace
