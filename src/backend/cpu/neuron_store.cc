#include "backend/cpu/neuron_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "backend/cpu/device_memory.h"
#include "core/check.h"
#include "core/memory.h"

namespace millrace {

Result<std::unique_ptr<NeuronStore>> NeuronStore::open(const NeuronStoreOptions& options) {
  const std::string what = "the file for weights in " + options.directory;
  // It has no name, so that it is gone when the process is, however that ends.
  const int file = ::open(options.directory.c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
  if (file < 0) {
    const int error = errno;
    if (error == EINVAL || error == EOPNOTSUPP || error == EISDIR) {
      return fail(
          "{}: this file system has no files without a name, or cannot read around the cache of pages: name "
          "a directory on a disk",
          what);
    }
    return fail("{}: {}", what, std::strerror(error));
  }
  std::unique_ptr<NeuronStore> store(new NeuronStore(file, options));
  if (options.file_bytes > 0) {
    const int error = ::posix_fallocate(file, 0, static_cast<off_t>(options.file_bytes));
    if (error != 0) {
      return fail("{}: there is no room for {}: {}", what, format_size(options.file_bytes), std::strerror(error));
    }
  }
  return store;
}

NeuronStore::~NeuronStore() {
  ::close(file_);
}

Result<std::int64_t> NeuronStore::append(const std::byte* bundles, std::int64_t count, std::int64_t bytes) {
  MILLRACE_CHECK(bytes % kAlign == 0 && slots_.empty(), "bundles of {} bytes, {} slots", bytes, slots_.size());
  if (static_cast<std::uint64_t>(kLeast * bytes) > cache_bytes_) {
    return fail("{} of memory for weights that are on disk do not hold {} neurons of {}", format_size(cache_bytes_),
                kLeast, format_size(static_cast<std::uint64_t>(bytes)));
  }
  slot_bytes_ = std::max(slot_bytes_, bytes);
  const std::int64_t first = end_, all = count * bytes;
  for (std::int64_t done = 0; done < all;) {
    constexpr std::int64_t kPiece = std::int64_t{16} << 20;
    const ssize_t written = ::pwrite(file_, bundles + done, static_cast<std::size_t>(std::min(kPiece, all - done)),
                                     static_cast<off_t>(first + done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0 || written % kAlign != 0)
      return fail("weights could not be written to disk: {}", written < 0 ? std::strerror(errno) : "it is full");
    done += written;
  }
  end_ += all;
  return first;
}

std::int64_t NeuronStore::slots() {
  if (slots_.empty() && slot_bytes_ > 0) {
    const std::uint64_t count = std::min<std::uint64_t>(cache_bytes_ / static_cast<std::uint64_t>(slot_bytes_),
                                                        static_cast<std::uint64_t>(end_ / kAlign));
    slots_.resize(static_cast<std::size_t>(std::max<std::uint64_t>(count, kLeast)));
    // A blank one behind them, and a bit more, since memory is aligned to less than the disk wants.
    auto memory =
        allocate_device_memory((slots_.size() + 1) * static_cast<std::size_t>(slot_bytes_) + kAlign, "neurons");
    MILLRACE_CHECK(memory.ok(), "{}", memory.error().message);
    const auto address = reinterpret_cast<std::uintptr_t>(memory->get());
    const std::size_t shift = (kAlign - address % kAlign) % kAlign;
    memory_ = std::shared_ptr<void>(*memory, static_cast<std::byte*>(memory->get()) + shift);
    slot_of_.assign(static_cast<std::size_t>(end_ / kAlign), -1);
  }
  return static_cast<std::int64_t>(slots_.size());
}

/// The next that was not used since the last search, nor in this call.
std::size_t NeuronStore::take_slot() {
  for (;;) {
    Slot& slot = slots_[hand_];
    const std::size_t here = hand_;
    hand_ = (hand_ + 1) % slots_.size();
    if (slot.last_call == calls_) continue;
    if (!std::exchange(slot.again, false)) return here;
  }
}

void NeuronStore::fetch(std::span<const std::int64_t> offsets, std::int64_t bytes, ThreadPool& pool,
                        const std::byte** bundles) {
  MILLRACE_CHECK(std::ssize(offsets) <= slots(), "{} neurons, memory for {}", offsets.size(), slots_.size());
  if (!failure_.ok()) {
    std::fill_n(bundles, offsets.size(), blank());
    return;
  }
  ++calls_;
  reads_.clear();
  // First those that are there, so that none of them makes room for another.
  for (const std::int64_t offset : offsets) {
    const std::int32_t held = slot_of_[static_cast<std::size_t>(offset / kAlign)];
    if (held < 0) continue;
    Slot& slot = slots_[static_cast<std::size_t>(held)];
    slot.last_call = calls_;
    slot.again = true;
  }
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    std::int32_t& held = slot_of_[static_cast<std::size_t>(offsets[i] / kAlign)];
    if (held < 0) {
      const std::size_t taken = take_slot();
      Slot& slot = slots_[taken];
      if (slot.offset >= 0) slot_of_[static_cast<std::size_t>(slot.offset / kAlign)] = -1;
      slot = {.offset = offsets[i], .last_call = calls_, .again = false};
      held = static_cast<std::int32_t>(taken);
      reads_.push_back({offsets[i], taken});
    }
    bundles[i] = memory_of(static_cast<std::size_t>(held));
  }
  pool.run(static_cast<std::int64_t>(reads_.size()), [&](std::int64_t task, int) {
    Read& read = reads_[static_cast<std::size_t>(task)];
    ssize_t got = 0;
    do {
      got = ::pread(file_, memory_of(read.slot), static_cast<std::size_t>(bytes), static_cast<off_t>(read.offset));
    } while (got < 0 && errno == EINTR);
    if (got != bytes) read.error = got < 0 ? errno : kShort;
  });
  const auto failed = std::ranges::find_if(reads_, [](const Read& read) { return read.error != 0; });
  if (failed == reads_.end()) {
    bytes_read_ += static_cast<double>(static_cast<std::int64_t>(reads_.size()) * bytes);
    return;
  }
  failure_ = fail(
      "weights could not be read from the file in {}: {}; check that disk, or name a directory on another one with "
      "--weight-file",
      directory_, failed->error == kShort ? "the file has become shorter" : std::strerror(failed->error));
  forget_unread(offsets, bundles);
}

/// Slots that were read into, of which some may hold anything: none is taken for its bundle again, and what a step goes
/// on with are zeros.
void NeuronStore::forget_unread(std::span<const std::int64_t> offsets, const std::byte** bundles) {
  for (const Read& read : reads_) {
    slots_[read.slot] = {};
    slot_of_[static_cast<std::size_t>(read.offset / kAlign)] = -1;
  }
  std::fill_n(bundles, offsets.size(), blank());
}

}  // namespace millrace
