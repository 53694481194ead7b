// What is known of nodes beside their beats: records that they announce, and a seam to where these are kept.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/result.h"

namespace millrace {

/// A model as a node serves it.
struct NodeModel {
  std::string name;
  std::string numeric_class;          // nodes of one class give the same tokens
  std::int64_t max_tokens = 1 << 20;  // of a sequence, prompt and answer
};

struct NodeRecord {
  std::string node;
  std::int64_t places = 16;  // sequences that run at once
  std::vector<NodeModel> models = {};
};

/// Where records are kept. Called and calls back on its transport's thread.
class Registry {
 public:
  /// `record` null: it was taken away.
  using Watcher = std::function<void(const std::string& node, const NodeRecord* record, std::uint64_t incarnation)>;

  Registry() = default;
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;
  virtual ~Registry() = default;

  /// Puts the record in the place of the one that the node had. Answers with its incarnation, larger than all before.
  virtual void announce(const NodeRecord& record, std::function<void(Result<std::uint64_t>)> done) = 0;

  /// All records that are there, and from then on whatever changes.
  virtual void watch(Watcher watcher) = 0;
};

}  // namespace millrace
