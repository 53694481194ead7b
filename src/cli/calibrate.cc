// `millrace calibrate`: how large a model's activations are on a text, for recipes that leave out the small ones, and
// what its attention, keys and values are like; or a recipe that leaves out activations, for what may be lost.

#include "convert/calibrate.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

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

double mean(const std::vector<double>& of_heads) {
  return std::accumulate(of_heads.begin(), of_heads.end(), 0.0) / static_cast<double>(of_heads.size());
}

double largest(const std::vector<double>& of_heads) {
  return *std::ranges::max_element(of_heads);
}

void print(const AttentionProfile& profile) {
  std::printf("\nwhat attention gives, %% (means of heads), and the fewest pages of %lld that have %.0f %% of it\n",
              static_cast<long long>(kProfilePage), 100.0 * kProfileMass);
  std::printf("%-8s %8s %8s %8s %8s\n", "layer", fmt::format("first {}", kProfileSinks).c_str(),
              fmt::format("last {}", kProfileRecent).c_str(), "between", "pages");
  for (const AttentionProfile::Layer& layer : profile.layers) {
    std::printf("%-8lld %8.1f %8.1f %8.1f %8.1f\n", static_cast<long long>(layer.layer), 100.0 * mean(layer.sinks),
                100.0 * mean(layer.recent), 100.0 * mean(layer.between), mean(layer.pages));
  }
}

void print(const KvProfile& profile) {
  std::printf("\nthe largest key and value, and the largest channel of a head over its median one\n");
  std::printf("%-8s %10s %8s %10s %8s\n", "layer", "key", "over", "value", "over");
  for (const KvProfile::Layer& layer : profile.layers) {
    std::printf("%-8lld %10.4g %8.1f %10.4g %8.1f\n", static_cast<long long>(layer.layer), largest(layer.keys.largest),
                largest(layer.keys.largest_ratio), largest(layer.values.largest), largest(layer.values.largest_ratio));
  }
}

nlohmann::ordered_json summary(const AttentionProfile& profile) {
  auto layers = nlohmann::ordered_json::array();
  for (const AttentionProfile::Layer& layer : profile.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"rows", layer.rows},
                      {"sinks", mean(layer.sinks)},
                      {"recent", mean(layer.recent)},
                      {"between", mean(layer.between)},
                      {"pages", mean(layer.pages)}});
  }
  return layers;
}

nlohmann::ordered_json summary(const KvProfile& profile) {
  const auto sizes = [](const KvProfile::Numbers& numbers) {
    return nlohmann::ordered_json{{"largest", largest(numbers.largest)},
                                  {"largest_ratio", largest(numbers.largest_ratio)},
                                  {"rms_ratio", largest(numbers.rms_ratio)}};
  };
  auto layers = nlohmann::ordered_json::array();
  for (const KvProfile::Layer& layer : profile.layers) {
    layers.push_back({{"layer", layer.layer}, {"keys", sizes(layer.keys)}, {"values", sizes(layer.values)}});
  }
  return layers;
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
    nlohmann::ordered_json document{{"model", profile.model},
                                    {"tokens", profile.tokens},
                                    {"inputs", profile.inputs.size()},
                                    {"gates", profile.gates.size()},
                                    {"output", flags.output}};
    if (profile.attention) document["attention"] = summary(*profile.attention);
    if (profile.kv) document["kv"] = summary(*profile.kv);
    std::printf("%s\n", document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return Ok{};
  }
  std::printf("magnitudes that 10, 25, 50, 75 and 90 %% of %lld rows do not exceed\n",
              static_cast<long long>(profile.tokens));
  print(profile.inputs, "inputs");
  print(profile.gates, "act(gate)");
  if (profile.attention) print(*profile.attention);
  if (profile.kv) print(*profile.kv);
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
  CLI::App* command = app.add_subcommand(
      "calibrate", "Measure what activations, attention, keys and values are like, for recipes that refer to it");
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
