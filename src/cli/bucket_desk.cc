#include "cli/bucket_desk.h"

#include <chrono>
#include <utility>

namespace millrace::cli {

namespace {

constexpr auto kPatience = std::chrono::seconds(10);  // with a server that does not answer

}  // namespace

Result<std::unique_ptr<BucketDesk>> BucketDesk::open(const NatsOptions& options, BucketOptions bucket) {
  auto desk = std::make_unique<BucketDesk>();
  const auto hear = [desk = desk.get()](const std::string& message) { desk->told_ = message; };
  MILLRACE_TRY(desk->transport_, NatsTransport::connect(options, desk->loop_, hear));
  desk->transport_->when_given_up([desk = desk.get()](const std::string& why) {
    desk->told_ = why;
    desk->loop_.stop();
  });
  desk->bucket_ = std::make_unique<NatsBucket>(*desk->transport_, desk->loop_, std::move(bucket), hear);
  return desk;
}

Result<std::optional<BucketEntry>> BucketDesk::get(const std::string& key) {
  const auto result = std::make_shared<std::optional<Result<std::optional<BucketEntry>>>>();
  bucket_->get(key, [this, result](const Result<std::optional<BucketEntry>>& answer) {
    *result = answer;
    loop_.stop();
  });
  MILLRACE_CHECK_OK(wait([&] { return result->has_value(); }));
  return **result;
}

Result<std::map<std::string, BucketEntry>> BucketDesk::read() {
  bucket_->watch([this](const BucketEntry& entry) {
    if (entry.key.empty()) {
      complete_ = true;
      loop_.stop();
    } else {
      entries_[entry.key] = entry;
    }
  });
  MILLRACE_CHECK_OK(wait([this] { return complete_; }));
  return entries_;
}

Status BucketDesk::put(const std::string& key, const std::string& value, std::uint64_t revision) {
  return written([&](const NatsBucket::Written& done) { bucket_->update(key, value, revision, done); });
}

Status BucketDesk::remove(const std::string& key) {
  return written([&](const NatsBucket::Written& done) { bucket_->remove(key, done); });
}

Status BucketDesk::written(const std::function<void(const NatsBucket::Written&)>& write) {
  const auto result = std::make_shared<std::optional<Result<std::uint64_t>>>();
  write([this, result](const Result<std::uint64_t>& answer) {
    *result = answer;
    loop_.stop();
  });
  MILLRACE_CHECK_OK(wait([&] { return result->has_value(); }));
  if (!(*result)->ok()) return (*result)->error();
  return Ok{};
}

Status BucketDesk::wait(const std::function<bool()>& done) {
  const EventLoop::TimerId timer = loop_.after(kPatience, [this] { loop_.stop(); });
  loop_.run();
  loop_.cancel(timer);
  if (done()) return Ok{};
  return fail("NATS has not answered{}{}", told_.empty() ? "" : ": ", told_);
}

}  // namespace millrace::cli
