#include "batches/batch_api.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "batches/batch_blob.h"
#include "batches/batch_jobs.h"
#include "server/api_id.h"
#include "server/api_json.h"
#include "server/http_text.h"
#include "server/multipart.h"

namespace millrace {

namespace {

constexpr std::size_t kIdLetters = 24, kMostId = 64, kMostFilename = 256;
constexpr std::size_t kMostMetadata = 16, kMostMetadataKey = 64, kMostMetadataValue = 512;
constexpr int kCancelTries = 8;

/// What a client is told of an error of the store.
template <typename T>
ApiResult<T> api(Result<T> result) {
  if (!result.ok()) return ApiError::from(result.error());
  return std::move(result).value();
}

ApiError not_found(std::string_view what, std::string_view id) {
  return {.status = 404,
          .message = fmt::format("There is no {} with the id '{}'.", what, escape_for_log(id, kMostId)),
          .param = "id"};
}

/// Whether it can be part of a key; whatever else a client asks for is not there.
bool is_id(std::string_view id) {
  return !id.empty() && id.size() <= kMostId && std::ranges::all_of(id, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
  });
}

HttpReply reply(ApiResult<std::string> result) {
  if (!result.ok()) return error_reply(result.error());
  return {.body = std::move(result).value()};
}

struct Page {
  std::size_t limit = 0;
  std::string after;
  bool oldest_first = false;
};

ApiResult<Page> read_page(std::string_view query, std::size_t fallback, std::size_t most) {
  Page page{.limit = fallback, .after = query_value(query, "after").value_or("")};
  if (const auto limit = query_value(query, "limit")) {
    const char* const end = limit->data() + limit->size();
    const auto [stopped, problem] = std::from_chars(limit->data(), end, page.limit);
    if (problem != std::errc() || stopped != end || page.limit < 1 || page.limit > most) {
      return invalid_value("limit", fmt::format("expected 1 to {}", most));
    }
  }
  const std::string order = query_value(query, "order").value_or("desc");
  if (order != "asc" && order != "desc") return invalid_value("order", "expected 'asc' or 'desc'");
  page.oldest_first = order == "asc";
  return page;
}

/// A list as OpenAI's API gives it: the page behind the item `after`.
template <typename T, typename Show>
ApiResult<std::string> list_page(std::vector<T> items, const Page& page, const Show& show) {
  std::ranges::sort(items, [&](const T& a, const T& b) {
    const auto rank = [](const T& item) { return std::pair(item.created_at, item.id); };
    return page.oldest_first ? rank(a) < rank(b) : rank(b) < rank(a);
  });
  auto first = items.begin();
  if (!page.after.empty()) {
    first = std::ranges::find(items, page.after, &T::id);
    if (first == items.end()) return invalid_value("after", "there is nothing with this id");
    ++first;
  }
  const auto left = static_cast<std::size_t>(items.end() - first);
  const auto last = first + static_cast<std::ptrdiff_t>(std::min(left, page.limit));
  std::string out = R"({"object":"list","data":[)";
  for (auto item = first; item != last; ++item) {
    if (item != first) out += ',';
    MILLRACE_TRY(const std::string shown, show(*item));
    out += shown;
  }
  const auto id = [&](const T& item) { return json_string(item.id); };
  return out + fmt::format(R"(],"first_id":{},"last_id":{},"has_more":{}}})", first == last ? "null" : id(*first),
                           first == last ? "null" : id(*(last - 1)), left > page.limit);
}

}  // namespace

HttpReply BatchApi::upload(const HttpRequest& request) {
  return reply(try_upload(request));
}

ApiResult<std::string> BatchApi::try_upload(const HttpRequest& request) {
  MILLRACE_TRY(const std::vector<FormPart> parts, api(parse_form(request.content_type, request.body)));
  const FormPart* content = nullptr;
  std::string purpose;
  for (const FormPart& part : parts) {
    if (part.name == "file") {
      content = &part;
    } else if (part.name == "purpose") {
      purpose = part.content;
    } else {
      return invalid_value(escape_for_log(part.name, kMostId), "the form has this field, which is not known here");
    }
  }
  if (content == nullptr || !content->filename) return missing("file");
  if (purpose != "batch") return invalid_value("purpose", "the only purpose of a file that is known here is 'batch'");
  if (content->content.size() > options_.max_file_bytes) {
    return ApiError{.status = 413,
                    .message = fmt::format("The file has {} bytes, at most {} are allowed.", content->content.size(),
                                           options_.max_file_bytes),
                    .param = "file"};
  }
  MILLRACE_TRY(const std::vector<FileRecord> files, files_of(request.tenant));
  std::uint64_t bytes = content->content.size();
  for (const FileRecord& file : files) bytes += file.bytes;
  if (static_cast<std::int64_t>(files.size()) >= options_.max_files || bytes > options_.max_bytes) {
    return ApiError{.message = fmt::format("There is room for {} files with {} bytes in all; delete some first.",
                                           options_.max_files, options_.max_bytes),
                    .code = "storage_limit_exceeded"};
  }
  const std::string unique = random_letters(kIdLetters);
  FileRecord file{.id = "file-" + unique,
                  .blob = "data." + unique,
                  .name = content->filename->substr(0, kMostFilename),
                  .purpose = purpose,
                  .bytes = content->content.size(),
                  .created_at = options_.now()};
  BlobWriter blob(*store_, file.blob);
  MILLRACE_CHECK_OK(api(blob.append(content->content)));
  MILLRACE_CHECK_OK(api(blob.finish()));
  const std::string key = batch_keys::file(batch_keys::owner(request.tenant), file.id);
  MILLRACE_CHECK_OK(api(store_->create(key, stored_file(file))));
  return file_json(file);
}

