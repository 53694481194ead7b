// Copies between buffers of a device.

#include <array>

#include "backend/cpu_test_util.h"
#include "backend/reference/reference_backend.h"

namespace millrace {
namespace {

std::vector<std::unique_ptr<Backend>> backends() {
  std::vector<std::unique_ptr<Backend>> all;
  all.push_back(make_reference_backend());
  all.push_back(cpu_backend(IsaLevel::scalar));
  return all;
}

/// A buffer of 256 bytes: first, first + 1, ...
Buffer numbered(Backend& backend, int first) {
  auto buffer = backend.allocate(256);
  MILLRACE_CHECK(buffer.ok());
  std::array<std::byte, 256> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(static_cast<std::size_t>(first) + i);
  backend.write(*buffer, 0, bytes);
  return *buffer;
}

TEST(Copy, BetweenBuffersAndWithinOne) {
  for (const auto& backend : backends()) {
    const Buffer a = numbered(*backend, 0), b = numbered(*backend, 100);
    backend->copy(b, 10, a, 200, 56);
    backend->copy(b, 100, b, 10, 90);
    backend->copy(b, 256, a, 256, 0);
    std::array<std::byte, 256> bytes{};
    backend->read(b, 0, bytes);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const std::size_t from = i >= 100 && i < 190 ? i - 90 : i;
      const std::size_t expected = from >= 10 && from < 66 ? from + 190 : from + 100;
      EXPECT_EQ(bytes[i], static_cast<std::byte>(expected)) << i;
    }
  }
}

TEST(CopyDeathTest, OutsideOrOverlapping) {
  for (const auto& backend : backends()) {
    const Buffer a = numbered(*backend, 0), b = numbered(*backend, 0);
    EXPECT_DEATH(backend->copy(a, 200, b, 0, 57), "57 bytes at 200 of a buffer of 256");
    EXPECT_DEATH(backend->copy(a, 0, b, 257, 0), "0 bytes at 257");
    EXPECT_DEATH(backend->copy(a, 0, b, 1, ~std::size_t{0}), "of a buffer of 256");
    EXPECT_DEATH(backend->copy(a, 10, a, 20, 11), "11 bytes from 20 to 10 of one buffer overlap");
  }
}

}  // namespace
}  // namespace millrace
