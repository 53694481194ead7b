// ChoiceLogprobs: the logprobs of one choice, in the shape that its endpoint tells them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "engine/request.h"
#include "server/api_token_text.h"

namespace millrace {

/// Tokens are held until the text that they begin in has been told: those of a stop string never are.
class ChoiceLogprobs {
 public:
  enum class Shape : std::uint8_t {
    chat,   // {"content":[{"token","logprob","bytes","top_logprobs"}],"refusal":null}
    legacy  // {"tokens":[],"token_logprobs":[],"top_logprobs":[],"text_offset":[]}
  };

  /// `most`: how many of the most likely tokens are told. `special_text`: special tokens have text. `text` must outlive
  /// it.
  ChoiceLogprobs(const TokenText& text, Shape shape, std::int32_t most, bool special_text)
      : text_(&text), shape_(shape), most_(most), special_text_(special_text) {}

  /// The next token; `logprobs` may be null (the first of a prompt). `silent`: it ended the answer and is not of its
  /// text.
  void add(std::int32_t token, const TokenLogprobs* logprobs, bool silent);
  /// What was added so far is of the prompt: it is due, and the text of the answer begins here.
  void end_prompt();
  /// `bytes` of the answer's text have been told.
  void told(std::size_t bytes);
  /// The answer is over. `keep`: tokens whose text was not told are due too.
  void finish(bool keep);

  [[nodiscard]] bool due() const { return !tokens_.empty(); }
  /// The JSON of those that are due, which then are so no longer.
  std::string take();

 private:
  struct Held {
    std::size_t start;
    std::size_t offset;
    std::int32_t token;
    bool known;
    TokenLogprobs logprobs;
  };

  void release(const Held& held);
  void release_chat(const Held& held, const std::string& bytes);
  void release_legacy(const Held& held, const std::string& bytes);

  const TokenText* text_;
  Shape shape_;
  std::int32_t most_;
  bool special_text_;
  std::deque<Held> held_;
  std::size_t bytes_ = 0;                         // of the answer's text, by the tokens
  std::size_t offset_ = 0;                        // characters of the choice's text, by the tokens
  std::string tokens_, values_, tops_, offsets_;  // members of JSON lists; chat: tokens_ alone
};

}  // namespace millrace
