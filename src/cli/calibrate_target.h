// `millrace calibrate --target-kl`: a recipe whose rows of answers leave out as many inputs as a divergence allows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "convert/calibration.h"
#include "convert/threshold_backend.h"
#include "convert/threshold_search.h"

namespace millrace::cli {

struct TargetFlags {
  std::string method;      // "teal", "down" or "cats"; empty: no recipe is wanted
  double target_kl = 0.0;  // nats
  bool uniform = false;    // one density for all layers
};

struct TargetReport {
  std::string recipe;  // the file's text
  std::int64_t tokens = 0, held_out_tokens = 0;
  FoundSparsities found;
  // Of each group of layers.
  std::vector<ThresholdBackend::Group> groups;
  std::vector<std::optional<float>> thresholds;
  std::vector<ThresholdBackend::Counts> counts;  // on the held-out part

  /// The share of all inputs that was kept, each times the outputs that read it.
  [[nodiscard]] double kept() const;
};

/// Three quarters of the text's windows are what magnitudes, and what each group of layers loses by itself, are taken
/// from; on the rest the level is found at which KL(without || with) is not above the target. `scratch`: a path that
/// may be written beside, for what the model says without skipping; nothing stays there. The recipe is that of the
/// flags with "activations". Errors: a recipe that has them, or a prompt's policy alone; fewer than four windows; no
/// threshold that loses so little; what load_model says.
Result<TargetReport> calibrate_to_target(const ModelFlags& flags, const CalibrationText& text,
                                         const TargetFlags& target, const std::string& scratch);

void print(const TargetReport& report, const TargetFlags& target, const std::string& output, bool json);

}  // namespace millrace::cli
