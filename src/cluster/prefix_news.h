// What a node's prefix cache holds, told to gateways as it changes: numbers of pages, no tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cluster/wire.h"
#include "core/result.h"
#include "kv/prefix_cache.h"

namespace millrace {

struct PrefixNews {
  std::uint64_t incarnation = 0;
  bool anew = false;  // what was told before does not hold
  std::vector<std::uint64_t> added = {}, removed = {};
};

constexpr std::size_t kMaxNews = 16384;  // added or removed, in a message

Bytes encode(const PrefixNews& news);
/// Error: one line that says what is wrong; nothing of it may be used then.
Result<PrefixNews> decode_prefix_news(std::span<const std::byte> message);

/// Numbers of all pages that the cache holds (PrefixHash), sorted. Trees are named REGIME/SALT, as the engine names
/// them. Of a cache whose rows are known by sets of them: none.
std::vector<std::uint64_t> pages_held(const PrefixCache& cache);

/// What to tell, from one look at the cache to the next. Pure.
class PrefixTeller {
 public:
  /// `pages`: sorted. Messages of at most kMaxNews, in their order; none: nothing has changed. `anew`: tell all.
  std::vector<PrefixNews> tell(std::vector<std::uint64_t> pages, std::uint64_t incarnation, bool anew);

 private:
  std::vector<std::uint64_t> told_;
};

}  // namespace millrace
