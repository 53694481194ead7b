// Auditor: a gateway's audits. Of what nodes say it has a share scored by trusted nodes, tests each node by that, and
// has those quarantined whose answers are not what they should be (docs/audits.md).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "audits/audit_score.h"
#include "audits/audit_test.h"
#include "cluster/gateway_streams.h"

namespace millrace {

struct AuditOptions {
  std::string model;       // answers of this one are audited, as nodes' records name it
  std::int32_t vocab = 0;  // its tokens
  double share = 0.0;      // of what nodes say, 0 to 1
  std::uint64_t seed = 0;  // nobody else may know it: nodes must not foresee what is audited
};

/// How an answer is scored: by what a trusted node says of its tokens (audit_score.h), greedy ones apart; or, where
/// that does not tell (grammars, penalties, biases), by having a few of them drawn again: the share that comes out
/// otherwise.
enum class AuditKind : std::uint8_t { greedy, sampled, redrawn };

/// What honest nodes' mean scores do not exceed, where nothing else was measured (docs/audits.md has where from).
struct AuditBounds {
  double greedy = 0.0, sampled = 0.0;
  double redrawn = 0.0;  // 0: such answers are not judged

  [[nodiscard]] double of(AuditKind kind) const {
    return kind == AuditKind::greedy ? greedy : kind == AuditKind::sampled ? sampled : redrawn;
  }
};
constexpr AuditBounds kSameClassBounds{5e-5, 1e-4, 1e-2};  // node and reference are of one numeric class
constexpr AuditBounds kAlikeClassBounds{5e-4, 2e-3};       // of two, that run the same weights with the same recipe

/// Whether two numeric classes run the same weights with the same recipe, so that they differ by rounding alone. Such
/// names end in hashes of both, 16 hexadecimal digits each; what is before the first of them may differ.
bool computes_alike(std::string_view a, std::string_view b);

/// One thread: the transport's.
class Auditor {
 public:
  /// Whether an operator trusts this node, now.
  using IsTrusted = std::function<bool(const std::string& node)>;
  /// A node that was found to lie, and why it is thought so: once for each time that it is found.
  using Quarantine = std::function<void(const std::string& node, const std::string& reason)>;

  static constexpr std::size_t kMostTokens = 64;  // of an answer that are scored
  static constexpr std::size_t kRedrawn = 4;      // … that are drawn again
  static constexpr std::size_t kMostOpen = 16;    // streams of audits at once; what is beyond is not audited

  /// Listens to `streams`, which like `transport` must outlive it.
  Auditor(GatewayStreams& streams, Transport& transport, AuditOptions options, IsTrusted is_trusted,
          Quarantine quarantine);
  ~Auditor();
  Auditor(const Auditor&) = delete;
  Auditor& operator=(const Auditor&) = delete;

  struct Counters {
    std::int64_t chosen = 0;        // parts of answers that were to be audited
    std::int64_t unscorable = 0;    // of these: to be drawn again, and no trusted node is of the very class
    std::int64_t no_reference = 0;  // … no trusted node of the class, or one that computes alike
    std::int64_t crowded = 0;       // … too many audits were open
    std::int64_t failed = 0;        // … the trusted node did not say all
    std::int64_t controls = 0;      // … scored, of trusted nodes
    std::int64_t early = 0;         // … scored, but there are not enough controls yet
    std::int64_t judged = 0;        // … scored, and added to the node's test
    std::int64_t alarms = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  /// Streams of audits that run.
  [[nodiscard]] std::size_t open() const { return open_.size(); }
  [[nodiscard]] const std::map<std::string, AuditTest>& tests() const { return tests_; }

  /// What was found so far, as JSON text, for an auditor that goes on from there. Error: what is wrong in it.
  [[nodiscard]] std::string json() const;
  Status restore(std::string_view json);

 private:
  /// A piece of an answer that is scored.
  struct Audit {
    AuditKind kind = AuditKind::sampled;
    std::string node, numeric_class;
    SamplingParams sampling = {};  // with its choice
    std::int64_t first_position = 0;
    std::vector<std::int32_t> tokens = {};
    Placement control = {};  // the same request once more, for a trusted node
    // What came of it.
    std::vector<ReferredToken> referred = {};
    std::size_t redrawn = 0, missed = 0;  // tokens drawn again, and those that came out otherwise
    std::size_t pending = 0;              // streams that have not ended
    bool failed = false;
    std::string reference = {};  // class of whom was asked
  };
  /// A stream that is asked for the sake of an audit.
  struct Errand {
    Placement work;
    std::int32_t expected = -1;  // the token that is drawn again
  };
  struct OpenErrand {
    std::shared_ptr<Audit> audit;
    std::int32_t expected = -1;
  };

  void take(const SaidPart& part);
  [[nodiscard]] static Errand scoring(const Audit& audit, std::vector<std::int32_t> before);
  [[nodiscard]] static Errand redraw(const Placement& work, std::size_t choice, std::size_t at);
  void refer(const std::shared_ptr<Audit>& audit, std::vector<Errand> errands);
  void judge(const Audit& audit);
  void start_control(const Audit& audit);
  Demand on_news(StreamId id, const StreamNews& news);
  /// Trusted nodes that may score this class: of the same class, else of those that compute alike. Empty: none.
  [[nodiscard]] std::vector<std::string> references(const std::string& numeric_class) const;
  AuditBaseline& baseline(const std::string& numeric_class, AuditKind kind);
  [[nodiscard]] std::string class_of(const std::string& node) const;

  GatewayStreams* streams_;
  Transport* transport_;
  AuditOptions options_;
  IsTrusted is_trusted_;
  Quarantine quarantine_;
  std::mt19937_64 dice_;
  std::map<StreamId, OpenErrand> open_;
  std::set<StreamId> controls_;
  std::map<std::string, AuditTest> tests_;
  std::map<std::string, AuditBaseline> baselines_;  // of the class's name, behind its kind
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Counters counters_;
};

}  // namespace millrace
