// Reading a batch's input file: is it one, and where its blocks of lines are. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "batches/batch_state.h"
#include "server/batch_line.h"

namespace millrace {

constexpr std::int64_t kBlockLines = 16;          // that a gateway claims at once, at most
constexpr std::size_t kBlockBytes = 1 << 20;      // a block that has so many takes no further line
constexpr std::size_t kMostLineBytes = 1 << 20;   // of the input file
constexpr std::int64_t kMostBatchLines = 50'000;  // OpenAI's limit, too
constexpr std::size_t kMostCustomId = 512;        // bytes
constexpr std::size_t kMostProblems = 20;         // that are told

/// Takes the file in pieces of any size.
class BatchValidator {
 public:
  /// `endpoint`: the url that each line must name.
  explicit BatchValidator(std::string endpoint) : endpoint_(std::move(endpoint)) {}

  void put(std::string_view bytes);
  void finish();

  /// After finish(). Not empty: the batch fails.
  [[nodiscard]] const std::vector<BatchProblem>& problems() const { return problems_; }
  [[nodiscard]] const std::vector<BlockStart>& index() const { return index_; }
  [[nodiscard]] std::int64_t requests() const { return requests_; }

 private:
  void take_line(bool ended);
  void check(const BatchLine& line);
  void problem(std::string code, std::string message);

  std::string endpoint_;
  std::string line_;              // what came of it, at most the limit and a byte
  std::uint64_t line_begin_ = 0;  // in the file
  std::uint64_t line_bytes_ = 0;
  std::int64_t line_number_ = 1, requests_ = 0;
  std::unordered_map<std::string, std::int64_t> names_;  // custom_id -> its line
  std::vector<BlockStart> index_;
  std::vector<BatchProblem> problems_;
};

/// A line of a block.
struct BlockLine {
  BatchKey key;
  BatchLine request;
};

/// The requests of a block, from its bytes in the file.
std::vector<BlockLine> read_block(std::string_view bytes, const BlockStart& start);

}  // namespace millrace
