// BatchLives: which processes of gateways live, as one of them sees it in the store: each rewrites a key of its own,
// and one whose key stands still for long enough is taken for dead. No clock is compared with another.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "batches/batch_store.h"
#include "cluster/transport.h"

namespace millrace {

class BatchLives {
 public:
  BatchLives(BatchStore& store, std::string own) : store_(&store), own_(std::move(own)) {}

  /// Rewrites the own key where it is time.
  Status renew(Duration now);
  /// Looks at all. Times in which it could not look do not count.
  Status look(Duration now);

  /// Whether what it has claimed may be taken. Somebody who was never seen is given time to be.
  [[nodiscard]] bool is_dead(std::string_view life, Duration now);
  /// That live, this one with them.
  [[nodiscard]] std::int64_t count(Duration now) const;
  /// Says that this one ends.
  Status leave();

  static constexpr Duration kRenew = std::chrono::seconds(3), kDead = std::chrono::seconds(15);

 private:
  struct Seen {
    std::uint64_t revision = 0;
    Duration changed{0};
  };

  BatchStore* store_;
  std::string own_;
  std::map<std::string, Seen, std::less<>> seen_;
  Duration renewed_{0}, looked_{0};
  bool ever_renewed_ = false, ever_looked_ = false;
  std::uint64_t count_ = 0;
};

}  // namespace millrace
