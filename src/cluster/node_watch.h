// NodeWatch: what a gateway knows of one node: how fast it is, and what it has to do. Of its own streams a gateway
// knows at once what becomes of them; of others' it hears with a beat. Pure.
#pragma once

#include <deque>
#include <optional>

#include "cluster/node_work.h"
#include "cluster/router.h"
#include "cluster/speed_profile.h"

namespace millrace {

/// Times: seconds on any clock that only goes forward.
class NodeWatch {
 public:
  /// `claim`: the speed that the node says it has.
  explicit NodeWatch(const NodeSpeed& claim = {}) : profile_(claim) {}

  /// What was observed is of another node now: it serves something else.
  void claims(const NodeSpeed& claim) {
    profile_ = SpeedProfile(claim);
    old_ = 1.0;
    half_ = kFirstHalf;
  }

  void beat(const NodeLoad& load, double now);

  /// A stream of this gateway is placed there. Sets whether it waits behind others, and whether it is a trial.
  void placed(NodeWork& work, double now);
  /// Its first token has come. Sets how many sequences of others are beside it.
  void began(NodeWork& work, double now);
  /// It has left, perhaps without a token; the speed is learned from it. Sets the same.
  void left(NodeWork& work, double now);

  /// As it was seen.
  [[nodiscard]] const NodeSpeed& speed() const { return profile_.speed(); }
  /// It was seen to be much slower than it says, and nothing of this gateway's is there that could teach otherwise.
  [[nodiscard]] bool rests() const;
  /// Of a node that rests, what may be hoped for: from what was seen to what it says, the further the longer it has
  /// rested, as what made it slow may have gone. A stream that is tried there, a trial, ends the rest, so there is one
  /// of them at a time. Each doubles the time until the next: alone on a node a stream costs more than beside others.
  [[nodiscard]] std::optional<NodeSpeed> hoped(double now) const;
  static constexpr double kBetweenHopes = 1.0;  // seconds in which they change little
  /// Some prompt of this gateway has no token yet: what is left of it changes with time.
  [[nodiscard]] bool computes() const { return !prompts_.empty(); }
  [[nodiscard]] NodeLoad load(double now) const;

 private:
  static constexpr double kFirstHalf = 10.0;

  /// Tokens of this gateway's prompts that the node has not computed yet, by its speed.
  [[nodiscard]] double own_tokens(double now) const;
  [[nodiscard]] double beside(const NodeWork& work) const;
  /// Which part of what was seen still counts.
  [[nodiscard]] double remembered(double now) const;
  void drop_prompt(const NodeWork& work, double now);

  SpeedProfile profile_;
  std::int64_t own_ = 0;         // sequences
  std::deque<double> prompts_;   // tokens of own prompts that have no first token yet, in their order
  double prompts_tokens_ = 0.0;  // of all of them
  double since_ = 0.0;           // when the node began with the first of them
  double left_ = 0.0;            // when the last own one left
  double old_ = 1.0;             // remembered() when an own one came after that, of which nothing is learned yet
  double half_ = kFirstHalf;     // seconds of rest in which half of what was seen is forgotten
  double others_ = 0.0, others_tokens_ = 0.0;
  std::int64_t waiting_ = 0;
  double kv_free_ = 0.0;  // tokens, by the last beat and what was placed since
};

/// Tells the router how what it predicted of this work turned out, which leaves its node now: seconds of the clock that
/// the work's times are of.
void tell_kept(Router& router, const NodeWork& work, double now);

/// A node's seconds that are the work's share where all places are taken, as Router counts them.
double busy_seconds(const NodeFacts& node, const NodeWork& work);

/// How long answers are that end: those to come are expected to be alike. The first ones count more.
class ExpectedAnswer {
 public:
  void ended(std::int64_t tokens);
  [[nodiscard]] double tokens() const { return tokens_; }

 private:
  double tokens_ = 256.0;
  std::int64_t seen_ = 8;  // as if so many had been as long
};

}  // namespace millrace
