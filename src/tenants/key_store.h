// KeyStore: what state machines that several gateways run together need of a store: to read a key, and to change it
// only if nobody else has.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "core/result.h"

namespace millrace {

struct Stored {
  std::string value;
  std::uint64_t revision = 0;  // grows with every write to the store; never 0
};

/// One thread: it is called, and calls back, on its owner's. It never calls back from within a call.
class KeyStore {
 public:
  using Written = std::function<void(Result<std::uint64_t>)>;
  using Read = std::function<void(Result<std::optional<Stored>>)>;

  KeyStore() = default;
  KeyStore(const KeyStore&) = delete;
  KeyStore& operator=(const KeyStore&) = delete;
  virtual ~KeyStore() = default;

  /// Error kind unavailable: the store is away.
  virtual void get(const std::string& key, Read done) = 0;
  /// Writes only if the key's revision is this; 0: only if there is no such key. Answers with the new revision. Error
  /// kind busy: it is not so. After `unavailable` it may have been written all the same, or may still be.
  virtual void update(const std::string& key, const std::string& value, std::uint64_t revision, Written done) = 0;
  /// Whatever is there.
  virtual void put(const std::string& key, const std::string& value, Written done) = 0;
};

}  // namespace millrace
