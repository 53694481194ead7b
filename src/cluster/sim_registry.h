// SimRegistry: the records of nodes on a virtual clock. It outlives every server, as a file does.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cluster/registry.h"
#include "cluster/transport.h"

namespace millrace {

/// What all clients' registries read and write.
struct SimRecords {
  std::uint64_t revision = 0;
  std::map<std::string, std::pair<NodeRecord, std::uint64_t>> records;
  std::vector<std::pair<std::string, TermsNews>> terms;  // in their order; what is behind replaces what is before
};

/// One client's view: changes are seen when it looks, every 200 ms while it is connected.
class SimRegistry : public Registry {
 public:
  SimRegistry(Transport& transport, SimRecords& records);

  void announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) override;
  void watch(Watcher watcher) override;
  void watch_terms(TermsWatcher watcher) override;
  void quarantine(const std::string& node, const std::string& reason) override;

 private:
  void look();

  Transport* transport_;
  SimRecords* records_;
  Watcher watcher_;
  TermsWatcher terms_watcher_;
  std::size_t terms_seen_ = 0;
  bool looks_ = false;
  std::uint64_t incarnation_ = 0;  // of the process that announces by it
  std::map<std::string, std::uint64_t> seen_;
};

}  // namespace millrace
