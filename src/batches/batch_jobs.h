// The two tasks of a batch that are no lines: reading its input file, and putting its output together. Each is done in
// steps that take little time, so that whoever does them can see to other things between.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "batches/batch_blob.h"
#include "batches/batch_state.h"
#include "batches/batch_store.h"
#include "batches/batch_validation.h"

namespace millrace {

/// A result as it is stored, with its record put where it belongs: in the value, or in a blob of `writer`'s.
Result<std::string> place_result(BatchStore& store, const std::string& batch, const BatchKey& key, LineResult result,
                                 const std::string& writer);
/// Of a writer whose result was not the first: its blob is not needed.
Status drop_result(BatchStore& store, const std::string& batch, const BatchKey& key, const std::string& writer);

/// The results of a block that are there, of the requests `first` to `end`, by their numbers. Each is asked for: a list
/// costs a store of many keys more.
Result<std::vector<std::pair<std::int64_t, LineResult>>> list_results(BatchStore& store, const std::string& batch,
                                                                      std::int64_t block, std::int64_t first,
                                                                      std::int64_t end);

class ValidateJob {
 public:
  ValidateJob(BatchStore& store, const BatchRecord& batch)
      : store_(&store),
        blob_(batch.input_blob),
        bytes_(batch.input_bytes),
        batch_(batch.id),
        validator_(batch.endpoint) {}

  /// True: done; then the index is stored, or there are problems. An error may be tried again.
  Result<bool> step();

  [[nodiscard]] const std::vector<BatchProblem>& problems() const { return problems_; }
  [[nodiscard]] std::int64_t requests() const { return validator_.requests(); }
  [[nodiscard]] std::int64_t blocks() const { return static_cast<std::int64_t>(validator_.index().size()) - 1; }

 private:
  BatchStore* store_;
  std::string blob_;
  std::uint64_t bytes_, at_ = 0;
  std::string batch_;
  BatchValidator validator_;
  bool read_ = false;
  std::vector<BatchProblem> problems_;
};

/// Gives each line that has no result one, where the batch has expired or was cancelled, and writes the files.
class FinalizeJob {
 public:
  /// `now`: when the files are made.
  FinalizeJob(BatchStore& store, BatchRecord batch, UnixTime now);

  enum class Progress : std::uint8_t {
    more,
    done,
    missing,  // a line of missing_block() has no result, though all were said to be done
    broken,   // the input is gone
  };
  /// After an error it must be begun anew.
  Result<Progress> step();

  [[nodiscard]] std::int64_t missing_block() const { return block_; }
  [[nodiscard]] const BatchCounts& counts() const { return counts_; }
  [[nodiscard]] const std::string& output_file() const { return output_.id; }  // empty: none
  [[nodiscard]] const std::string& error_file() const { return error_.id; }

 private:
  using Results = std::vector<std::pair<std::int64_t, LineResult>>;
  /// One of the two files.
  struct Output {
    std::string id, blob, name;
    BlobWriter writer;
  };
  static Output output_of(BatchStore& store, const BatchRecord& batch, std::string_view kind);

  Result<bool> fill(const Results& there);
  Status take(const LineResult& result);
  Status finish(Output& output);

  BatchStore* store_;
  BatchRecord batch_;
  UnixTime now_;
  Output output_, error_;
  std::vector<BlockStart> index_;
  std::int64_t block_ = 0;
  BatchCounts counts_;
};

}  // namespace millrace
