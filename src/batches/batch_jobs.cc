#include "batches/batch_jobs.h"

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

constexpr std::size_t kMostInline = kBlobPiece;  // bytes of a record that stands in its value

std::string big_name(const std::string& batch, const BatchKey& key, const std::string& writer) {
  return fmt::format("big.{}.{}.{}", batch, key.number, writer);
}

}  // namespace

Result<std::string> place_result(BatchStore& store, const std::string& batch, const BatchKey& key, LineResult result,
                                 const std::string& writer) {
  result.bytes = result.record.size();
  result.writer = writer;
  if (result.bytes > kMostInline) {
    result.blob = big_name(batch, key, writer);
    BlobWriter blob(store, result.blob);
    MILLRACE_CHECK_OK(blob.append(result.record));
    MILLRACE_CHECK_OK(blob.finish());
    result.record.clear();
  }
  return stored_result(result);
}

Status drop_result(BatchStore& store, const std::string& batch, const BatchKey& key, const std::string& writer) {
  return store.erase_below(big_name(batch, key, writer));
}

Result<std::vector<std::pair<std::int64_t, LineResult>>> list_results(BatchStore& store, const std::string& batch,
                                                                      std::int64_t block, std::int64_t first,
                                                                      std::int64_t end) {
  std::vector<std::pair<std::int64_t, LineResult>> results;
  for (std::int64_t request = first; request < end; ++request) {
    MILLRACE_TRY(const auto entry, store.get(batch_keys::line(batch, block, request)));
    if (!entry) continue;
    MILLRACE_TRY(LineResult result, read_result(entry->value));
    results.emplace_back(request, std::move(result));
  }
  return results;
}

Result<bool> ValidateJob::step() {
  if (at_ < bytes_) {
    const std::uint64_t end = std::min<std::uint64_t>(bytes_, at_ + kBlobPiece);
    const auto piece = read_blob(*store_, blob_, at_, end);
    if (!piece.ok() && piece.error().kind == ErrorKind::invalid) {
      problems_.push_back({"input_file_gone", "The input file is not there any more.", 0});
      return true;
    }
    if (!piece.ok()) return piece.error();
    validator_.put(*piece);
    at_ = end;
    return false;
  }
  if (!std::exchange(read_, true)) {
    validator_.finish();
    problems_ = validator_.problems();
  }
  // The same, whoever writes it.
  if (problems_.empty()) MILLRACE_CHECK_OK(store_->put("index." + batch_, stored_index(validator_.index())));
  return true;
}

FinalizeJob::FinalizeJob(BatchStore& store, BatchRecord batch, UnixTime now)
    : store_(&store),
      batch_(std::move(batch)),
      now_(now),
      output_(output_of(store, batch_, "output")),
      error_(output_of(store, batch_, "error")) {}

/// Its names follow from the batch's, so that two that write it write the same.
FinalizeJob::Output FinalizeJob::output_of(BatchStore& store, const BatchRecord& batch, std::string_view kind) {
  const std::string seed = fmt::format("{} {}", batch.id, kind);
  const std::string unique = fmt::format("{:016x}{:016x}", batch_line_hash(seed), batch_line_hash("low " + seed));
  return {.id = "file-" + unique,
          .blob = "data." + unique,
          .name = fmt::format("{}_{}.jsonl", batch.id, kind),
          .writer = BlobWriter(store, "data." + unique)};
}

Result<FinalizeJob::Progress> FinalizeJob::step() {
  if (index_.empty() && batch_.blocks > 0) {
    MILLRACE_TRY(const auto entry, store_->get("index." + batch_.id));
    if (!entry) return Progress::broken;
    MILLRACE_TRY(index_, read_index(entry->value));
    if (static_cast<std::int64_t>(index_.size()) != batch_.blocks + 1) return Progress::broken;
  }
  if (block_ < batch_.blocks) {
    const auto block = static_cast<std::size_t>(block_);
    const std::int64_t first = index_[block].request, end = index_[block + 1].request, wanted = end - first;
    MILLRACE_TRY(Results results, list_results(*store_, batch_.id, block_, first, end));
    if (static_cast<std::int64_t>(results.size()) < wanted) {
      const bool fills = batch_.status == BatchStatus::cancelling || batch_.deadline_passed;
      if (!fills) return Progress::missing;
      MILLRACE_TRY(const bool filled, fill(results));
      return filled ? Progress::more : Progress::broken;
    }
    for (const auto& [request, result] : results) MILLRACE_CHECK_OK(take(result));
    ++block_;
    return Progress::more;
  }
  MILLRACE_CHECK_OK(finish(output_));
  MILLRACE_CHECK_OK(finish(error_));
  return Progress::done;
}

/// False: the lines cannot be read.
Result<bool> FinalizeJob::fill(const Results& there) {
  const auto block = static_cast<std::size_t>(block_);
  const auto bytes = read_blob(*store_, batch_.input_blob, index_[block].offset, index_[block + 1].offset);
  if (!bytes.ok() && bytes.error().kind == ErrorKind::invalid) return false;
  if (!bytes.ok()) return bytes.error();
  for (const BlockLine& line : read_block(*bytes, index_[block])) {
    const auto number = static_cast<std::int64_t>(line.key.number);
    if (std::ranges::find(there, number, &std::pair<std::int64_t, LineResult>::first) != there.end()) continue;
    LineResult result{.status = 0};
    result.record = batch_.deadline_passed
                        ? unanswered_record(line.key, line.request.custom_id, "batch_expired",
                                            "This request could not be executed before the completion window expired.")
                        : unanswered_record(line.key, line.request.custom_id, "batch_cancelled",
                                            "The batch was cancelled before this request was executed.");
    result.bytes = result.record.size();
    // Where it has one by now, that is the result.
    MILLRACE_TRY(const auto created,
                 store_->create(batch_keys::line(batch_.id, block_, number), stored_result(result)));
    (void)created;
  }
  return true;
}

Status FinalizeJob::take(const LineResult& result) {
  constexpr int kOk = 200;
  const bool good = result.status == kOk;
  ++counts_.total;
  ++(good ? counts_.completed : counts_.failed);
  Output& output = good ? output_ : error_;
  if (result.blob.empty()) return output.writer.append(result.record);
  MILLRACE_TRY(const std::string record, read_blob(*store_, result.blob, 0, result.bytes));
  return output.writer.append(record);
}

Status FinalizeJob::finish(Output& output) {
  MILLRACE_CHECK_OK(output.writer.finish());
  if (output.writer.size() == 0) {
    output.id.clear();
    return Ok{};
  }
  const FileRecord file{.id = output.id,
                        .blob = output.blob,
                        .name = output.name,
                        .purpose = "batch_output",
                        .bytes = output.writer.size(),
                        .created_at = now_};
  const std::string key = batch_keys::file(batch_keys::owner(batch_.owner), file.id);
  MILLRACE_TRY(const auto created, store_->create(key, stored_file(file)));
  (void)created;  // the same, by somebody whose claim had expired
  return Ok{};
}

}  // namespace millrace
