// The file in which `millrace calibrate --predictor` leaves what it learnt of a model's neurons: a safetensors file.
//
//   __metadata__            "millrace_neurons": "1", "model": fingerprint of the model
//   LAYER.frequency         F32  [neurons]
//   LAYER.predictor.in      BF16 [rank, inputs]
//   LAYER.predictor.out     BF16 [neurons, rank]
//   LAYER.predictor.bias    F32  [neurons]
//   LAYER.figures           F32  [5]: hot, cold_recall, recall, density, firing
//
// LAYER is "model.layers.0.mlp"; the parts are those of NeuronProfile.
#pragma once

#include <filesystem>
#include <string>

#include "core/result.h"
#include "recipe/neuron_choice.h"

namespace millrace {

/// Errors name the file and the tensor: not such a file, another version, shapes that do not go together, numbers that
/// are none.
Result<NeuronProfiles> read_neuron_profiles(const std::filesystem::path& path);

/// The file's bytes.
std::string neuron_profiles_bytes(const NeuronProfiles& profiles);

}  // namespace millrace
