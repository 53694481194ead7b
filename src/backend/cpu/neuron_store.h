// Neurons that are not in memory: a file, read around the system's cache of pages, and the last that were read of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/result.h"
#include "core/thread_pool.h"

namespace millrace {

/// Bundles of weights by their place in the file. Reading is direct (O_DIRECT): what the store keeps is all that memory
/// holds of the file, and what it counts is what the disk was asked for. Used from one thread, which shares its reads
/// out.
class NeuronStore {
 public:
  /// Bundles begin and end at multiples of this in the file, and in memory.
  static constexpr std::int64_t kAlign = 4096;
  /// Bundles that the cache must hold at least: as many are computed together.
  static constexpr std::int64_t kLeast = 64;

  /// A file without a name in the directory, with room for file_bytes. Errors: no such directory, it may not be written
  /// in, its file system has no such files or cannot read directly, its disk has no room.
  static Result<std::unique_ptr<NeuronStore>> open(const NeuronStoreOptions& options);
  ~NeuronStore();
  NeuronStore(const NeuronStore&) = delete;
  NeuronStore& operator=(const NeuronStore&) = delete;

  /// Writes `count` bundles of `bytes` bytes each (a multiple of kAlign; memory too) behind what is there; returns
  /// where the first lies. Errors: the disk is full or fails; a cache that is too small for kLeast of them.
  Result<std::int64_t> append(const std::byte* bundles, std::int64_t count, std::int64_t bytes);

  /// Bundles that can be held at once. Not before all are written.
  [[nodiscard]] std::int64_t slots();

  /// Brings bundles to memory, where they stay until the next call: `offsets` of them in the file, `bytes` of each,
  /// `bundles` [offsets.size()], at most slots(). Where the disk fails they are zeros, and from then on all are,
  /// without a read, until take_failure(): a disk that gives up slowly is asked once a step.
  void fetch(std::span<const std::int64_t> offsets, std::int64_t bytes, ThreadPool& pool, const std::byte** bundles);

  /// Why fetch() gave zeros, if it did since the last call. Then it reads again.
  Status take_failure() { return std::exchange(failure_, Ok{}); }

  /// That were read by fetch().
  [[nodiscard]] double bytes_read() const { return bytes_read_; }

 private:
  static constexpr int kShort = -1;  // no error, but fewer bytes than are there

  struct Slot {
    std::int64_t offset = -1;     // of the bundle that it holds
    std::uint64_t last_call = 0;  // of fetch() that used it
    bool again = false;           // it was used since the search for a slot came by
  };

  NeuronStore(int file, const NeuronStoreOptions& options)
      : file_(file), directory_(options.directory), cache_bytes_(options.cache_bytes) {}

  [[nodiscard]] std::byte* memory_of(std::size_t slot) const {
    return static_cast<std::byte*>(memory_.get()) + static_cast<std::int64_t>(slot) * slot_bytes_;
  }
  /// Zeros, in place of a bundle that could not be read.
  [[nodiscard]] const std::byte* blank() const { return memory_of(slots_.size()); }
  std::size_t take_slot();
  void forget_unread(std::span<const std::int64_t> offsets, const std::byte** bundles);

  int file_;
  std::string directory_;
  std::uint64_t cache_bytes_;
  std::int64_t end_ = 0, slot_bytes_ = 0;
  std::shared_ptr<void> memory_;
  std::vector<Slot> slots_;
  std::vector<std::int32_t> slot_of_;  // by offset / kAlign; -1: none
  std::size_t hand_ = 0;
  std::uint64_t calls_ = 0;
  double bytes_read_ = 0;
  Status failure_ = Ok{};
  struct Read {
    std::int64_t offset = 0;
    std::size_t slot = 0;
    int error = 0;  // errno; kShort
  };
  std::vector<Read> reads_;
};

}  // namespace millrace
