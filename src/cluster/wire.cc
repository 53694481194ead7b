#include "cluster/wire.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

namespace millrace {

namespace {

constexpr std::uint64_t zigzag(std::int64_t value) {
  return static_cast<std::uint64_t>(value) << 1 ^ static_cast<std::uint64_t>(value >> 63);
}

constexpr std::int64_t unzigzag(std::uint64_t value) {
  return static_cast<std::int64_t>(value >> 1) ^ -static_cast<std::int64_t>(value & 1);
}

}  // namespace

void WireWriter::fixed(std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) u8(static_cast<std::uint8_t>(value >> 8 * i));
}

void WireWriter::varint(std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) u8(static_cast<std::uint8_t>(value | 0x80));
  u8(static_cast<std::uint8_t>(value));
}

void WireWriter::signed_varint(std::int64_t value) {
  varint(zigzag(value));
}

void WireWriter::text(std::string_view text) {
  blob(std::as_bytes(std::span(text)));
}

void WireWriter::blob(std::span<const std::byte> bytes) {
  varint(bytes.size());
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

void WireReader::refuse(std::string message) {
  if (error_.empty()) error_ = std::move(message);
  rest_ = {};
}

std::span<const std::byte> WireReader::take(std::size_t bytes, std::string_view what) {
  if (!ok()) return {};
  if (rest_.size() < bytes) {
    refuse(fmt::format("{} bytes of {} are announced, {} are there", bytes, what, rest_.size()));
    return {};
  }
  return std::exchange(rest_, rest_.subspan(bytes)).first(bytes);
}

std::uint64_t WireReader::fixed(std::size_t bytes) {
  std::uint64_t value = 0;
  int shift = 0;
  for (const std::byte byte : take(bytes, "a number")) {
    value |= std::to_integer<std::uint64_t>(byte) << shift;
    shift += 8;
  }
  return value;
}

std::uint8_t WireReader::u8() {
  return static_cast<std::uint8_t>(fixed(1));
}

std::uint64_t WireReader::varint(std::uint64_t most, std::string_view what) {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    const std::uint64_t byte = u8();
    if (!ok()) return 0;
    const std::uint64_t part = byte & 0x7f;
    if (shift == 63 && part > 1) break;
    value |= part << shift;
    if ((byte & 0x80) != 0) continue;
    if (byte == 0 && shift > 0) break;  // one way only to write a number
    if (value <= most) return value;
    refuse(fmt::format("{} is {}, at most {} is allowed", what, value, most));
    return 0;
  }
  refuse(fmt::format("{} is no number", what));
  return 0;
}

std::int64_t WireReader::signed_varint(std::int64_t least, std::int64_t most, std::string_view what) {
  const std::int64_t value = unzigzag(varint(std::numeric_limits<std::uint64_t>::max(), what));
  if (!ok()) return 0;
  if (value >= least && value <= most) return value;
  refuse(fmt::format("{} is {}, expected {} to {}", what, value, least, most));
  return 0;
}

std::span<const std::byte> WireReader::blob(std::size_t most, std::string_view what) {
  return take(varint(most, what), what);
}

std::string WireReader::text(std::size_t most, std::string_view what) {
  const std::span<const std::byte> bytes = blob(most, what);
  std::string text(bytes.size(), '\0');
  for (std::size_t i = 0; i < bytes.size(); ++i) text[i] = static_cast<char>(bytes[i]);
  return text;
}

std::size_t WireReader::count(std::size_t most, std::size_t least_bytes, std::string_view what) {
  const std::size_t announced = varint(most, what);
  if (announced * least_bytes <= rest_.size()) return announced;
  refuse(fmt::format("{} {} are announced, {} bytes are there", announced, what, rest_.size()));
  return 0;
}

Status WireReader::status() const {
  if (!ok()) return fail("{}", error_);
  if (!rest_.empty()) return fail("{} bytes are left over", rest_.size());
  return Ok{};
}

}  // namespace millrace
