// What a gateway's router predicted for each stream, beside what came: lines of JSON.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include "cluster/node_work.h"
#include "core/result.h"

namespace millrace::cli {

/// One thread.
class RouteLog {
 public:
  /// Adds to the file. An empty path: nothing is written. Error: it cannot be opened.
  static Result<RouteLog> open(const std::string& path);

  /// {node, prompt_tokens, cached_tokens, tokens, beside, queued, ttft_predicted, ttft, tpot_predicted, tpot}, in
  /// seconds; without a first token nothing is written. TPOT is null with fewer than 8 tokens of an answer.
  void write(const NodeWork& work) const;

 private:
  std::shared_ptr<std::FILE> file_;
};

}  // namespace millrace::cli
