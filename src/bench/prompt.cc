#include "bench/prompt.h"

#include <algorithm>
#include <charconv>

#include "core/check.h"
#include "core/philox.h"

namespace millrace::bench {

namespace {

constexpr std::int32_t kMaxTokens = 1 << 24;

// The last word of Philox's counter says what a number is drawn for. Streams take the values of Stream.
constexpr std::uint32_t kTextStart = 0x100;
constexpr std::uint32_t kLength = 0x200;

PhiloxBlock draw(std::uint64_t seed, std::uint64_t number, std::uint32_t index, std::uint32_t purpose) {
  return philox4x32_10({static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32), index, purpose},
                       {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

/// A whole number below `count` from 32 random bits. Some values are likelier by at most count / 2^32.
std::uint32_t below(std::uint32_t bits, std::uint32_t count) {
  return static_cast<std::uint32_t>((std::uint64_t{bits} * count) >> 32);
}

std::int32_t pick(TokenRange range, std::uint32_t bits) {
  return range.first + static_cast<std::int32_t>(below(bits, static_cast<std::uint32_t>(range.end - range.first)));
}

void append_stream(const PromptPart& part, std::uint64_t seed, TokenRange range, std::vector<std::int32_t>& ids) {
  for (std::int32_t index = 0; index < part.tokens; index += 4) {
    const PhiloxBlock block =
        draw(seed, part.number, static_cast<std::uint32_t>(index / 4), static_cast<std::uint32_t>(part.use));
    for (std::int32_t i = 0; i < std::min(4, part.tokens - index); ++i) {
      ids.push_back(pick(range, block[static_cast<std::size_t>(i)]));
    }
  }
}

}  // namespace

TokenRange plain_tokens(std::int64_t vocab) {
  constexpr TokenRange kLarge{1000, 32000};
  if (vocab <= 0 || vocab >= kLarge.end) return kLarge;
  const auto size = static_cast<std::int32_t>(vocab);
  return {size / 4, std::max(size / 4 + 1, size - size / 4)};
}

std::int32_t stream_token(std::uint64_t seed, Stream use, std::uint64_t number, std::uint32_t index, TokenRange range) {
  MILLRACE_CHECK(range.first < range.end, "[{}, {})", range.first, range.end);
  return pick(range, draw(seed, number, index / 4, static_cast<std::uint32_t>(use))[index % 4]);
}

std::vector<PromptPart> trace_prompt(const TraceRecord& record, std::int32_t block_tokens, std::uint64_t request) {
  if (record.hash_ids.empty()) return {{Stream::request, request, record.input_tokens}};
  std::vector<PromptPart> parts;
  std::int32_t left = record.input_tokens;
  for (std::size_t i = 0; i < record.hash_ids.size() && left > 0; ++i) {
    // The last block takes what rounding left over when the trace was scaled.
    const bool last = i + 1 == record.hash_ids.size();
    const std::int32_t tokens = last ? left : std::min(left, block_tokens);
    parts.push_back({Stream::trace_block, static_cast<std::uint64_t>(record.hash_ids[i]), tokens});
    left -= tokens;
  }
  return parts;
}

std::vector<std::int32_t> prompt_ids(std::span<const PromptPart> parts, std::uint64_t seed, TokenRange range) {
  MILLRACE_CHECK(range.first < range.end, "[{}, {})", range.first, range.end);
  std::vector<std::int32_t> ids;
  std::size_t tokens = 0;
  for (const PromptPart& part : parts) tokens += static_cast<std::size_t>(part.tokens);
  ids.reserve(tokens);
  for (const PromptPart& part : parts) append_stream(part, seed, range, ids);
  return ids;
}

Result<PromptText> PromptText::make(std::string text) {
  constexpr std::string_view kBlank = " \t\r\n\f\v";
  PromptText made;
  std::size_t at = text.find_first_not_of(kBlank);
  while (at != std::string::npos) {
    const std::size_t end = std::min(text.find_first_of(kBlank, at), text.size());
    made.words_.push_back({at, end - at});
    at = text.find_first_not_of(kBlank, end);
  }
  if (made.words_.empty()) return fail("no words in the text that prompts are made of");
  made.text_ = std::move(text);
  return made;
}

std::string PromptText::prompt(std::span<const PromptPart> parts, std::uint64_t seed) const {
  std::string made;
  for (const PromptPart& part : parts) {
    const PhiloxBlock block = draw(seed, part.number, 0, kTextStart + static_cast<std::uint32_t>(part.use));
    std::size_t at = below(block[0], static_cast<std::uint32_t>(std::min<std::size_t>(words_.size(), UINT32_MAX)));
    const std::int64_t count = part.tokens > 0 ? std::max<std::int64_t>(1, std::int64_t{part.tokens} * 3 / 4) : 0;
    for (std::int64_t i = 0; i < count; ++i) {
      if (!made.empty()) made += ' ';
      made.append(text_, words_[at].begin, words_[at].size);
      at = at + 1 == words_.size() ? 0 : at + 1;
    }
  }
  return made;
}

Result<LengthRange> parse_lengths(const std::string& text, std::int32_t least) {
  LengthRange range;
  const char* const end = text.data() + text.size();
  auto [after, code] = std::from_chars(text.data(), end, range.low);
  range.high = range.low;
  if (code == std::errc() && after != end && *after == '-') {
    const auto second = std::from_chars(after + 1, end, range.high);
    after = second.ptr;
    code = second.ec;
  }
  if (code != std::errc() || after != end || range.low < least || range.high < range.low || range.high > kMaxTokens) {
    return fail("\"{}\" is neither a length such as 512 nor a range such as 128-1024 within {} to {}", text, least,
                kMaxTokens);
  }
  return range;
}

std::int32_t draw_length(LengthRange range, std::uint64_t seed, std::uint64_t number, std::uint32_t salt) {
  const auto choices = static_cast<std::uint32_t>(range.high - range.low) + 1;
  return range.low + static_cast<std::int32_t>(below(draw(seed, number, 0, kLength + salt)[0], choices));
}

}  // namespace millrace::bench
