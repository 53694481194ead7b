// What is kept of files and batches, as values: their JSON in the store and in the API, and the names of their keys
// (docs/batches.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/result.h"

namespace millrace {

/// Seconds since 1970, of the wall clock.
using UnixTime = std::int64_t;

struct FileRecord {
  std::string id;       // "file-..."
  std::string blob;     // where its bytes are
  std::string name;     // as the client called it
  std::string purpose;  // "batch" or "batch_output"
  std::uint64_t bytes = 0;
  UnixTime created_at = 0;
};

enum class BatchStatus : std::uint8_t {
  validating,
  failed,
  in_progress,
  finalizing,
  completed,
  expired,
  cancelling,
  cancelled,
};
constexpr std::size_t kBatchStatuses = 8;
std::string_view batch_status_name(BatchStatus status);
/// Nothing changes any more.
bool has_ended(BatchStatus status);

/// What is wrong with the input file.
struct BatchProblem {
  std::string code, message;
  std::int64_t line = 0;  // from 1; 0: the file as a whole
};

struct BatchCounts {
  std::int64_t total = 0, completed = 0, failed = 0;  // lines
};

struct BatchRecord {
  std::string id;     // "batch_..."
  std::string owner;  // tenant
  std::string model;  // that the gateway has which took it, and whose gateways work on it
  std::string endpoint, window;
  std::string input_file;
  std::string input_blob;
  std::uint64_t input_bytes = 0;
  BatchStatus status = BatchStatus::validating;
  bool deadline_passed = false;  // while finalizing: it ends as expired
  std::int64_t blocks = 0;       // once it is validated
  BatchCounts counts;            // `total` once it is validated, all when it has ended
  std::vector<BatchProblem> problems = {};
  std::string output_file, error_file;                             // empty: none
  std::vector<std::pair<std::string, std::string>> metadata = {};  // as the client gave it
  UnixTime created_at = 0, expires_at = 0;
  // 0: it has not come to that.
  UnixTime in_progress_at = 0, finalizing_at = 0, completed_at = 0, failed_at = 0, expired_at = 0, cancelling_at = 0,
           cancelled_at = 0;

  /// When it ended; 0: it has not.
  [[nodiscard]] UnixTime ended_at() const;
};

/// As the API shows them.
std::string file_json(const FileRecord& file);
std::string batch_json(const BatchRecord& batch);

/// As the store has them. Errors of reading: what is wrong.
std::string stored_file(const FileRecord& file);
Result<FileRecord> read_file_record(std::string_view text);
std::string stored_batch(const BatchRecord& batch);
Result<BatchRecord> read_batch(std::string_view text);

/// What lines took that were answered: how long others of the batch will be.
struct LineTokens {
  std::int64_t lines = 0, prompt = 0, answer = 0;  // tokens of prompts without those that were cached

  void add(const LineTokens& more) {
    lines += more.lines;
    prompt += more.prompt;
    answer += more.answer;
  }
};

/// Who has a task of a batch, or that it is done.
struct BatchClaim {
  std::string life;  // of the process that has claimed it
  bool done = false;
  BatchCounts counts = {};  // of a block that is done
  LineTokens tokens = {};   // … of those of its lines that this process answered
};
std::string stored_claim(const BatchClaim& claim);
Result<BatchClaim> read_claim(std::string_view text);

/// The result of a line: the record of the output or error file, or where it is.
struct LineResult {
  int status = 200;         // of HTTP; 0: no request was made
  std::string record = {};  // with its newline; empty: it is in `blob`
  std::string blob = {};
  std::uint64_t bytes = 0;  // of the record
  std::string writer = {};  // who stored it, so that no two store the same; is not read
};
std::string stored_result(const LineResult& result);
Result<LineResult> read_result(std::string_view text);

/// Where blocks of lines begin in the input file; the last entry is where the last one ends.
struct BlockStart {
  std::uint64_t offset = 0;  // bytes
  std::int64_t request = 0;  // number of its first request, from 0; blank lines do not count

  bool operator==(const BlockStart&) const = default;
};
std::string stored_index(const std::vector<BlockStart>& blocks);
Result<std::vector<BlockStart>> read_index(std::string_view bytes);

/// "90s", "30m", "24h", "7d" in seconds. Error: anything else, or not between one second and 30 days.
Result<std::int64_t> read_window(std::string_view text);

/// Keys. OWNER is a hash, so that it may be anything.
namespace batch_keys {
std::string owner(std::string_view tenant);
std::string file(std::string_view owner, std::string_view id);
std::string batch(std::string_view owner, std::string_view id);
std::string line(std::string_view batch, std::int64_t block, std::int64_t request);
}  // namespace batch_keys

}  // namespace millrace
