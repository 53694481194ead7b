// The routes of /v1/files and /v1/batches: BatchApi behind HTTP. What waits for the store waits on threads of its own,
// so that nothing else does.
#pragma once

#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "batches/batch_api.h"
#include "server/http_router.h"

namespace millrace {

class BatchRoutes {
 public:
  /// Why a tenant may make no files and batches; none: it may.
  using Refuse = std::function<std::optional<HttpReply>(const HttpRequest&)>;

  /// `api` must outlive it. `refuse`: any thread.
  BatchRoutes(BatchApi& api, Refuse refuse);
  /// Waits for what is under way. No route may be asked any more.
  ~BatchRoutes();

  void add_to(std::vector<HttpRoute>& routes);

 private:
  BatchApi* api_;
  Refuse refuse_;
  std::shared_ptr<boost::asio::thread_pool> threads_;
};

}  // namespace millrace
