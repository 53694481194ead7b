// The cluster's subjects: who says what to whom (docs/cluster-protocol.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace millrace {

/// A stream of a gateway, and the how manieth placement of it.
struct Attempt {
  std::uint64_t stream = 0;
  std::uint32_t attempt = 0;

  friend auto operator<=>(const Attempt&, const Attempt&) = default;
};

/// 1 to 32 of a-z, 0-9 and '-': what names of nodes and gateways are, so that they can be parts of subjects.
bool is_cluster_name(std::string_view name);

std::string put_subject(std::string_view node, std::string_view gateway);
std::string say_subject(std::string_view gateway, std::string_view node, const Attempt& attempt);
std::string beat_subject(std::string_view node);
std::string kept_subject(std::string_view node);
std::string alive_subject(std::string_view gateway);
std::string gate_subject(std::string_view gateway);

/// Who put this on a node's subject; empty: not such a subject.
std::string_view put_sender(std::string_view subject);
/// Which node beats.
std::string_view beat_sender(std::string_view subject);
/// Whose prefix cache it is.
std::string_view kept_sender(std::string_view subject);
/// Which gateway says that it is there.
std::string_view alive_sender(std::string_view subject);
/// Which gateway does.
std::string_view gate_sender(std::string_view subject);

struct SaySubject {
  std::string_view node;
  Attempt attempt;
};
std::optional<SaySubject> parse_say(std::string_view subject);

}  // namespace millrace