HttpReply BatchApi::list_files(const HttpRequest& request) {
  constexpr std::size_t kMost = 10'000;
  return reply([&]() -> ApiResult<std::string> {
    MILLRACE_TRY(const Page page, read_page(request.query, kMost, kMost));
    MILLRACE_TRY(std::vector<FileRecord> files, files_of(request.tenant));
    if (const auto purpose = query_value(request.query, "purpose")) {
      std::erase_if(files, [&](const FileRecord& file) { return file.purpose != *purpose; });
    }
    return list_page(std::move(files), page,
                     [](const FileRecord& file) { return ApiResult<std::string>(file_json(file)); });
  }());
}

HttpReply BatchApi::file(const HttpRequest& request) {
  const auto found = find_file(request);
  return found.ok() ? HttpReply{.body = file_json(*found)} : error_reply(found.error());
}

HttpReply BatchApi::delete_file(const HttpRequest& request) {
  return reply(try_delete(request));
}

ApiResult<std::string> BatchApi::try_delete(const HttpRequest& request) {
  MILLRACE_TRY(const FileRecord file, find_file(request));
  MILLRACE_TRY(const std::vector<BatchRecord> batches, batches_of(request.tenant));
  for (const BatchRecord& batch : batches) {
    if (batch.input_file != file.id || has_ended(batch.status)) continue;
    return ApiError{
        .status = 409,
        .message = fmt::format("The file is the input of {}, which has not ended; cancel it first.", batch.id),
        .code = "file_in_use"};
  }
  MILLRACE_CHECK_OK(api(store_->erase(batch_keys::file(batch_keys::owner(request.tenant), file.id))));
  MILLRACE_CHECK_OK(api(store_->erase_below(file.blob)));
  return fmt::format(R"({{"id":{},"object":"file","deleted":true}})", json_string(file.id));
}

ApiResult<FileRecord> BatchApi::find_file(const HttpRequest& request) {
  return find_file(request.tenant, request.parameter);
}

ApiResult<FileRecord> BatchApi::find_file(const std::string& tenant, const std::string& id) {
  if (!is_id(id)) return not_found("file", id);
  MILLRACE_TRY(const auto entry, api(store_->get(batch_keys::file(batch_keys::owner(tenant), id))));
  if (!entry) return not_found("file", id);
  auto file = read_file_record(entry->value);
  if (!file.ok()) return ApiError::internal(file.error().message);
  return std::move(*file);
}

Result<std::string> BatchApi::read_file(const FileRecord& file, std::uint64_t begin) {
  return read_blob(*store_, file.blob, begin, std::min<std::uint64_t>(file.bytes, begin + kBlobPiece));
}

ApiResult<std::vector<FileRecord>> BatchApi::files_of(const std::string& tenant) {
  MILLRACE_TRY(const auto entries, api(store_->list("file." + batch_keys::owner(tenant))));
  std::vector<FileRecord> files;
  for (const StoredEntry& entry : entries) {
    auto file = read_file_record(entry.value);
    if (!file.ok()) return ApiError::internal(file.error().message);
    files.push_back(std::move(*file));
  }
  return files;
}

ApiResult<std::vector<BatchRecord>> BatchApi::batches_of(const std::string& tenant) {
  MILLRACE_TRY(const auto entries, api(store_->list("batch." + batch_keys::owner(tenant))));
  std::vector<BatchRecord> batches;
  for (const StoredEntry& entry : entries) {
    auto batch = read_batch(entry.value);
    if (!batch.ok()) return ApiError::internal(batch.error().message);
    batches.push_back(std::move(*batch));
  }
  return batches;
}

