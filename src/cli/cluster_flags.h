// What `millrace node` and `millrace gateway` have in common: how they reach NATS, and how they end.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <thread>

#include "cluster/nats_transport.h"

namespace millrace::cli {

/// Adds --nats, --name, --creds, --nkey, --nkey-seed and --tls-ca.
void add_nats_flags(CLI::App& command, NatsOptions& flags);
/// Error: a name that can be no part of a subject.
Status check_nats_flags(const NatsOptions& flags);

/// Hands SIGTERM and SIGINT to a function, on a thread of its own, one after the other. It must be made before any
/// other thread, which would take them otherwise.
class Signals {
 public:
  Signals();
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  /// From now on; once. What came before comes now.
  void watch(std::function<void()> on_signal);

 private:
  std::thread thread_;
};

}  // namespace millrace::cli
