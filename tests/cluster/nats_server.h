// A NATS server of our own on loopback, for one test.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>

#include "cluster/nats_transport.h"

namespace millrace::test {

/// Started at construction with JetStream in a folder of its own, on a free port, and ended with the test.
class NatsServer {
 public:
  /// Whether there is one: of MILLRACE_NATS_SERVER (tools/nats_server), else the system's (Debian: nats-server).
  static bool available();

  /// With `identities` (flags of deploy/issue_credentials) it lets in these alone; else anybody.
  explicit NatsServer(const std::string& identities = {});
  ~NatsServer();
  NatsServer(const NatsServer&) = delete;
  NatsServer& operator=(const NatsServer&) = delete;

  [[nodiscard]] std::string url() const;
  /// How this identity reaches it.
  [[nodiscard]] NatsOptions options(const std::string& name) const;
  [[nodiscard]] pid_t pid() const { return process_; }

  /// Ends it as an administrator does; its files stay.
  void stop();
  /// While it is stopped: all that JetStream has kept.
  void lose_files();
  /// On the same port, with the same files. Returns once it listens.
  void start();
  /// The bucket of nodes' records, as an operator makes it.
  void make_bucket(const std::string& bucket) const;

 private:
  int port_;
  std::filesystem::path folder_;
  bool has_identities_ = false;
  pid_t process_ = -1;
};

}  // namespace millrace::test
