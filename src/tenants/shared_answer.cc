#include "tenants/shared_answer.h"

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

/// What may wait for the slowest reader of an answer that is not kept, before its source is told to pause.
constexpr std::uint64_t kUnread = 1 << 20;
constexpr int kPiecesATime = 16;  // then others have a turn on the loop
constexpr std::size_t kReadBytes = 256 << 10;

}  // namespace

SharedAnswer::SharedAnswer(EventLoop& loop, std::unique_ptr<HttpAnswer> inner, Held held, std::int64_t most_held)
    : loop_(&loop),
      all_held_(std::move(held)),
      most_held_(most_held),
      stream_(inner->is_stream()),
      inner_(std::move(inner)) {}

SharedAnswer::~SharedAnswer() {
  *all_held_ -= held_;
}

SharedAnswer::SharedAnswer(EventLoop& loop, OnceAnswer kept, Held held)
    : loop_(&loop), all_held_(std::move(held)), stream_(kept.stream), ended_(true), accepted_(true), last_(true) {
  held_ = static_cast<std::int64_t>(kept.body.size());
  *all_held_ += held_;
  if (stream_) {
    bytes_ = std::move(kept.body);
  } else {
    whole_ = HttpReply{.body = std::move(kept.body)};
  }
}

std::optional<HttpReply> SharedAnswer::start(std::function<void()> on_end) {
  on_end_ = std::move(on_end);
  auto refused = inner_->start([weak = weak_from_this(), loop = loop_] {
    loop->post([weak] {
      if (const auto self = weak.lock()) self->pump();
    });
  });
  const std::lock_guard lock(mutex_);
  accepted_ = !refused && inner_->accepted();
  return refused;
}

void SharedAnswer::pump() {
  if (ended_) return;
  bool more = true;
  for (int i = 0; i < kPiecesATime && more; ++i) {
    {
      const std::lock_guard lock(mutex_);
      paused_ = !keep_ && unread() > kUnread;
      if (paused_) return;
    }
    HttpAnswer::Piece piece = inner_->pull();
    more = !piece.bytes.empty();
    std::vector<std::shared_ptr<Reader>> woken;
    {
      const std::lock_guard lock(mutex_);
      bytes_ += piece.bytes;
      whole_ = std::move(piece.whole);
      last_ = piece.last || whole_;
      accepted_ = inner_->accepted();
      hold(whole_ ? whole_->body.size() : bytes_.size());
      drop_read();
      ended_ = last_;
      if (ended_) use_ = inner_->use();
      if (more || ended_) woken = readers_;
    }
    for (const auto& reader : woken) reader->wake();
    if (ended_) {
      if (const auto end = std::exchange(on_end_, nullptr)) end();
      return;
    }
  }
  if (more) pump_soon();
}

void SharedAnswer::pump_soon() {
  loop_->post([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->pump();
  });
}

/// True once, when what was too slow is so no more.
bool SharedAnswer::may_resume() {
  return paused_ && unread() < kUnread / 2 && std::exchange(paused_, false);
}

void SharedAnswer::cancel() {
  if (std::exchange(ended_, true)) return;
  on_end_ = nullptr;
  inner_->cancel();
}

std::optional<OnceAnswer> SharedAnswer::kept() const {
  const std::lock_guard lock(mutex_);
  if (!keep_ || !last_ || (inner_ != nullptr && inner_->failed())) return std::nullopt;
  return OnceAnswer{stream_, stream_ ? bytes_ : whole_->body};
}

void SharedAnswer::hold(std::size_t bytes) {
  const auto size = static_cast<std::int64_t>(bytes);
  *all_held_ += size - std::exchange(held_, size);
  if (bytes > kMaxOnceAnswer || *all_held_ > most_held_) keep_ = false;
}

std::uint64_t SharedAnswer::unread() const {
  std::uint64_t least = base_ + bytes_.size();
  for (const auto& reader : readers_) least = std::min(least, reader->offset);
  return base_ + bytes_.size() - least;
}

void SharedAnswer::drop_read() {
  if (keep_) return;
  const std::uint64_t all = bytes_.size(), gone = all - std::min(all, unread());
  bytes_.erase(0, gone);
  base_ += gone;
  hold(bytes_.size());
}

bool SharedAnswer::join(const std::shared_ptr<Reader>& reader) {
  const std::lock_guard lock(mutex_);
  if (base_ > 0) return false;
  readers_.push_back(reader);
  return true;
}

void SharedAnswer::leave(const std::shared_ptr<Reader>& reader) {
  bool resume = false;
  {
    const std::lock_guard lock(mutex_);
    std::erase(readers_, reader);
    resume = may_resume();  // the others may have waited for this one
  }
  if (resume) pump_soon();
}

bool SharedAnswer::accepted() const {
  const std::lock_guard lock(mutex_);
  return accepted_;
}

bool SharedAnswer::has_readers() const {
  const std::lock_guard lock(mutex_);
  return !readers_.empty();
}

TokenUse SharedAnswer::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

HttpAnswer::Piece SharedAnswer::read(Reader& reader) {
  HttpAnswer::Piece piece;
  bool resume = false;
  {
    const std::lock_guard lock(mutex_);
    if (!stream_ || whole_) {  // a stream that was refused after its beginning here is whole too
      piece.whole = whole_;
      piece.last = last_;
      return piece;
    }
    piece.bytes = bytes_.substr(reader.offset - base_, kReadBytes);
    reader.offset += piece.bytes.size();
    piece.last = last_ && reader.offset == base_ + bytes_.size();
    drop_read();
    resume = may_resume();
  }
  if (resume) pump_soon();
  return piece;
}

}  // namespace millrace
