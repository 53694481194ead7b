// Prompts made up from numbers: the same numbers give the same tokens, so prefixes can be shared on purpose. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/trace.h"
#include "core/result.h"

namespace millrace::bench {

/// Ids that prompts are made of: [first, end), to be chosen so that no special token lies in it.
struct TokenRange {
  std::int32_t first = 0;
  std::int32_t end = 0;
};

/// A range without special tokens for most vocabularies, which keep them at one end or both: [1000, 32000) of one with
/// 32,000 entries or more (or of unknown size, `vocab` 0), the middle half of a smaller one.
TokenRange plain_tokens(std::int64_t vocab);

/// What a stream of made-up tokens is for; streams of different uses never share tokens.
enum class Stream : std::uint32_t { trace_block, request, shared_prefix, warmup };

/// The first `tokens` tokens of the endless stream (use, number). A prompt is a list of these.
struct PromptPart {
  Stream use = Stream::request;
  std::uint64_t number = 0;
  std::int32_t tokens = 0;
};

/// Token `index` of a stream: a pure function of the arguments. The range must not be empty.
std::int32_t stream_token(std::uint64_t seed, Stream use, std::uint64_t number, std::uint32_t index, TokenRange range);

/// The prompt of a trace's record: a stream for each hash id, so that equal ids become equal tokens; without hash ids
/// the stream of `request`, its number in the trace. The parts sum to record.input_tokens.
std::vector<PromptPart> trace_prompt(const TraceRecord& record, std::int32_t block_tokens, std::uint64_t request);

/// The parts as token ids.
std::vector<std::int32_t> prompt_ids(std::span<const PromptPart> parts, std::uint64_t seed, TokenRange range);

/// Text to make prompts of where a server takes no ids: each stream is a run of words that starts somewhere in it.
class PromptText {
 public:
  /// Error: no words in `text`.
  static Result<PromptText> make(std::string text);

  /// The parts as text, three words for four tokens: about what tokenizers make of English. The server's own count of
  /// the prompt's tokens is what is reported.
  [[nodiscard]] std::string prompt(std::span<const PromptPart> parts, std::uint64_t seed) const;

 private:
  struct Word {
    std::size_t begin = 0, size = 0;
  };

  std::string text_;
  std::vector<Word> words_;
};

/// A length, or the lengths from `low` to `high`, all equally likely.
struct LengthRange {
  std::int32_t low = 0;
  std::int32_t high = 0;
};

/// "512" or "128-1024". Error: neither, below `least`, beyond 2^24, or the wrong way round.
Result<LengthRange> parse_lengths(const std::string& text, std::int32_t least);

/// The length of request `number`; `salt` keeps draws for different things apart.
std::int32_t draw_length(LengthRange range, std::uint64_t seed, std::uint64_t number, std::uint32_t salt);

}  // namespace millrace::bench
