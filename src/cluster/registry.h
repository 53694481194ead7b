// What is known of nodes beside their beats: records that they announce, what operators say of them, and a seam to
// where these are kept.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "cluster/terms.h"
#include "core/result.h"

namespace millrace {

/// A model as a node serves it.
struct NodeModel {
  std::string name;
  std::string numeric_class;          // nodes of one class give the same tokens
  std::int64_t max_tokens = 1 << 20;  // of a sequence, prompt and answer
  std::string recipe = "dense";       // what answers say they were made with
  NodeSpeed speed = {};  // as the node has measured itself; gateways begin with it, and go by what they see
};

struct NodeRecord {
  std::string node;
  std::int64_t places = 16;  // sequences that run at once
  std::vector<NodeModel> models = {};
  std::uint64_t incarnation = 0;  // of the process that announces it, as its beats have it
};

/// Why a node gets no streams; empty: it does.
struct Quarantine {
  std::string reason;
};
/// What has changed.
using TermsNews = std::variant<NodeTerms, Quarantine>;

/// Where records are kept. Called and calls back on its transport's thread.
class Registry {
 public:
  /// `record` null: it was taken away.
  using Watcher = std::function<void(const std::string& node, const NodeRecord* record, std::uint64_t incarnation)>;

  using TermsWatcher = std::function<void(const std::string& node, const TermsNews& news)>;

  Registry() = default;
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;
  virtual ~Registry() = default;

  /// Puts the record in the place of the one that the node had. Answers with its incarnation, larger than all before.
  virtual void announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) = 0;

  /// All records that are there, and from then on whatever changes.
  virtual void watch(Watcher watcher) = 0;
  /// The same of terms; those that were taken away are the default ones from then on.
  virtual void watch_terms(TermsWatcher watcher) = 0;
  /// No streams for this node any more, by whichever gateway, until an operator takes it back.
  virtual void quarantine(const std::string& node, const std::string& reason) = 0;
};

}  // namespace millrace