HttpReply BatchApi::create_batch(const HttpRequest& request) {
  return reply(try_create(request));
}

/// What the body asks for.
ApiResult<BatchRecord> BatchApi::read_create(const HttpRequest& request) {
  MILLRACE_TRY(const Json body, parse_body(request.body));
  Fields fields(body);
  BatchRecord batch;
  batch.owner = request.tenant;
  batch.model = options_.model;
  batch.created_at = options_.now();
  batch.input_file = fields.text("input_file_id", "");
  batch.endpoint = fields.text("endpoint", "");
  batch.window = fields.text("completion_window", "");
  for (const auto& [field, value] : {std::pair("input_file_id", &batch.input_file),
                                     {"endpoint", &batch.endpoint},
                                     {"completion_window", &batch.window}}) {
    if (value->empty()) fields.refuse(missing(field));
  }
  if (batch.endpoint != "/v1/chat/completions" && batch.endpoint != "/v1/completions") {
    fields.refuse(invalid_value("endpoint", "expected '/v1/chat/completions' or '/v1/completions'"));
  }
  if (fields.has("output_expires_after")) {
    fields.refuse(invalid_value("output_expires_after", "files stay here until they are deleted"));
  }
  const auto window = read_window(batch.window);
  if (!window.ok()) {
    fields.refuse(invalid_value("completion_window", window.error().message));
  } else {
    batch.expires_at = batch.created_at + *window;
  }
  if (const Json* metadata = fields.object("metadata")) {
    if (metadata->size() > kMostMetadata) {
      fields.refuse(invalid_value("metadata", fmt::format("it has at most {} pairs", kMostMetadata)));
    }
    for (const auto& [key, value] : metadata->items()) {
      if (!value.is_string()) {
        fields.refuse(invalid_type("metadata." + key.substr(0, kMostMetadataKey), "a string", value));
      } else if (key.size() > kMostMetadataKey || value.get_ref<const std::string&>().size() > kMostMetadataValue) {
        fields.refuse(invalid_value(
            "metadata", fmt::format("keys have at most {} bytes, values {}", kMostMetadataKey, kMostMetadataValue)));
      } else {
        batch.metadata.emplace_back(key, value.get<std::string>());
      }
    }
  }
  if (fields.error) return std::move(*fields.error);
  return batch;
}

ApiResult<std::string> BatchApi::try_create(const HttpRequest& request) {
  MILLRACE_TRY(BatchRecord batch, read_create(request));
  auto file = find_file(request.tenant, batch.input_file);
  if (!file.ok()) {
    ApiError error = std::move(file).error();
    if (error.status == 404) error.param = "input_file_id";
    return error;
  }
  if (file->purpose != "batch") return invalid_value("input_file_id", "its purpose is not 'batch'");
  MILLRACE_TRY(const std::vector<BatchRecord> others, batches_of(request.tenant));
  const auto open = std::ranges::count_if(others, [](const BatchRecord& other) { return !has_ended(other.status); });
  if (open >= options_.max_batches) {
    return ApiError{.status = 429,
                    .message = fmt::format("{} batches have not ended, which is as many as may be.", open),
                    .type = "rate_limit_error",
                    .code = "batch_limit_exceeded"};
  }
  MILLRACE_CHECK_OK(make_room(request.tenant, others));
  batch.id = "batch_" + random_letters(kIdLetters);
  batch.input_blob = file->blob;
  batch.input_bytes = file->bytes;
  // The first says that there is one to be worked on: without the second it is forgotten, not lost.
  const std::string owner = batch_keys::owner(request.tenant);
  MILLRACE_CHECK_OK(api(store_->create("live." + batch.id, owner)));
  MILLRACE_CHECK_OK(api(store_->create(batch_keys::batch(owner, batch.id), stored_batch(batch))));
  if (options_.on_change) options_.on_change();
  return batch_json(batch);
}

ApiStatus BatchApi::make_room(const std::string& tenant, std::vector<BatchRecord> batches) {
  constexpr std::int64_t kAtOnce = 16;  // a client does not wait for more
  const std::int64_t excess = static_cast<std::int64_t>(batches.size()) + 1 - options_.max_records;
  if (excess <= 0) return Ok{};
  std::erase_if(batches, [](const BatchRecord& batch) { return !has_ended(batch.status); });
  std::ranges::sort(batches, {}, [](const BatchRecord& batch) { return std::pair(batch.ended_at(), batch.id); });
  std::int64_t gone = 0, looks = 0;
  for (const BatchRecord& batch : batches) {
    if (gone == std::min(excess, kAtOnce) || looks++ == kAtOnce) break;
    // One whose results are not cleared away yet is still needed.
    MILLRACE_TRY(const auto live, api(store_->get("live." + batch.id)));
    if (live) continue;
    MILLRACE_CHECK_OK(api(store_->erase(batch_keys::batch(batch_keys::owner(tenant), batch.id))));
    ++gone;
  }
  if (gone > 0) return Ok{};
  return ApiError{
      .status = 429,
      .message = fmt::format("{} batches were made and have ended just now, which is as many as may be; try "
                             "again in ten minutes.",
                             batches.size()),
      .type = "rate_limit_error",
      .code = "batch_limit_exceeded"};
}

