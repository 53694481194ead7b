// BatchApi: what /v1/files and /v1/batches answer, as OpenAI's API does: from requests to the store and back, without
// sockets.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "batches/batch_state.h"
#include "batches/batch_store.h"
#include "server/api_error.h"
#include "server/http_message.h"

namespace millrace {

struct BatchApiOptions {
  std::string model;                // of the gateway: its batches are for this one
  std::function<UnixTime()> now;    // wall clock
  std::function<void()> on_change;  // a batch was made or cancelled
  std::uint64_t max_file_bytes = 200 << 20;
  std::int64_t max_files = 10'000;  // of one tenant, as below
  std::uint64_t max_bytes = std::uint64_t{10} << 30;
  std::int64_t max_batches = 100;   // that have not ended
  std::int64_t max_records = 2000;  // of batches, also of those that have ended
};

/// Any thread; calls wait for the store. A tenant (HttpRequest::tenant) sees what is its own.
class BatchApi {
 public:
  BatchApi(BatchStore& store, BatchApiOptions options) : store_(&store), options_(std::move(options)) {}

  HttpReply upload(const HttpRequest& request);
  HttpReply list_files(const HttpRequest& request);
  HttpReply file(const HttpRequest& request);
  HttpReply delete_file(const HttpRequest& request);
  HttpReply create_batch(const HttpRequest& request);
  HttpReply list_batches(const HttpRequest& request);
  HttpReply batch(const HttpRequest& request);
  HttpReply cancel_batch(const HttpRequest& request);

  /// The file that the request names by its parameter.
  ApiResult<FileRecord> find_file(const HttpRequest& request);
  /// Bytes of it from `begin` on: at most a piece.
  Result<std::string> read_file(const FileRecord& file, std::uint64_t begin);

 private:
  ApiResult<std::string> try_upload(const HttpRequest& request);
  ApiResult<std::string> try_delete(const HttpRequest& request);
  ApiResult<std::string> try_create(const HttpRequest& request);
  ApiResult<std::string> try_cancel(const HttpRequest& request);
  ApiResult<BatchRecord> read_create(const HttpRequest& request);
  ApiResult<FileRecord> find_file(const std::string& tenant, const std::string& id);
  /// With its key's revision.
  ApiResult<std::pair<BatchRecord, std::uint64_t>> find_batch(const HttpRequest& request);
  ApiResult<std::vector<FileRecord>> files_of(const std::string& tenant);
  ApiResult<std::vector<BatchRecord>> batches_of(const std::string& tenant);
  /// Makes room for the record of another batch: what ended first is forgotten.
  ApiStatus make_room(const std::string& tenant, std::vector<BatchRecord> batches);
  /// Of a batch that is worked on, by what is stored.
  ApiStatus count(BatchRecord& batch);

  BatchStore* store_;
  BatchApiOptions options_;
};

}  // namespace millrace
