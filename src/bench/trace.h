// Traces of real traffic: when requests arrived, how long they were, and which prefixes they shared. Values only.
//
// Sources: Patel et al., "Splitwise" (ISCA 2024) for Azure's; Qin et al., "Mooncake" (FAST 2025) for Mooncake's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace::bench {

/// Tokens of a prompt that one hash id of a Mooncake trace stands for; the last id of a prompt may stand for fewer.
inline constexpr std::int32_t kTraceBlockTokens = 512;

/// One request of a trace.
struct TraceRecord {
  double arrival_s = 0.0;  // from the first arrival of the trace
  std::int32_t input_tokens = 0;
  std::int32_t output_tokens = 0;
  std::vector<std::int64_t> hash_ids =
      {};  // equal ids: the same tokens, after the same tokens; empty: nothing is known
};

/// Requests in order of arrival, at least one.
struct Trace {
  std::vector<TraceRecord> records;
  std::int32_t block_tokens = kTraceBlockTokens;  // of one hash id
};

/// Parses `text`: Azure's CSV (TIMESTAMP,ContextTokens,GeneratedTokens) or, where it begins with a brace, Mooncake's
/// JSON lines (timestamp in ms, input_length, output_length, hash_ids of 512 tokens each; unknown keys are ignored).
/// Records that are out of order are sorted by arrival. Errors name `name` and the line: a line that is not of the
/// format, a number out of range (at most 2^24 tokens), hash ids that do not cover the prompt; a trace without
/// requests.
Result<Trace> parse_trace(std::string_view text, const std::string& name);

/// Reads a file that may be compressed with gzip (told by its content, not its name). Errors: those of parse_trace;
/// the file is missing, or has more than 1 GiB of text.
Result<Trace> read_trace(const std::filesystem::path& path);

/// A trace on smaller hardware: arrivals are multiplied by `time` (2: half the rate), prompts, answers and the blocks
/// of hash ids by `length`, none below one token. As blocks shrink with the prompts, they are shared as before. Error:
/// a factor that is not positive and finite, or lengths beyond 2^24 tokens.
Status scale_trace(Trace& trace, double time, double length);

}  // namespace millrace::bench
