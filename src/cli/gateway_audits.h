// A gateway's audits, by its flags: who is trusted the operator's terms say, what was found is kept in a file.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "audits/auditor.h"
#include "cli/log.h"
#include "cluster/registry.h"
#include "cluster/transport.h"

namespace millrace::cli {

struct AuditFlags {
  double share = 0.0;  // 0: no audits
  std::string state;   // file; empty: what was found is forgotten at the end
};

void add_audit_flags(CLI::App& command, AuditFlags& flags);

/// One thread: the transport's, or any while that does not run.
class GatewayAudits {
 public:
  /// Null where the flags ask for no audits. All but the flags must outlive it. Error: a state that is there and cannot
  /// be read.
  static Result<std::unique_ptr<GatewayAudits>> create(const AuditFlags& flags, const std::string& model,
                                                       std::int64_t vocab, GatewayStreams& streams,
                                                       Transport& transport, Registry& registry, Log log);
  ~GatewayAudits();
  GatewayAudits(const GatewayAudits&) = delete;
  GatewayAudits& operator=(const GatewayAudits&) = delete;

  [[nodiscard]] const Auditor& auditor() const { return auditor_; }

 private:
  GatewayAudits(const AuditFlags& flags, AuditOptions options, GatewayStreams& streams, Transport& transport,
                Registry& registry, Log log);
  void keep_saving();
  void save();

  std::filesystem::path file_;
  Transport* transport_;
  Log log_;
  Auditor auditor_;
  std::string saved_;
  Transport::TimerId timer_ = 0;
};

}  // namespace millrace::cli
