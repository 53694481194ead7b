// `millrace calibrate`: how large a model's activations are on a text, for recipes that leave out the small ones; or
// such a recipe, for what may be lost.

#include "convert/calibrate.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/calibrate_target.h"
#include "cli/options.h"
#include "runtime/neuron_file.h"

namespace millrace::cli {

namespace {

struct CalibrateFlags {
  ModelFlags model;
  std::string output, text;
  std::int64_t tokens = 65536;
  PredictorOptions predictor = {.rank = 0};
  TargetFlags target;
};

void print(const std::vector<ActivationProfile::Entry>& entries, const char* what) {
  for (const ActivationProfile::Entry& entry : entries) {
    std::printf("%-50s %-10s", entry.layers.front().c_str(), what);
    for (const double share : {0.1, 0.25, 0.5, 0.75, 0.9})
      std::printf(" %10.4g", magnitude_at(entry.magnitudes, share));
    std::printf("\n");
  }
}

/// `file` writes to `part`, which becomes the profile.
Status keep(const CalibrateFlags& flags, const std::string& part, std::ofstream& file, const std::string& content) {
  file << content;
  file.close();
  if (!file) return fail("{} could not be written: is the disk full?", part);
  std::error_code error;
  std::filesystem::rename(part, flags.output, error);
  if (error) return fail("{}: {}", flags.output, error.message());
  return Ok{};
}

void print_neurons(const NeuronProfiles& profiles) {
  std::printf("of tokens that no predictor was trained on, %%\n%-24s %8s %6s %7s %9s %7s %12s\n", "", "neurons", "hot",
              "firing", "computed", "recall", "cold recall");
  for (const auto& layer : profiles.layers) {
    NeuronChoice choice;
    choice.profile = layer;
    std::printf("%-24s %8lld %6lld %7.1f %9.1f %7.1f %12.1f\n", layer->layer.c_str(),
                static_cast<long long>(layer->neurons()), static_cast<long long>(hot_neurons(choice)),
                100 * layer->firing, 100 * layer->density, 100 * layer->recall, 100 * layer->cold_recall);
  }
}

Status train_predictors(const CalibrateFlags& flags, const std::string& part, std::ofstream& file) {
  MILLRACE_TRY(LoadOptions options, load_options(flags.model, 1));
  MILLRACE_TRY(const NeuronProfiles profiles,
               profile_neurons(std::move(options), {.file = flags.text, .tokens = flags.tokens}, flags.predictor,
                               progress_bar("calibrating")));
  MILLRACE_CHECK_OK(keep(flags, part, file, neuron_profiles_bytes(profiles)));
  if (!flags.model.json) {
    print_neurons(profiles);
    return Ok{};
  }
  nlohmann::ordered_json document{
      {"model", profiles.model}, {"output", flags.output}, {"layers", nlohmann::json::array()}};
  for (const auto& layer : profiles.layers) {
    NeuronChoice choice;
    choice.profile = layer;
    document["layers"].push_back({{"layer", layer->layer},
                                  {"neurons", layer->neurons()},
                                  {"hot", hot_neurons(choice)},
                                  {"firing", layer->firing},
                                  {"density", layer->density},
                                  {"recall", layer->recall},
                                  {"cold_recall", layer->cold_recall}});
  }
  std::printf("%s\n", document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return Ok{};
}

Status find_thresholds(const CalibrateFlags& flags, const std::string& part, std::ofstream& file) {
  if (flags.text.empty()) return fail("give a text with --text: what is lost is measured on it");
  MILLRACE_TRY(const TargetReport report,
               calibrate_to_target(flags.model, {.file = flags.text, .tokens = flags.tokens}, flags.target, part));
  MILLRACE_CHECK_OK(keep(flags, part, file, report.recipe));
  print(report, flags.target, flags.output, flags.model.json);
  return Ok{};
}

Status calibrate(const CalibrateFlags& flags, const std::string& part, std::ofstream& file) {
  if (!flags.target.method.empty()) return find_thresholds(flags, part, file);
  if (flags.predictor.rank > 0) return train_predictors(flags, part, file);
  MILLRACE_TRY(LoadOptions options, load_options(flags.model, 1));
  MILLRACE_TRY(const ActivationProfile profile,
               profile_activations(std::move(options), {.file = flags.text, .tokens = flags.tokens},
                                   progress_bar("calibrating")));
  MILLRACE_CHECK_OK(keep(flags, part, file, activation_profile_text(profile)));
  if (flags.model.json) {
    const nlohmann::ordered_json document{{"model", profile.model},
                                          {"tokens", profile.tokens},
                                          {"inputs", profile.inputs.size()},
                                          {"gates", profile.gates.size()},
                                          {"output", flags.output}};
    std::printf("%s\n", document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return Ok{};
  }
  std::printf("magnitudes that 10, 25, 50, 75 and 90 %% of %lld rows do not exceed\n",
              static_cast<long long>(profile.tokens));
  print(profile.inputs, "inputs");
  print(profile.gates, "act(gate)");
  return Ok{};
}

Status run(const CalibrateFlags& flags) {
  if (flags.text.empty() && !flags.model.dummy) {
    return fail("give a text with --text; only made-up weights (--dummy) do without");
  }
  // Beside the profile, whose place it takes when it is whole; and asked for before the work.
  const std::string part = flags.output + ".part";
  std::ofstream file(part, std::ios::binary);
  if (!file) return fail("{} cannot be written: is there such a folder, and may you write in it?", part);
  const Status status = calibrate(flags, part, file);
  std::error_code ignored;
  std::filesystem::remove(part, ignored);
  return status;
}

}  // namespace

void add_calibrate(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<CalibrateFlags>();
  CLI::App* command =
      app.add_subcommand("calibrate", "Measure how large activations are, for a recipe's \"activations\"");
  add_model_flags(*command, flags->model);
  command->add_option("--text", flags->text, "Text that the model reads; with --dummy it may do without");
  command->add_option("--tokens", flags->tokens, "Of it that are read at most")->check(CLI::Range(1, 100'000'000));
  command
      ->add_option("--predictor", flags->predictor.rank,
                   "Train predictors of this rank that say which neurons fire; the profile is then one of neurons")
      ->check(CLI::Range(1, 4096));
  command
      ->add_option("--recall", flags->predictor.recall, "Share of the cold neurons that fire which is to be predicted")
      ->check(CLI::Range(0.5, 0.9999));
  command->add_option("--hot", flags->predictor.hot, "Neurons that fire for at least this share of tokens are hot")
      ->check(CLI::Range(0.001, 1.0));
  CLI::Option* method =
      command
          ->add_option("--method", flags->target.method,
                       "Write no profile but a recipe that leaves out inputs as teal, down or cats do")
          ->check(CLI::IsMember({"teal", "down", "cats"}))
          ->excludes("--predictor");
  CLI::Option* kl = command
                        ->add_option("--target-kl", flags->target.target_kl,
                                     "The most that it may lose: KL divergence from the model without it, mean, nats")
                        ->check(CLI::PositiveNumber)
                        ->needs(method);
  method->needs(kl);
  command->add_flag("--uniform", flags->target.uniform, "One density for all layers, instead of the best for each")
      ->needs(method);
  command->add_option("-o,--output", flags->output, "Profile or recipe to write")->required();
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
