#include "server/engine_routes.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "server/api_answer.h"
#include "server/api_wish.h"
#include "server/event_queue.h"

namespace millrace {

namespace {

constexpr std::size_t kPieceBytes = 32 << 10;  // of events that become one write, at most

class EngineAnswer : public HttpAnswer {
 public:
  EngineAnswer(const ServedModel& model, const EngineAccess& engine, ApiCall call, std::size_t queue_bytes)
      : engine_(&engine),
        requests_(std::move(call.requests)),
        stream_(call.answer.stream),
        queue_bytes_(queue_bytes),
        builder_(model, std::move(call.answer)) {}

  ~EngineAnswer() override { cancel(); }

  [[nodiscard]] bool is_stream() const override { return stream_; }
  [[nodiscard]] bool accepted() const override { return told_ || !engine_->refuses_late; }

  std::optional<HttpReply> start(std::function<void()> wake) override {
    queue_ = std::make_shared<EventQueue>(queue_bytes_, std::move(wake));
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      auto id = engine_->submit(std::move(requests_[i]),
                                [queue = queue_, i](const TokenEvent& event) { return queue->push(i, event); });
      if (!id.ok()) {
        cancel();
        return error_reply(ApiError::from(id.error()));
      }
      ids_.push_back(*id);
    }
    requests_.clear();
    return std::nullopt;
  }

  Piece pull() override {
    Piece piece;
    items_.clear();
    resume_.clear();
    queue_->take(kPieceBytes, items_, resume_);
    for (const EventQueue::Paused& paused : resume_) engine_->resume(paused.request, paused.choice);
    for (EventQueue::Item& item : items_) {
      if (item.summary) item.event.summary = &*item.summary;
      const bool untold = !accepted() && piece.bytes.empty();
      builder_.on(item.request, item.event, piece.bytes);
      if (!untold || !stream_ || !builder_.error()) continue;
      piece.whole = error_reply(*builder_.error());
      piece.bytes.clear();
      break;
    }
    told_ = told_ || !piece.bytes.empty();
    const bool failed = builder_.error().has_value();
    if (!builder_.done() && !(failed && !stream_)) return piece;
    piece.last = true;
    if (!stream_) piece.whole = failed ? error_reply(*builder_.error()) : HttpReply{.body = builder_.response()};
    if (failed) {
      cancel();  // the answer's other requests
    } else {
      ended_ = true;
    }
    return piece;
  }

  void cancel() override {
    if (std::exchange(ended_, true)) return;
    if (queue_) queue_->close();
    for (const RequestId id : ids_) engine_->cancel(id);
  }

  [[nodiscard]] TokenUse use() const override {
    const Usage usage = builder_.usage();
    return {usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens,
            usage.service ? usage.service->usd : -1.0};
  }

  [[nodiscard]] bool failed() const override { return builder_.error().has_value(); }

 private:
  const EngineAccess* engine_;
  std::vector<Request> requests_;
  bool stream_;
  std::size_t queue_bytes_;
  AnswerBuilder builder_;
  std::shared_ptr<EventQueue> queue_;
  std::vector<RequestId> ids_;
  std::vector<EventQueue::Item> items_;
  std::vector<EventQueue::Paused> resume_;
  bool told_ = false;   // some of a stream
  bool ended_ = false;  // nothing is left to be cancelled
};

HttpReply text_or_error(ApiResult<std::string> result) {
  if (!result.ok()) return error_reply(result.error());
  return {.body = std::move(result).value()};
}

HttpRoute get(std::string path, bool open, std::function<HttpReply(const HttpRequest&)> handle) {
  return {HttpRoute::Method::get, std::move(path), open,
          [handle = std::move(handle)](const HttpRequest& request) -> HttpOutcome { return handle(request); }};
}

}  // namespace

std::unique_ptr<HttpAnswer> make_engine_answer(const ServedModel& model, const EngineAccess& engine, ApiCall call,
                                               const std::string& salt, std::size_t queue_bytes) {
  // A client's own salt divides its tenant's cache further; it never opens another tenant's.
  for (Request& request : call.requests) {
    if (!salt.empty()) request.cache_salt = salt + "/" + request.cache_salt;
  }
  return std::make_unique<EngineAnswer>(model, engine, std::move(call), queue_bytes);
}

std::vector<HttpRoute> operation_routes(std::function<std::string_view()> state, std::function<std::string()> metrics) {
  std::vector<HttpRoute> routes;
  routes.push_back(
      get("/health", true, [](const HttpRequest&) -> HttpReply { return {.body = R"({"status":"ok"})"}; }));
  routes.push_back(get("/ready", true, [state = std::move(state)](const HttpRequest&) -> HttpReply {
    const std::string_view now = state();
    return {.status = now == "ready" ? 200 : 503, .body = fmt::format(R"({{"status":"{}"}})", now)};
  }));
  routes.push_back(get("/metrics", true, [metrics = std::move(metrics)](const HttpRequest&) -> HttpReply {
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics()};
  }));
  return routes;
}

std::vector<HttpRoute> api_routes(const ServedModel& model, const EngineAccess& engine, ApiRoutesOptions options) {
  using Parse = ApiResult<ApiCall> (*)(std::string_view, const ServedModel&);
  using Text = ApiResult<std::string> (*)(std::string_view, const ServedModel&);
  std::vector<HttpRoute> routes;
  const MakeAnswer make = [&model, &engine, bytes = options.queue_bytes](ApiCall call, const std::string& salt) {
    return make_engine_answer(model, engine, std::move(call), salt, bytes);
  };
  const auto generate = [&](std::string path, Parse parse) {
    routes.push_back({HttpRoute::Method::post, std::move(path), false,
                      [&model, parse, make, admit = options.admit](const HttpRequest& request) -> HttpOutcome {
                        auto call = parse(request.body, model);
                        if (!call.ok()) return error_reply(call.error());
                        const auto wish = parse_wish(request);
                        if (!wish.ok()) return error_reply(wish.error());
                        for (Request& one : call->requests) one.wish = *wish;
                        if (admit) return admit(request, std::move(call).value(), make);
                        return make(std::move(call).value(), request.tenant);
                      }});
  };
  const auto convert = [&](std::string path, Text answer) {
    routes.push_back(
        {HttpRoute::Method::post, std::move(path), false, [&model, answer](const HttpRequest& request) -> HttpOutcome {
           return text_or_error(answer(request.body, model));
         }});
  };
  generate("/v1/chat/completions", parse_chat);
  generate("/v1/completions", parse_completion);
  generate("/v1/embeddings", parse_embeddings);
  convert("/tokenize", answer_tokenize);
  convert("/detokenize", answer_detokenize);

  routes.push_back(
      get("/v1/models", false, [&model](const HttpRequest&) -> HttpReply { return {.body = models_json(model)}; }));
  routes.push_back(get("/v1/models/{id}", false, [&model](const HttpRequest& request) {
    return text_or_error(model_json(model, request.parameter));
  }));
  for (HttpRoute& route : operation_routes(std::move(options.state), std::move(options.metrics))) {
    routes.push_back(std::move(route));
  }
  const std::string version = nlohmann::json{{"version", options.version}}.dump();
  routes.push_back(get("/version", true, [version](const HttpRequest&) -> HttpReply { return {.body = version}; }));
  return routes;
}

}  // namespace millrace
