// A checkpoint with its linear layers rounded to codes, written as a Hugging Face directory that others load too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "convert/calibration.h"
#include "convert/conversion.h"
#include "core/result.h"
#include "recipe/recipe.h"

namespace millrace {

struct QuantizeOptions {
  std::filesystem::path model = {};
  /// A directory that is not there, is empty, or holds what an earlier call left unfinished.
  std::filesystem::path output = {};
  /// Which layer gets which format; the head only where it names it and the model has one of its own.
  Recipe recipe = {};
  RoundingMethod method = RoundingMethod::nearest;
  CalibrationText text = {};  // what all methods but `nearest` need
  std::uint64_t memory = 0;   // bytes that products of inputs (GPTQ) may take; 0: half of what is free
  int threads = 0;
  // May be empty: bytes of the source that are done; windows of the text, once for each time that it is run.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
  std::function<void(std::int64_t done, std::int64_t total)> text_progress = {};
};

/// Reads, rounds and writes one weight after the other, a block of rows at a time, so that a model may be larger than
/// memory; where a method needs a text, the model has to fit, since it is run. What is finished stays where the call
/// fails or is killed; the same call then goes on from there. Errors: the model cannot be read or is quantised already;
/// a format does not fit a layer; a weight is not finite; the output is something else, or cannot be written.
Result<QuantizeReport> quantize_checkpoint(const QuantizeOptions& options);

}  // namespace millrace
