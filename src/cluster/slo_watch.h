// SloWatch: whether a stream's node keeps what it was picked for. Pure.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>

#include "cluster/transport.h"

namespace millrace {

class SloWatch {
 public:
  /// A node has been picked. Objectives in seconds; infinity: there is none.
  void placed(double ttft, double tpot, std::int64_t choices, Instant now) {
    ttft_ = ttft;
    tpot_ = tpot;
    choices_ = choices;
    began_ = now;
    tokens_ = -1;
    late_ = 0;
  }

  void token(Instant now) {
    if (tokens_ < 0) began_ = now;
    ++tokens_;
  }

  /// The reader is slow, or has just caught up: what the node does now says nothing.
  void held(Instant now) {
    if (tokens_ < 0) return;
    began_ = now;
    tokens_ = 0;
  }

  /// The first token is late, or tokens have been for two windows. It says so once, and goes on with a new window.
  bool missed(Instant now) {
    const double seconds = std::chrono::duration<double>(now - began_).count();
    if (tokens_ < 0) {
      if (seconds <= kSlack * ttft_) return false;
      ttft_ = std::numeric_limits<double>::infinity();
      return true;
    }
    const double due = static_cast<double>(kWindow) * tpot_ * kSlack;
    const bool full = tokens_ >= kWindow * choices_;
    if (!full && seconds <= due) return false;
    late_ = seconds > due ? late_ + 1 : 0;
    began_ = now;
    tokens_ = 0;
    if (late_ < kWindows) return false;
    late_ = 0;
    return true;
  }

 private:
  static constexpr std::int64_t kWindow = 16;  // tokens of each choice
  static constexpr int kWindows = 2;
  static constexpr double kSlack = 1.25;  // of an objective, before a move is worth its prompt

  double ttft_ = std::numeric_limits<double>::infinity(), tpot_ = ttft_;
  std::int64_t choices_ = 1;
  Instant began_{0};
  std::int64_t tokens_ = -1;  // since then, after the first one; -1: not even that
  int late_ = 0;
};

}  // namespace millrace
