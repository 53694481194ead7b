// OnceBook: requests with an idempotency key, as gateways have them in common: whose it is to answer one, and what was
// answered (docs/tenants.md).
//
// A key's record goes
//
//   (none) ─ create ─► running ─ its gateway has the whole answer ─► done
//                      │     ▲
//       failed, refused│     │ compare-and-set by another gateway: of an open one at once, of a running one when its
//       or given up    ▼     │ gateway is dead
//                      open ─┘
//
// A gateway that was taken for dead can end what it does, and keep nothing: its writes name a revision that is gone.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "tenants/key_store.h"

namespace millrace {

constexpr const char* kOnceBucket = "mr_once";    // by once_key(); below it pieces of answers
constexpr std::size_t kMaxOncePiece = 384 << 10;  // bytes
constexpr std::size_t kMaxOnceAnswer = 8 << 20;   // bytes; longer ones are not kept
constexpr std::size_t kMaxIdempotencyKey = 255;   // bytes

enum class OnceState : std::uint8_t { running, open, done };

struct OnceRecord {
  std::string request = {};  // a hash of what was asked for
  OnceState state = OnceState::running;
  std::string gateway = {}, life = {};  // whose it is
  std::uint64_t claim = 0;              // of this life, the how manieth
  std::string account = {};             // of the ledger, in which it is charged whoever answers it
  std::int64_t started = 0;             // Unix time in seconds
  bool stream = false;
  std::uint32_t pieces = 0;  // of the answer that is kept; 0 where it was too long
  std::uint64_t bytes = 0;

  friend bool operator==(const OnceRecord&, const OnceRecord&) = default;
};

std::string once_json(const OnceRecord& record);
Result<OnceRecord> parse_once(std::string_view json);

/// The store's key of a tenant's idempotency key: says nothing of it, and is no other tenant's.
std::string once_key(std::string_view tenant, std::string_view idempotency_key);
/// The seed of a request that names none: a function of once_key().
std::uint64_t once_seed(std::string_view once_key);
/// Error: empty, too long, or with something else than printable ASCII in it.
Status check_idempotency_key(std::string_view key);

/// An answer as it is kept.
struct OnceAnswer {
  bool stream = false;
  std::string body;
};

/// Called from one thread; what comes of a call is told later.
class OnceBook {
 public:
  enum class Outcome : std::uint8_t {
    claimed,     // it is to be answered here, then finish() or release()
    running,     // another living gateway, or this one, is at it
    done,        // `answer` is what was said, or none where it was too long to be kept
    other,       // the key was used for another request
    unavailable  // the store is away
  };
  struct Found {
    Outcome outcome = Outcome::unavailable;
    OnceRecord record = {};
    std::optional<OnceAnswer> answer = {};
    bool taken_over = false;  // it was begun before, by somebody who may still charge it
  };
  using Told = std::function<void(Found)>;
  /// Whether this life of a gateway may still be there.
  using Lives = std::function<bool(const std::string& gateway, const std::string& life)>;

  OnceBook(KeyStore& store, std::string gateway, std::string life, Lives lives);
  ~OnceBook();
  OnceBook(const OnceBook&) = delete;
  OnceBook& operator=(const OnceBook&) = delete;

  /// `fresh`: the record to be written where it is claimed; whose it is, is filled in. The account of a record that was
  /// there stays.
  void claim(const std::string& key, OnceRecord fresh, Told told);
  /// Keeps the answer of a claim. False: somebody else has it, or the store is away and the next who asks will find it
  /// running, until this gateway ends.
  void finish(const std::string& key, OnceAnswer answer, std::function<void(bool)> kept);
  /// Gives a claim back: whoever comes next may have it.
  void release(const std::string& key, std::function<void()> released = {});

  [[nodiscard]] std::size_t claims() const { return claims_.size(); }

 private:
  struct Claim {
    OnceRecord record;
    std::uint64_t revision = 0;
  };

  void write_claim(const std::string& key, const OnceRecord& fresh, std::uint64_t revision, bool taken_over, Told told);
  void judge(const std::string& key, const OnceRecord& fresh, const Stored& stored, bool taken_over, Told told);
  void fetch(const std::string& key, const OnceRecord& record, std::uint32_t piece, std::string body, Told told);
  void keep(const std::string& key, const std::shared_ptr<OnceAnswer>& answer, std::uint32_t piece,
            std::function<void(bool)> kept);
  void close(const std::string& key, OnceState state, int tries, std::function<void(bool)> closed);

  KeyStore* store_;
  std::string gateway_, life_;
  Lives lives_;
  std::map<std::string, Claim> claims_;
  std::uint64_t next_claim_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace millrace
