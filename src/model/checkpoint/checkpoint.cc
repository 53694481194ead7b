#include "model/checkpoint/checkpoint.h"

#include <array>
#include <fstream>
#include <functional>
#include <system_error>

#include "core/check.h"
#include "model/checkpoint/gguf_reader.h"
#include "model/checkpoint/huggingface.h"

namespace millrace {

namespace {

bool is_folder(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

/// By extension or by its first bytes.
bool is_gguf(const std::filesystem::path& path) {
  if (path.extension() == ".gguf") return true;
  std::array<char, 4> magic{};
  std::ifstream(path, std::ios::binary).read(magic.data(), magic.size());
  return std::string_view(magic.data(), magic.size()) == "GGUF";
}

Status check_exists(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) return Ok{};
  return fail("{} does not exist: expected a directory with config.json or a .gguf file", path.string());
}

}  // namespace

std::int64_t StoredTensor::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t dimension : shape) count *= dimension;
  return count;
}

std::uint64_t StoredTensor::bytes() const {
  std::uint64_t total = data.size();
  for (const std::span<const std::byte> part : parts) total += part.size();
  return total;
}

Result<Checkpoint> Checkpoint::open(const std::filesystem::path& path) {
  MILLRACE_CHECK_OK(check_exists(path));
  if (is_folder(path)) return HuggingFaceReader::open(path, /*with_tensors=*/true);
  if (is_gguf(path)) return GgufReader::open(path, /*with_tensors=*/true);
  return fail("{} is neither a directory with config.json nor a GGUF file", path.string());
}

Result<Checkpoint> Checkpoint::open_config_only(const std::filesystem::path& path) {
  MILLRACE_CHECK_OK(check_exists(path));
  if (is_folder(path)) return HuggingFaceReader::open(path, /*with_tensors=*/false);
  if (is_gguf(path)) return GgufReader::open(path, /*with_tensors=*/false);
  return HuggingFaceReader::open_config(path);
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::vector<std::string> Checkpoint::files() const {
  std::vector<std::string> paths;
  for (const auto& file : files_) paths.push_back(file->path());
  return paths;
}

std::uint64_t Checkpoint::weight_bytes() const {
  std::uint64_t total = 0;
  for (const auto& [name, tensor] : tensors_) total += tensor.bytes();
  return total;
}

void Checkpoint::release(const StoredTensor& tensor) const {
  if (!tensor.data.empty()) release(tensor.data, tensor.name);
  for (const std::span<const std::byte> part : tensor.parts) release(part, tensor.name);
}

void Checkpoint::release(std::span<const std::byte> part, const std::string& name) const {
  // std::less orders pointers into different mappings, which plain comparison does not promise.
  const std::less_equal<const std::byte*> not_after;
  for (const auto& file : files_) {
    const std::span<const std::byte> bytes = file->bytes();
    if (not_after(bytes.data(), part.data()) && not_after(part.data() + part.size(), bytes.data() + bytes.size())) {
      file->release(part);
      return;
    }
  }
  MILLRACE_CHECK(false, "tensor {} belongs to another checkpoint", name);
}

}  // namespace millrace
