#include "cluster/subjects.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace millrace {

namespace {

constexpr std::size_t kMostParts = 6;

struct Parts {
  std::array<std::string_view, kMostParts> part;
  std::size_t count = 0;  // 0: more than a subject of ours has
};

Parts split(std::string_view subject) {
  Parts parts;
  while (parts.count < kMostParts) {
    const std::size_t dot = subject.find('.');
    parts.part[parts.count++] = subject.substr(0, dot);
    if (dot == std::string_view::npos) return parts;
    subject.remove_prefix(dot + 1);
  }
  return {};
}

/// Of a subject of three parts; empty: not of this kind.
std::string_view sender_of(std::string_view subject, std::string_view kind) {
  const Parts parts = split(subject);
  return parts.count == 3 && parts.part[1] == kind && is_cluster_name(parts.part[2]) ? parts.part[2]
                                                                                     : std::string_view();
}

template <typename T>
std::optional<T> whole_number(std::string_view text, int base) {
  T value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

bool is_cluster_name(std::string_view name) {
  constexpr std::size_t kLongest = 32;
  const auto allowed = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
  return !name.empty() && name.size() <= kLongest && std::ranges::all_of(name, allowed);
}

std::string put_subject(std::string_view node, std::string_view gateway) {
  return fmt::format("mr.put.{}.{}", node, gateway);
}

std::string say_subject(std::string_view gateway, std::string_view node, const Attempt& attempt) {
  return fmt::format("mr.say.{}.{}.{:016x}.{}", gateway, node, attempt.stream, attempt.attempt);
}

std::string beat_subject(std::string_view node) {
  return fmt::format("mr.beat.{}", node);
}

std::string alive_subject(std::string_view gateway) {
  return fmt::format("mr.alive.{}", gateway);
}

std::string kept_subject(std::string_view node) {
  return fmt::format("mr.kept.{}", node);
}

std::string gate_subject(std::string_view gateway) {
  return fmt::format("mr.gate.{}", gateway);
}

std::string_view put_sender(std::string_view subject) {
  const Parts parts = split(subject);
  return parts.count == 4 && parts.part[1] == "put" && is_cluster_name(parts.part[3]) ? parts.part[3]
                                                                                      : std::string_view();
}

std::string_view beat_sender(std::string_view subject) {
  return sender_of(subject, "beat");
}

std::string_view gate_sender(std::string_view subject) {
  return sender_of(subject, "gate");
}

std::string_view alive_sender(std::string_view subject) {
  return sender_of(subject, "alive");
}

std::string_view kept_sender(std::string_view subject) {
  return sender_of(subject, "kept");
}

std::optional<SaySubject> parse_say(std::string_view subject) {
  constexpr std::size_t kDigits = 16;
  const Parts parts = split(subject);
  if (parts.count != 6 || parts.part[1] != "say" || !is_cluster_name(parts.part[3]) ||
      parts.part[4].size() != kDigits) {
    return std::nullopt;
  }
  const auto stream = whole_number<std::uint64_t>(parts.part[4], 16);
  const auto attempt = whole_number<std::uint32_t>(parts.part[5], 10);
  if (!stream || !attempt) return std::nullopt;
  return SaySubject{parts.part[3], {*stream, *attempt}};
}

}  // namespace millrace
