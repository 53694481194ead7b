#include "tenants/admitted_answer.h"

#include <algorithm>
#include <utility>

namespace millrace {

namespace {

using Headers = std::vector<std::pair<std::string, std::string>>;

HttpReply with(HttpReply reply, const Headers& headers) {
  reply.headers.insert(reply.headers.end(), headers.begin(), headers.end());
  return reply;
}

class AdmittedAnswer : public HttpAnswer {
 public:
  AdmittedAnswer(Admission& admission, AdmittedCall call)
      : admission_(&admission), call_(std::move(call)), inner_(call_.answer()) {}
  ~AdmittedAnswer() override { cancel(); }

  [[nodiscard]] bool is_stream() const override { return inner_->is_stream(); }
  [[nodiscard]] bool accepted() const override { return begun_ && inner_->accepted(); }
  [[nodiscard]] Headers headers() const override { return call_.headers; }
  [[nodiscard]] bool failed() const override { return inner_->failed(); }
  [[nodiscard]] TokenUse use() const override { return begun_ ? inner_->use() : TokenUse{}; }

  std::optional<HttpReply> start(std::function<void()> wake) override {
    wake_ = std::move(wake);
    if (!call_.limit) return begin();
    gate_->wake = wake_;
    admission_->reserve(call_, [gate = gate_, admission = admission_, account = call_.account,
                                reserved = call_.reserve](std::optional<HttpReply> refused) {
      const std::lock_guard lock(gate->mutex);
      const bool granted = !refused;
      gate->refused = std::move(refused);
      gate->open = true;
      if (gate->wake) {
        gate->wake();
      } else if (granted) {
        admission->settle(account, reserved, 0);  // the client has left meanwhile
      }
    });
    return std::nullopt;
  }

  Piece pull() override {
    if (!begun_) {
      std::optional<HttpReply> refused;
      {
        const std::lock_guard lock(gate_->mutex);
        if (!gate_->open) return {};
        refused = gate_->refused;
      }
      if (refused) {
        ended_ = true;
      } else {
        holds_ = true;
        refused = begin();
      }
      if (refused) return {{}, with(std::move(*refused), call_.headers), true};
    }
    Piece piece = inner_->pull();
    if (piece.whole) piece.whole = with(std::move(*piece.whole), call_.headers);
    if (piece.last) end();
    return piece;
  }

  void cancel() override {
    if (ended_) return;
    bool open = false;
    {
      const std::lock_guard lock(gate_->mutex);
      gate_->wake = nullptr;
      open = gate_->open && !gate_->refused;
    }
    if (!begun_ && open) {
      // It was granted and nobody has looked.
      ended_ = true;
      admission_->settle(call_.account, call_.reserve, 0);
      return;
    }
    inner_->cancel();
    end();
  }

 private:
  /// Between the loop and the connection's thread.
  struct Gate {
    std::mutex mutex;
    bool open = false;
    std::optional<HttpReply> refused;
    std::function<void()> wake;
  };

  std::optional<HttpReply> begin() {
    begun_ = true;
    auto refused = inner_->start(wake_);
    if (!refused) return std::nullopt;
    refused_ = true;
    end();
    return with(std::move(*refused), call_.headers);
  }

  void end() {
    if (std::exchange(ended_, true) || !begun_) return;
    const TokenUse use = refused_ ? TokenUse{} : inner_->use();
    call_.ticket.end(std::max<std::int64_t>(use.prompt, 0) + std::max<std::int64_t>(use.generated, 0));
    const NanoUsd cost = refused_ || inner_->failed() ? 0 : call_.cost_of(use);
    if (call_.tenant != nullptr && (holds_ || cost > 0)) {
      admission_->settle(call_.account, holds_ ? call_.reserve : 0, cost);
    }
  }

  Admission* admission_;
  AdmittedCall call_;
  std::unique_ptr<HttpAnswer> inner_;
  std::function<void()> wake_;
  std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  bool begun_ = false, holds_ = false, refused_ = false, ended_ = false;
};

class KeyedAnswer : public HttpAnswer {
 public:
  KeyedAnswer(Admission& admission, AdmittedCall call) : admission_(&admission), stream_(call.stream) {
    reader_->call = std::make_shared<AdmittedCall>(std::move(call));
    headers_ = reader_->call->headers;
  }
  ~KeyedAnswer() override { cancel(); }

  [[nodiscard]] bool is_stream() const override { return stream_; }
  [[nodiscard]] bool accepted() const override { return answer_ != nullptr && answer_->accepted(); }
  [[nodiscard]] Headers headers() const override { return headers_; }
  [[nodiscard]] TokenUse use() const override { return answer_ == nullptr ? TokenUse{} : answer_->use(); }

  std::optional<HttpReply> start(std::function<void()> wake) override {
    reader_->wake = std::move(wake);
    reader_->reader->wake = [weak = std::weak_ptr(reader_)] {
      const auto reader = weak.lock();
      if (!reader) return;
      const std::lock_guard lock(reader->mutex);
      if (reader->wake) reader->wake();
    };
    admission_->read_keyed(reader_);
    return std::nullopt;
  }

  Piece pull() override {
    if (answer_ == nullptr) {
      const std::lock_guard lock(reader_->mutex);
      if (reader_->refused) return {{}, with(*reader_->refused, headers_), true};
      answer_ = reader_->answer;
      if (answer_ == nullptr) return {};
      if (reader_->replayed) headers_.emplace_back("Idempotent-Replayed", "true");
    }
    Piece piece = answer_->read(*reader_->reader);
    if (piece.whole) piece.whole = with(std::move(*piece.whole), headers_);
    return piece;
  }

  void cancel() override {
    if (std::exchange(left_, true)) return;
    {
      const std::lock_guard lock(reader_->mutex);
      reader_->wake = nullptr;
    }
    admission_->left_keyed(reader_);
  }

 private:
  Admission* admission_;
  std::shared_ptr<KeyedReader> reader_ = std::make_shared<KeyedReader>();
  std::shared_ptr<SharedAnswer> answer_;
  Headers headers_;
  bool stream_ = false, left_ = false;
};

}  // namespace

std::unique_ptr<HttpAnswer> make_admitted_answer(Admission& admission, AdmittedCall call) {
  return std::make_unique<AdmittedAnswer>(admission, std::move(call));
}

std::unique_ptr<HttpAnswer> make_keyed_answer(Admission& admission, AdmittedCall call) {
  return std::make_unique<KeyedAnswer>(admission, std::move(call));
}

}  // namespace millrace
