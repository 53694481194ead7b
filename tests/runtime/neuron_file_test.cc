// The file of what was learnt of neurons is what was written, and is refused where it is not.
#include "runtime/neuron_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <limits>

namespace millrace {
namespace {

NeuronProfiles profiles() {
  NeuronProfile profile;
  profile.layer = "model.layers.0.mlp";
  profile.inputs = 2;
  profile.rank = 1;
  profile.frequency = {0.25f, 0.75f, 0.5f};
  profile.in = {0x3f80, 0xbf80};
  profile.out = {0x3f80, 0x4000, 0x4040};
  profile.bias = {-1.0f, 0.5f, 0.0f};
  profile.hot = 0.5;
  profile.cold_recall = 0.96875;
  profile.recall = 0.984375;
  profile.density = 0.375;
  profile.firing = 0.25;
  return {.model = "0123456789abcdef", .layers = {std::make_shared<const NeuronProfile>(profile)}};
}

Result<NeuronProfiles> read(const std::string& bytes) {
  const std::string path = testing::TempDir() + "neurons.safetensors";
  std::ofstream(path, std::ios::binary) << bytes;
  return read_neuron_profiles(path);
}

std::string refused(const std::string& bytes) {
  const auto result = read(bytes);
  if (result.ok()) return "";
  const std::string& message = result.error().message;
  return message.substr(message.find(": ") + 2);
}

TEST(NeuronFile, IsWhatWasWritten) {
  const auto result = read(neuron_profiles_bytes(profiles()));
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->model, "0123456789abcdef");
  const auto expected = profiles().layers.front(), found = result->of_layer("model.layers.0.mlp");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->inputs, 2);
  EXPECT_EQ(found->rank, 1);
  EXPECT_EQ(found->frequency, expected->frequency);
  EXPECT_EQ(found->in, expected->in);
  EXPECT_EQ(found->out, expected->out);
  EXPECT_EQ(found->bias, expected->bias);
  EXPECT_EQ(found->hot, 0.5);
  EXPECT_EQ(found->cold_recall, 0.96875);
  EXPECT_EQ(found->recall, 0.984375);
  EXPECT_EQ(found->density, 0.375);
  EXPECT_EQ(found->firing, 0.25);
  EXPECT_EQ(result->of_layer("model.layers.1.mlp"), nullptr);

  NeuronChoice choice;
  choice.profile = found;
  EXPECT_EQ(neuron_order(choice, 3), (std::vector<std::int32_t>{1, 2, 0}));
  EXPECT_EQ(hot_neurons(choice), 2);
}

TEST(NeuronFile, IsRefusedWhereItIsDamaged) {
  const std::string whole = neuron_profiles_bytes(profiles());
  EXPECT_EQ(refused(whole), "");
  EXPECT_NE(refused(whole.substr(0, whole.size() - 1)), "");
  EXPECT_NE(refused(whole.substr(0, 30)), "");
  EXPECT_NE(refused("{}"), "");
  std::string other = whole;
  other.replace(other.find("\"millrace_neurons\":\"1\""), 22, "\"millrace_neurons\":\"2\"");
  EXPECT_EQ(refused(other), "no profile of neurons that `millrace calibrate --predictor` has written");
  const auto damaged = [&](auto&& damage) {
    const NeuronProfiles all = profiles();
    NeuronProfile profile = *all.layers.front();
    damage(profile);
    return refused(
        neuron_profiles_bytes({.model = all.model, .layers = {std::make_shared<const NeuronProfile>(profile)}}));
  };
  EXPECT_EQ(damaged([](NeuronProfile& p) { p.bias[1] = std::numeric_limits<float>::quiet_NaN(); }),
            "tensor model.layers.0.mlp.predictor.bias holds a number that is not finite");
  EXPECT_EQ(damaged([](NeuronProfile& p) { p.out[1] = 0x7f80; }),
            "the predictor of model.layers.0.mlp holds a number that is not finite");
  EXPECT_EQ(damaged([](NeuronProfile& p) { p.rank = 2; }),
            "tensor 'model.layers.0.mlp.predictor.in' has 4 bytes, which does not fit its dtype BF16 and shape [2, 2]");
  EXPECT_EQ(damaged([](NeuronProfile& p) {
              p.rank = 2;
              p.inputs = 1;
              p.out.resize(6);
              p.bias.resize(4);
            }),
            "tensor 'model.layers.0.mlp.predictor.bias' has 16 bytes, which does not fit its dtype F32 and shape [3]");
}

}  // namespace
}  // namespace millrace
