// Running a model on a text to learn how its layers should be rounded.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "convert/code_grid.h"
#include "convert/input_statistics.h"
#include "convert/linear_layers.h"
#include "convert/tensor_reader.h"
#include "core/result.h"
#include "runtime/load_model.h"
#include "runtime/text_windows.h"

namespace millrace {

/// How a layer's weights become codes.
enum class RoundingMethod : std::uint8_t {
  nearest,  // each weight by itself
  gptq,     // what one changes is made up for by the next (convert/gptq.h)
  awq,      // inputs scaled by what they are on average, then the best grids (convert/{input_scaling,grid_search}.h)
  smoothquant,  // inputs scaled against their outliers, for formats that round inputs
};

struct CalibrationText {
  std::filesystem::path file = {};  // empty: none
  std::int64_t tokens = 65536;      // of it that are read at most
};

inline constexpr std::int64_t kCalibrationWindow = 512;  // tokens that are read together

/// The text as the model reads it. Errors: it cannot be read, or has nothing to predict; a model without tokenizer.
Result<std::vector<TokenWindow>> calibration_windows(const LoadedModel& model, const CalibrationText& text);

/// A layer that is to be rounded.
struct RoundedLayer {
  std::string tensor;  // "model.layers.0.mlp.up_proj.weight"
  std::string layer;   // as recipes name it
  CodeFormat format;
  ScaleType scales = ScaleType::f16;
};

/// Runs the model as it is stored on the text and looks at the inputs of `layers`. Errors: the model cannot be loaded;
/// no memory; a text that has no tokens, or a model that has no tokenizer.
Result<StatisticsOfLayers> look_at_inputs(const std::filesystem::path& model, int threads, const CalibrationText& text,
                                          const std::set<std::string>& layers, bool products,
                                          const std::function<void(std::int64_t, std::int64_t)>& progress);

/// Finds scales for inputs of the layers in the order of the model and has the reader apply them: to the weights that
/// read the inputs, and to the norm or the up projection that makes them. Layers whose inputs come from something else,
/// or that share them with layers that stay as they are, are left alone. Returns how many groups of layers were scaled.
int scale_inputs(RoundingMethod method, const LinearLayers& model, const Checkpoint& checkpoint,
                 const std::vector<RoundedLayer>& layers, const StatisticsOfLayers& statistics, TensorReader& reader,
                 ThreadPool& pool);

}  // namespace millrace
