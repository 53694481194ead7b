// Bytes of the cluster's messages: a writer, and a reader that trusts nothing (docs/cluster-protocol.md).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace millrace {

using Bytes = std::vector<std::byte>;

class WireWriter {
 public:
  void u8(std::uint8_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
  void u32(std::uint32_t value) { fixed(value, 4); }
  void u64(std::uint64_t value) { fixed(value, 8); }
  void f32(float value) { u32(std::bit_cast<std::uint32_t>(value)); }
  /// LEB128.
  void varint(std::uint64_t value);
  /// LEB128 of a number that may be negative: the sign in the lowest bit.
  void signed_varint(std::int64_t value);
  /// Length and bytes.
  void text(std::string_view text);
  void blob(std::span<const std::byte> bytes);

  [[nodiscard]] std::size_t size() const { return bytes_.size(); }
  [[nodiscard]] Bytes take() && { return std::move(bytes_); }

 private:
  void fixed(std::uint64_t value, int bytes);

  Bytes bytes_;
};

constexpr std::uint8_t kWireVersion = 1;  // every message begins with it

/// Reads what a stranger wrote. The first thing that is wrong sticks: from then on all reads give zero, and status()
/// says what it was. So a message is read without asking after each field, and judged once, before anything is done.
class WireReader {
 public:
  explicit WireReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  std::uint8_t u8();
  std::uint32_t u32() { return static_cast<std::uint32_t>(fixed(4)); }
  std::uint64_t u64() { return fixed(8); }
  float f32() { return std::bit_cast<float>(u32()); }
  /// At most `most`; `what` is for the message.
  std::uint64_t varint(std::uint64_t most, std::string_view what);
  /// In [least, most].
  std::int64_t signed_varint(std::int64_t least, std::int64_t most, std::string_view what);
  bool flag(std::string_view what) { return varint(1, what) != 0; }
  std::string text(std::size_t most, std::string_view what);
  std::span<const std::byte> blob(std::size_t most, std::string_view what);
  /// How many of something follow, each of `least_bytes` at least: never more than there are bytes for.
  std::size_t count(std::size_t most, std::size_t least_bytes, std::string_view what);

  void refuse(std::string message);
  [[nodiscard]] bool ok() const { return error_.empty(); }
  /// Error: something was wrong, or bytes are left over.
  [[nodiscard]] Status status() const;

 private:
  std::uint64_t fixed(std::size_t bytes);
  std::span<const std::byte> take(std::size_t bytes, std::string_view what);

  std::span<const std::byte> rest_;
  std::string error_;
};

}  // namespace millrace
