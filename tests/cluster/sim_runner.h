// SimRunner: a node's engine on a virtual clock. Its tokens are a hash of all that came before them and of its numeric
// class, so that a token too many, too few or out of order changes every one behind it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cluster/node_streams.h"

namespace millrace::test {

constexpr std::int32_t kSimVocab = 300;
constexpr std::int32_t kSimStop = 0;
constexpr std::int64_t kSimHidden = 1000;
constexpr std::int64_t kSimHiddenAStep = 100;

/// The token behind `tokens` of a choice, as a node of this class draws it.
std::int32_t sim_token(const std::string& numeric_class, const Placement& placement, std::size_t choice,
                       const std::vector<std::int32_t>& tokens);

/// The answer that a node of this class gives where nothing disturbs it.
std::vector<std::int32_t> sim_answer(const std::string& numeric_class, const Placement& placement, std::size_t choice);

/// The embedding of its prompt, [kSimHidden].
std::vector<float> sim_embedding(const Placement& placement);

class SimRunner : public StreamRunner {
 public:
  /// A step takes `step`, and at most `slots` placements run at once; others wait.
  SimRunner(Transport& transport, std::string model, std::string numeric_class, Duration step, std::size_t slots);
  ~SimRunner() override;

  void start(RunId run, Placement placement, Sink sink) override;
  void pause(RunId run) override { paused(run, true); }
  void resume(RunId run) override { paused(run, false); }
  void cancel(RunId run) override;

  /// Placements that it has, each of which holds memory.
  [[nodiscard]] std::size_t held() const { return runs_.size(); }

 private:
  struct Run {
    Placement placement;
    Sink sink;
    bool accepted = false, running = false, paused = false;
    std::size_t numbers = 0;  // of an embedding, that were told
  };

  void paused(RunId run, bool is);
  void step();
  /// What a step makes of a run: events, and whether it has ended.
  bool advance(Run& run, std::vector<StreamEvent>& events) const;

  Transport* transport_;
  std::string model_, class_;
  Duration step_;
  std::size_t slots_;
  std::map<RunId, Run> runs_;
  std::optional<Transport::TimerId> timer_;
};

}  // namespace millrace::test
