// EngineRunner: a node's streams on its engine. The engine has a thread of its own; what it says is taken up on the
// loop, as many events at once as have come.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cluster/event_loop.h"
#include "cluster/node_streams.h"
#include "engine/engine.h"
#include "text/grammar.h"

namespace millrace {

/// What a node serves.
struct RunnerModel {
  std::string name, numeric_class;
  std::shared_ptr<const GrammarVocabulary> grammar_vocabulary;  // null: no constrained answers
};

class EngineRunner : public StreamRunner {
 public:
  /// `engine` and `loop` must outlive it.
  EngineRunner(Engine& engine, RunnerModel model, EventLoop& loop);
  ~EngineRunner() override;

  void start(RunId run, Placement placement, Sink sink) override;
  void pause(RunId run) override;
  void resume(RunId run) override;
  void cancel(RunId run) override;

 private:
  struct Queue;
  struct Run {
    Sink sink;
    std::shared_ptr<Queue> queue;
    RequestId request = 0;
    std::vector<std::int32_t> held;  // choices that wait for resume()
    std::size_t open_choices = 0;
    bool accepted = false, told = false;  // by the engine; to the sink
  };

  Result<Request> make_request(const Placement& placement) const;
  void deliver(RunId run);
  void fail(RunId run, Error error);

  Engine* engine_;
  RunnerModel model_;
  EventLoop* loop_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);                          // looked at on the loop alone
  std::shared_ptr<std::vector<RunId>> fresh_ = std::make_shared<std::vector<RunId>>();  // the engine's thread alone
  std::map<RunId, Run> runs_;
};

}  // namespace millrace
