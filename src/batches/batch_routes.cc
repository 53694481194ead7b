#include "batches/batch_routes.h"

#include <boost/asio/post.hpp>
#include <exception>
#include <mutex>
#include <utility>

#include "server/http_answer.h"

namespace millrace {

namespace {

using Threads = std::shared_ptr<boost::asio::thread_pool>;

/// What a thread of the pool hands to a connection.
class Mailbox {
 public:
  void open(std::function<void()> wake) {
    const std::lock_guard lock(mutex_);
    wake_ = std::move(wake);
  }
  /// From now on nothing is said.
  void close() {
    const std::lock_guard lock(mutex_);
    wake_ = nullptr;
  }
  bool closed() {
    const std::lock_guard lock(mutex_);
    return wake_ == nullptr;
  }
  void put(HttpAnswer::Piece piece) {
    const std::lock_guard lock(mutex_);
    piece_ = std::move(piece);
    if (wake_) wake_();
  }
  std::optional<HttpAnswer::Piece> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(piece_, std::nullopt);
  }

 private:
  std::mutex mutex_;
  std::function<void()> wake_;
  std::optional<HttpAnswer::Piece> piece_;
};

HttpReply failed_reply() {
  return error_reply(500, "The server failed at this request.", "server_error");
}

/// What is asked of the pool, until it is begun or nobody wants it any more: it may hold a whole file.
class Errand {
 public:
  explicit Errand(std::function<HttpReply()> make) : make_(std::move(make)) {}
  /// Empty: it was taken, or dropped.
  std::function<HttpReply()> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(make_, nullptr);
  }

 private:
  std::mutex mutex_;
  std::function<HttpReply()> make_;
};

/// A reply that is made on another thread.
class LateReply : public HttpAnswer {
 public:
  LateReply(Threads threads, std::function<HttpReply()> make)
      : threads_(std::move(threads)), errand_(std::make_shared<Errand>(std::move(make))) {}
  ~LateReply() override { drop(); }

  [[nodiscard]] bool is_stream() const override { return false; }

  std::optional<HttpReply> start(std::function<void()> wake) override {
    box_->open(std::move(wake));
    boost::asio::post(*threads_, [box = box_, errand = errand_] {
      const auto make = errand->take();
      if (!make) return;
      HttpReply reply;
      try {
        reply = make();
      } catch (const std::exception&) {  // most likely memory is short
        reply = failed_reply();
      }
      box->put({.bytes = {}, .whole = std::move(reply), .last = true});
    });
    return std::nullopt;
  }

  Piece pull() override { return box_->take().value_or(Piece{}); }
  void cancel() override { drop(); }
  [[nodiscard]] TokenUse use() const override { return {}; }

 private:
  void drop() {
    box_->close();
    (void)errand_->take();
  }

  Threads threads_;
  std::shared_ptr<Errand> errand_;
  std::shared_ptr<Mailbox> box_ = std::make_shared<Mailbox>();
};

/// The bytes of a file, a piece at a time: the next one is read when the last one was taken.
class FileContent : public HttpAnswer {
 public:
  FileContent(Threads threads, BatchApi& api, HttpRequest request)
      : threads_(std::move(threads)), reader_(std::make_shared<Reader>(api, std::move(request))) {}
  ~FileContent() override { reader_->box.close(); }

  [[nodiscard]] bool is_stream() const override { return true; }
  [[nodiscard]] std::string_view file_type() const override { return "application/octet-stream"; }

  std::optional<HttpReply> start(std::function<void()> wake) override {
    reader_->box.open(std::move(wake));
    read_on();
    return std::nullopt;
  }

  Piece pull() override {
    Piece piece = reader_->box.take().value_or(Piece{});
    if (!piece.bytes.empty() && !piece.last) read_on();
    return piece;
  }
  void cancel() override { reader_->box.close(); }
  [[nodiscard]] TokenUse use() const override { return {}; }

 private:
  /// Used by one thread at a time.
  struct Reader {
    Reader(BatchApi& from, HttpRequest asked) : api(&from), request(std::move(asked)) {}

    void read() {
      if (!file) {
        auto found = api->find_file(request);
        if (!found.ok()) {
          box.put({.bytes = {}, .whole = error_reply(found.error()), .last = true});
          return;
        }
        file = std::move(*found);
      }
      auto bytes = api->read_file(*file, at);
      if (!bytes.ok()) {
        const bool begun = at > 0;
        Piece piece{.bytes = {}, .whole = {}, .last = true, .broken = begun};
        if (!begun) piece.whole = error_reply(ApiError::from(bytes.error()));
        box.put(std::move(piece));
        return;
      }
      at += bytes->size();
      box.put({.bytes = std::move(*bytes), .whole = {}, .last = at >= file->bytes});
    }

    BatchApi* api;
    HttpRequest request;
    std::optional<FileRecord> file;
    std::uint64_t at = 0;
    Mailbox box;
  };

  void read_on() {
    boost::asio::post(*threads_, [reader = reader_] {
      if (reader->box.closed()) return;
      try {
        reader->read();
      } catch (const std::exception&) {
        reader->box.put({.bytes = {}, .whole = {}, .last = true, .broken = true});
      }
    });
  }

  Threads threads_;
  std::shared_ptr<Reader> reader_;
};

}  // namespace

BatchRoutes::BatchRoutes(BatchApi& api, Refuse refuse) : api_(&api), refuse_(std::move(refuse)) {
  constexpr std::size_t kThreads = 2;  // they wait more than they compute
  threads_ = std::make_shared<boost::asio::thread_pool>(kThreads);
}

BatchRoutes::~BatchRoutes() {
  threads_->join();
}

void BatchRoutes::add_to(std::vector<HttpRoute>& routes) {
  using Method = HttpRoute::Method;
  using Handler = HttpReply (BatchApi::*)(const HttpRequest&);
  const auto add = [&](Method method, std::string path, Handler handler, bool makes = false) {
    routes.push_back({method, std::move(path), false,
                      [api = api_, threads = threads_, handler,
                       refuse = makes ? refuse_ : Refuse()](const HttpRequest& request) -> HttpOutcome {
                        if (refuse) {
                          if (auto refused = refuse(request)) return std::move(*refused);
                        }
                        return std::make_unique<LateReply>(
                            threads, [api, handler, request] { return (api->*handler)(request); });
                      }});
  };
  add(Method::post, "/v1/files", &BatchApi::upload, true);
  add(Method::get, "/v1/files", &BatchApi::list_files);
  routes.push_back({Method::get, "/v1/files/{id}/content", false,
                    [api = api_, threads = threads_](const HttpRequest& request) -> HttpOutcome {
                      return std::make_unique<FileContent>(threads, *api, request);
                    }});
  add(Method::get, "/v1/files/{id}", &BatchApi::file);
  add(Method::erase, "/v1/files/{id}", &BatchApi::delete_file);
  add(Method::post, "/v1/batches", &BatchApi::create_batch, true);
  add(Method::get, "/v1/batches", &BatchApi::list_batches);
  add(Method::post, "/v1/batches/{id}/cancel", &BatchApi::cancel_batch);
  add(Method::get, "/v1/batches/{id}", &BatchApi::batch);
}

}  // namespace millrace
