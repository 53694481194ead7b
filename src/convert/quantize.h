// A checkpoint with its linear layers rounded to codes, written as a Hugging Face directory that others load too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "recipe/recipe.h"

namespace millrace {

struct QuantizeOptions {
  std::filesystem::path model = {};
  /// A directory that is not there, is empty, or holds what an earlier call left unfinished.
  std::filesystem::path output = {};
  /// Which layer gets which format; the head only where it names it and the model has one of its own.
  Recipe recipe = {};
  int threads = 0;
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};  // bytes of the source; may be empty
};

struct LayerReport {
  std::string layer, format;
  std::int64_t rows = 0, cols = 0;
  double error = 0.0;    // root of the summed squares of what rounding changed, over that of the weights
  double largest = 0.0;  // change of a weight
};

struct QuantizeReport {
  std::vector<LayerReport> layers;
  std::uint64_t source_bytes = 0, output_bytes = 0;
  std::size_t resumed = 0;  // steps that an earlier call had finished
};

/// Reads, rounds and writes one weight after the other, a block of rows at a time, so that a model may be larger than
/// memory. What is finished stays where the call fails or is killed; the same call then goes on from there. Errors: the
/// model cannot be read or is quantised already; a format does not fit a layer; a weight is not finite; the output is
/// something else, or cannot be written.
Result<QuantizeReport> quantize_checkpoint(const QuantizeOptions& options);

}  // namespace millrace
