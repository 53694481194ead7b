#include "runtime/neuron_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/float16.h"
#include "core/mapped_file.h"
#include "model/checkpoint/safetensors.h"

namespace millrace {

namespace {

constexpr std::size_t kFigures = 5;
constexpr std::size_t kLongestModel = 256;

using Tensors = std::map<std::string, const StoredTensor*, std::less<>>;

template <typename Element>
std::vector<Element> elements(const StoredTensor& tensor) {
  std::vector<Element> values(tensor.data.size() / sizeof(Element));
  std::memcpy(values.data(), tensor.data.data(), values.size() * sizeof(Element));
  return values;
}

Result<const StoredTensor*> find(const Tensors& tensors, const std::string& name, QuantFormat format,
                                 std::size_t dimensions, const std::string& path) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return fail("{}: tensor {} is missing", path, name);
  if (found->second->format != format || found->second->shape.size() != dimensions) {
    return fail("{}: tensor {} is not {} of {} dimensions", path, name, format_info(format).name, dimensions);
  }
  return found->second;
}

Status check_finite(const std::vector<float>& values, const std::string& layer, const char* part,
                    const std::string& path) {
  if (std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) return Ok{};
  return fail("{}: tensor {}.{} holds a number that is not finite", path, layer, part);
}

Result<NeuronProfile> read_layer(const Tensors& tensors, const std::string& layer, const std::string& path) {
  NeuronProfile profile;
  profile.layer = layer;
  MILLRACE_TRY(const StoredTensor* frequency, find(tensors, layer + ".frequency", QuantFormat::f32, 1, path));
  MILLRACE_TRY(const StoredTensor* in, find(tensors, layer + ".predictor.in", QuantFormat::bf16, 2, path));
  MILLRACE_TRY(const StoredTensor* out, find(tensors, layer + ".predictor.out", QuantFormat::bf16, 2, path));
  MILLRACE_TRY(const StoredTensor* bias, find(tensors, layer + ".predictor.bias", QuantFormat::f32, 1, path));
  MILLRACE_TRY(const StoredTensor* figures, find(tensors, layer + ".figures", QuantFormat::f32, 1, path));
  const std::int64_t neurons = frequency->shape[0];
  profile.rank = in->shape[0];
  profile.inputs = in->shape[1];
  if (out->shape[0] != neurons || out->shape[1] != profile.rank || bias->shape[0] != neurons ||
      figures->shape[0] != static_cast<std::int64_t>(kFigures)) {
    return fail("{}: the tensors of {} do not go together", path, layer);
  }
  profile.frequency = elements<float>(*frequency);
  profile.in = elements<std::uint16_t>(*in);
  profile.out = elements<std::uint16_t>(*out);
  profile.bias = elements<float>(*bias);
  const std::vector<float> numbers = elements<float>(*figures);
  MILLRACE_CHECK_OK(check_finite(profile.frequency, layer, "frequency", path));
  MILLRACE_CHECK_OK(check_finite(profile.bias, layer, "predictor.bias", path));
  MILLRACE_CHECK_OK(check_finite(numbers, layer, "figures", path));
  for (const auto* part : {&profile.in, &profile.out}) {
    if (!std::ranges::all_of(*part, [](std::uint16_t bits) { return std::isfinite(bf16_to_float(bits)); }))
      return fail("{}: the predictor of {} holds a number that is not finite", path, layer);
  }
  profile.hot = numbers[0];
  profile.cold_recall = numbers[1];
  profile.recall = numbers[2];
  profile.density = numbers[3];
  profile.firing = numbers[4];
  return profile;
}

/// Tensors one behind the other, and the header that says so.
class Writer {
 public:
  template <typename Element>
  void add(const std::string& name, const char* dtype, std::vector<std::int64_t> shape,
           const std::vector<Element>& values) {
    const std::size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(Element));
    header_[name] = {{"dtype", dtype}, {"shape", std::move(shape)}, {"data_offsets", {begin, data_.size()}}};
  }

  [[nodiscard]] std::string bytes(const std::string& model) {
    header_["__metadata__"] = {{"millrace_neurons", "1"}, {"model", model}};
    std::string header = header_.dump();
    header.append((8 - header.size() % 8) % 8, ' ');
    const auto size = static_cast<std::uint64_t>(header.size());
    std::string all(reinterpret_cast<const char*>(&size), sizeof size);
    return all + header + data_;
  }

 private:
  nlohmann::ordered_json header_;
  std::string data_;
};

}  // namespace

Result<NeuronProfiles> read_neuron_profiles(const std::filesystem::path& path) {
  const std::string name = path.string();
  MILLRACE_TRY(const MappedFile mapped, MappedFile::open(path));
  MILLRACE_TRY(const SafetensorsFile file, parse_safetensors(mapped.bytes(), name));
  const auto version = file.metadata.find("millrace_neurons"), model = file.metadata.find("model");
  if (version == file.metadata.end() || version->second != "1") {
    return fail("{}: no profile of neurons that `millrace calibrate --predictor` has written", name);
  }
  if (model == file.metadata.end() || model->second.size() > kLongestModel)
    return fail("{}: it does not say of which model it is", name);
  NeuronProfiles profiles{.model = model->second, .layers = {}};
  Tensors tensors;
  for (const StoredTensor& tensor : file.tensors) tensors.emplace(tensor.name, &tensor);
  constexpr std::string_view kFrequency = ".frequency";
  for (const auto& [tensor, stored] : tensors) {
    if (!tensor.ends_with(kFrequency)) continue;
    const std::string layer = tensor.substr(0, tensor.size() - kFrequency.size());
    MILLRACE_TRY(NeuronProfile profile, read_layer(tensors, layer, name));
    profiles.layers.push_back(std::make_shared<const NeuronProfile>(std::move(profile)));
  }
  return profiles;
}

std::string neuron_profiles_bytes(const NeuronProfiles& profiles) {
  Writer writer;
  for (const auto& profile : profiles.layers) {
    const std::int64_t neurons = profile->neurons();
    writer.add(profile->layer + ".frequency", "F32", {neurons}, profile->frequency);
    writer.add(profile->layer + ".predictor.in", "BF16", {profile->rank, profile->inputs}, profile->in);
    writer.add(profile->layer + ".predictor.out", "BF16", {neurons, profile->rank}, profile->out);
    writer.add(profile->layer + ".predictor.bias", "F32", {neurons}, profile->bias);
    const std::vector<float> figures{static_cast<float>(profile->hot), static_cast<float>(profile->cold_recall),
                                     static_cast<float>(profile->recall), static_cast<float>(profile->density),
                                     static_cast<float>(profile->firing)};
    writer.add(profile->layer + ".figures", "F32", {static_cast<std::int64_t>(kFigures)}, figures);
  }
  return writer.bytes(profiles.model);
}

}  // namespace millrace
