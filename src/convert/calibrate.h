// Running a model on a text to learn what its activations, attention, keys and values are like (`millrace calibrate`).
#pragma once

#include <functional>

#include "convert/calibration.h"
#include "convert/predictor_training.h"
#include "recipe/activation_profile.h"
#include "runtime/load_model.h"

namespace millrace {

/// Runs the model as `options` say on the text, each position once; rows count as where the recipe is judged
/// (rows_for_policy), so that what they leave out before a layer is seen in it; with cats inputs of down are looked at
/// as they are before the gate's threshold. Attention and what is stored are looked at in the same pass, unless the
/// recipe keeps some of it only. Without a text as many tokens drawn by lot, for models whose
/// weights are made up. `options`: limits, wrap_backend and max_model_len are set here. Errors: the model cannot be
/// loaded or runs on a device whose memory is not the host's; a text that has no tokens, or a model that has no
/// tokenizer.
Result<ActivationProfile> profile_activations(LoadOptions options, const CalibrationText& text,
                                              const std::function<void(std::int64_t, std::int64_t)>& progress);

/// Runs the model on the text as prompts and trains a predictor for each dense feed-forward network whose activation
/// gives exact zeros. `options`: as above; without a recipe's "activations". Errors: those above; a model with another
/// activation; samples that memory does not hold (twice the width and an eighth of the neurons in bytes, for each layer
/// and token); too few tokens.
Result<NeuronProfiles> profile_neurons(LoadOptions options, const CalibrationText& text,
                                       const PredictorOptions& predictor,
                                       const std::function<void(std::int64_t, std::int64_t)>& progress);

}  // namespace millrace