ApiResult<std::pair<BatchRecord, std::uint64_t>> BatchApi::find_batch(const HttpRequest& request) {
  const std::string& id = request.parameter;
  if (!is_id(id)) return not_found("batch", id);
  MILLRACE_TRY(const auto entry, api(store_->get(batch_keys::batch(batch_keys::owner(request.tenant), id))));
  if (!entry) return not_found("batch", id);
  auto batch = read_batch(entry->value);
  if (!batch.ok()) return ApiError::internal(batch.error().message);
  return std::pair(std::move(*batch), entry->revision);
}

HttpReply BatchApi::batch(const HttpRequest& request) {
  return reply([&]() -> ApiResult<std::string> {
    MILLRACE_TRY(auto found, find_batch(request));
    MILLRACE_CHECK_OK(count(found.first));
    return batch_json(found.first);
  }());
}

ApiStatus BatchApi::count(BatchRecord& batch) {
  if (has_ended(batch.status) || batch.blocks == 0) return Ok{};
  MILLRACE_TRY(const auto tasks, api(store_->list("task." + batch.id)));
  BatchCounts counts{.total = batch.counts.total};
  std::vector<BlockStart> index;
  for (const StoredEntry& entry : tasks) {
    auto claim = read_claim(entry.value);
    if (!claim.ok()) return ApiError::internal(claim.error().message);
    counts.completed += claim->counts.completed;
    counts.failed += claim->counts.failed;
    if (claim->done) continue;
    const std::string name = entry.key.substr(entry.key.rfind('.') + 1);
    std::size_t block = 0;
    const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), block);
    if (problem != std::errc()) continue;  // another task
    if (index.empty()) {
      MILLRACE_TRY(const auto stored, api(store_->get("index." + batch.id)));
      if (!stored) break;
      MILLRACE_TRY(index, api(read_index(stored->value)));
    }
    if (block + 1 >= index.size()) continue;
    MILLRACE_TRY(const auto results, api(list_results(*store_, batch.id, static_cast<std::int64_t>(block),
                                                      index[block].request, index[block + 1].request)));
    for (const auto& [request, result] : results) ++(result.status == 200 ? counts.completed : counts.failed);
  }
  batch.counts = counts;
  return Ok{};
}

HttpReply BatchApi::list_batches(const HttpRequest& request) {
  constexpr std::size_t kUsual = 20, kMost = 100;
  return reply([&]() -> ApiResult<std::string> {
    MILLRACE_TRY(const Page page, read_page(request.query, kUsual, kMost));
    MILLRACE_TRY(std::vector<BatchRecord> batches, batches_of(request.tenant));
    return list_page(std::move(batches), page, [this](BatchRecord& batch) -> ApiResult<std::string> {
      MILLRACE_CHECK_OK(count(batch));
      return batch_json(batch);
    });
  }());
}

HttpReply BatchApi::cancel_batch(const HttpRequest& request) {
  return reply(try_cancel(request));
}

ApiResult<std::string> BatchApi::try_cancel(const HttpRequest& request) {
  for (int tries = 0; tries < kCancelTries; ++tries) {
    MILLRACE_TRY(auto found, find_batch(request));
    BatchRecord& batch = found.first;
    if (batch.status == BatchStatus::validating || batch.status == BatchStatus::in_progress) {
      batch.status = BatchStatus::cancelling;
      batch.cancelling_at = options_.now();
      const std::string key = batch_keys::batch(batch_keys::owner(request.tenant), batch.id);
      MILLRACE_TRY(const auto changed, api(store_->update(key, stored_batch(batch), found.second)));
      if (!changed) continue;  // it went on meanwhile
      if (options_.on_change) options_.on_change();
    } else if (batch.status != BatchStatus::cancelling && batch.status != BatchStatus::cancelled) {
      return ApiError{.status = 409,
                      .message = fmt::format("A batch that is {} can't be cancelled.", batch_status_name(batch.status)),
                      .code = "batch_not_cancellable"};
    }
    MILLRACE_CHECK_OK(count(batch));
    return batch_json(batch);
  }
  return ApiError::from({"The batch changes too fast; try again.", ErrorKind::unavailable});
}

}  // namespace millrace
