// NatsLogin: who this process is to a NATS server, by an NKey or by a user's JWT.
#pragma once

#include <string>

#include "core/result.h"

struct __natsOptions;

namespace millrace {

/// The files are read whenever a server asks, so that they may be renewed. Must outlive the connections of the options
/// that it was set in; its callbacks run on threads of libnats.
struct NatsLogin {
  std::string credentials = {};  // file with a user's JWT and seed, or
  std::string nkey_seed = {};    // file with an NKey seed, and
  std::string nkey = {};         // its public key; both empty: no authentication

  /// Error: a file can't be read, or holds no seed, or no JWT.
  Status set_in(__natsOptions& options) const;
};

/// Whether this libnats (`version`: nats_GetVersionNumber()) sends a signature (64 bytes, Ed25519) to the server.
/// Before 3.8 it takes one whose first byte is 0, one of 256, for none at all: the server says "Signature missing" in
/// its log, "Authorization Violation" to the client. https://github.com/nats-io/nats.c/pull/705
bool is_sent(const unsigned char* signature, unsigned version);

}  // namespace millrace
