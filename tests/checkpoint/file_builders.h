// Builds small checkpoint files in memory: correct ones, and ones whose every number can be made wrong.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

/// A fresh directory that goes away with its object.
class TempDirectory {
 public:
  TempDirectory();
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  ~TempDirectory();
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  /// Writes a file and returns its path.
  std::filesystem::path write(const std::string& name, std::string_view content) const;

 private:
  std::filesystem::path path_;
};

template <typename T>
void append(std::string& target, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  target.append(bytes, sizeof(T));
}

std::string float_bytes(const std::vector<float>& values);
/// 0, 1, 2, ... as float32.
std::string counting_floats(std::size_t count);

/// Header length, header and data of a safetensors file.
std::string safetensors_file(const std::string& header, std::string_view data);

struct SafetensorsEntry {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::string data;
};
/// A correct file with these tensors one after the other.
std::string safetensors_file(const std::vector<SafetensorsEntry>& tensors);

/// Writes GGUF. Keys and tensors keep their order; nothing is checked.
class GgufBuilder {
 public:
  explicit GgufBuilder(const std::string& architecture) { text("general.architecture", architecture); }

  GgufBuilder& text(const std::string& key, std::string_view value);
  GgufBuilder& u32(const std::string& key, std::uint32_t value);
  GgufBuilder& u64(const std::string& key, std::uint64_t value);
  GgufBuilder& i32(const std::string& key, std::int32_t value);
  GgufBuilder& f32(const std::string& key, float value);
  GgufBuilder& flag(const std::string& key, bool value);
  GgufBuilder& texts(const std::string& key, const std::vector<std::string>& values);
  GgufBuilder& u32s(const std::string& key, const std::vector<std::uint32_t>& values);
  GgufBuilder& i32s(const std::string& key, const std::vector<std::int32_t>& values);
  GgufBuilder& f32s(const std::string& key, const std::vector<float>& values);
  GgufBuilder& flags(const std::string& key, const std::vector<bool>& values);
  /// A pair as raw bytes: type number and encoded value.
  GgufBuilder& raw(const std::string& key, std::uint32_t type, std::string_view value);

  /// `shape` outermost dimension first, as PyTorch has it; `type` a ggml type number (0: F32).
  GgufBuilder& tensor(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                      const std::string& data);
  GgufBuilder& floats(const std::string& name, const std::vector<std::uint64_t>& shape);  // counting_floats
  /// As tensor(), at an offset of the caller's choice and with no data of its own.
  GgufBuilder& placed(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                      std::uint64_t offset);

  /// What every language model needs, for `layers` layers of 8 hidden units, 2 heads and 1 key-value head of 4.
  GgufBuilder& sizes(const std::string& architecture, std::uint32_t layers = 1);

  std::uint32_t version = 3;
  std::uint64_t more_tensors = 0, more_pairs = 0;  // added to the counts that the header claims
  [[nodiscard]] std::string build() const;

 private:
  GgufBuilder& key(const std::string& name, std::uint32_t type);
  void info(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type, std::uint64_t offset);

  std::uint64_t pairs_ = 0, tensors_ = 0;
  std::string metadata_, infos_, data_;
};

/// A correct little model of each kind for tests that damage it.
std::string small_gguf();
/// Files of a correct Hugging Face directory with one shard or two: name -> content.
std::vector<std::pair<std::string, std::string>> small_huggingface(bool sharded);

}  // namespace millrace
