#include "model/checkpoint/gguf_reader.h"

#include <utility>

#include "model/checkpoint/gguf_text.h"
#include "model/checkpoint/json.h"

namespace millrace {

namespace {

constexpr std::int64_t kMaxSplits = 10'000;

/// Rows of a fused query-key-value projection that belong to one of the three.
StoredTensor rows_of(const StoredTensor& fused, std::string_view part, std::int64_t first, std::int64_t rows) {
  StoredTensor tensor = fused;
  tensor.name.replace(tensor.name.find("qkv_proj"), std::string_view("qkv_proj").size(), part);
  const std::size_t row_bytes = fused.data.size() / static_cast<std::size_t>(fused.shape.front());
  tensor.shape.front() = rows;
  tensor.data =
      fused.data.subspan(static_cast<std::size_t>(first) * row_bytes, static_cast<std::size_t>(rows) * row_bytes);
  return tensor;
}

}  // namespace

Result<Checkpoint> GgufReader::open(const std::filesystem::path& file, bool with_tensors) {
  GgufReader reader(file);
  MILLRACE_CHECK_OK(reader.read());
  MILLRACE_CHECK_OK(reader.translate(with_tensors));
  return std::move(reader.checkpoint_);
}

Result<GgufFile> GgufReader::map(const std::filesystem::path& file) {
  MILLRACE_TRY(MappedFile mapped, MappedFile::open(file));
  checkpoint_.files_.push_back(std::make_unique<MappedFile>(std::move(mapped)));
  return parse_gguf(checkpoint_.files_.back()->bytes(), file.string());
}

Status GgufReader::read() {
  MILLRACE_TRY(GgufFile first, map(path_));
  files_.push_back(std::move(first));
  MILLRACE_CHECK_OK(read_splits());
  for (const GgufFile& file : files_) {
    for (const GgufTensor& tensor : file.tensors) {
      if (!tensors_.emplace(tensor.name, &tensor).second) {
        return fail("{}: tensor {} is there twice, in different files", what_, shown(tensor.name));
      }
    }
    for (const auto& [name, type] : file.unreadable) checkpoint_.unreadable_.emplace(name, type);
  }
  return Ok{};
}

Status GgufReader::read_splits() {
  GgufKeys keys(files_.front().metadata, "split.", what_);
  const std::int64_t count = keys.integer("count").value_or(0);
  const std::int64_t number = keys.integer("no").value_or(0);
  const auto promised = keys.integer("tensors.count");
  MILLRACE_CHECK_OK(keys.status());
  if (count <= 1) return Ok{};
  const std::string name = path_.filename().string();
  const std::string tail = fmt::format("-00001-of-{:05}.gguf", count);
  if (number != 0 || count > kMaxSplits || !name.ends_with(tail)) {
    return fail("{}: part {} of {} of a split model; open the first, whose name ends in {}", what_, number + 1, count,
                tail);
  }
  for (std::int64_t i = 1; i < count; ++i) {
    const std::string part =
        fmt::format("{}-{:05}-of-{:05}.gguf", name.substr(0, name.size() - tail.size()), i + 1, count);
    MILLRACE_TRY(GgufFile file, map(path_.parent_path() / part));
    GgufKeys part_keys(file.metadata, "split.", part);
    if (part_keys.integer("no") != i || part_keys.integer("count") != count) {
      return fail("{}: {} does not say that it is part {} of {}", what_, part, i + 1, count);
    }
    files_.push_back(std::move(file));
  }
  std::size_t total = 0;
  for (const GgufFile& file : files_) total += file.tensors.size() + file.unreadable.size();
  if (promised && static_cast<std::size_t>(*promised) != total) {
    return fail("{}: the parts have {} tensors, expected {}", what_, total, *promised);
  }
  return Ok{};
}

Status GgufReader::translate(bool with_tensors) {
  const GgufMetadata& metadata = files_.front().metadata;
  GgufKeys general(metadata, "general.", what_);
  const std::string type = general.text("type").value_or("model");
  const std::string name = general.text("architecture").value_or("");
  MILLRACE_CHECK_OK(general.status());
  if (type != "model") return fail("{}: holds a GGUF {}, expected a model", what_, shown(type));
  const GgufArchitecture* architecture = find_gguf_architecture(name);
  checkpoint_.path_ = what_;
  MILLRACE_TRY(checkpoint_.text_, gguf_text(metadata, what_));
  if (architecture != nullptr) {
    checkpoint_.norms_include_one_ = architecture->norms_include_one;
    MILLRACE_TRY(checkpoint_.config_, gguf_config(*architecture, metadata, tensors_, what_));
  } else if (with_tensors || name.empty()) {
    return fail("{}: the GGUF architecture {} is not supported; supported are {}", what_, shown(name),
                supported_gguf_architectures());
  } else {  // its texts are good all the same
    checkpoint_.config_ = {{"architectures", {printable(name)}}, {"model_type", printable(name)}};
  }
  if (!with_tensors) {
    checkpoint_.files_.clear();
    checkpoint_.unreadable_.clear();
    return Ok{};
  }
  for (const auto& [own_name, tensor] : tensors_) MILLRACE_CHECK_OK(add(*architecture, *tensor));
  return Ok{};
}

Status GgufReader::add(const GgufArchitecture& architecture, const GgufTensor& tensor) {
  // Gemma 4's only says which pairs rotate, which the config says already.
  if (architecture.name == "gemma4" && tensor.name == "rope_freqs.weight") return Ok{};
  StoredTensor stored;
  stored.name = gguf_tensor_name(architecture, tensor.name);
  stored.format = tensor.format;
  stored.shape = tensor.shape;
  stored.data = tensor.data;
  const nlohmann::json& config = checkpoint_.config_;
  const auto heads = config.at("num_attention_heads").get<std::int64_t>();
  const auto kv_heads = config.at("num_key_value_heads").get<std::int64_t>();
  if (architecture.permuted) {
    const bool query = stored.name.find(".self_attn.q_proj.") != std::string::npos;
    const bool key = stored.name.find(".self_attn.k_proj.") != std::string::npos;
    if (query) stored.unpermute_heads = heads;
    if (key) stored.unpermute_heads = kv_heads;
    if ((query || key) && stored.shape.front() % (2 * stored.unpermute_heads) != 0) {
      return fail("{}: tensor {} has {} rows, expected a multiple of 2 x {} heads", what_, shown(tensor.name),
                  stored.shape.front(), stored.unpermute_heads);
    }
  }
  // Phi-3 has the fused projection in its own form, the others in three pieces.
  if (architecture.name == "phi3" || stored.name.find(".self_attn.qkv_proj.") == std::string::npos) {
    return insert(std::move(stored));
  }
  const auto head_dim = config.at("head_dim").get<std::int64_t>();
  if (stored.shape.front() != (heads + 2 * kv_heads) * head_dim) {
    return fail("{}: tensor {} has {} rows, expected ({} + 2 x {}) heads x {}", what_, shown(tensor.name),
                stored.shape.front(), heads, kv_heads, head_dim);
  }
  const std::int64_t query_rows = heads * head_dim;
  const std::int64_t key_rows = kv_heads * head_dim;
  MILLRACE_CHECK_OK(insert(rows_of(stored, "q_proj", 0, query_rows)));
  MILLRACE_CHECK_OK(insert(rows_of(stored, "k_proj", query_rows, key_rows)));
  return insert(rows_of(stored, "v_proj", query_rows + key_rows, key_rows));
}

Status GgufReader::insert(StoredTensor tensor) {
  std::string name = tensor.name;
  const auto [place, added] = checkpoint_.tensors_.emplace(std::move(name), std::move(tensor));
  if (!added) return fail("{}: two tensors stand for {}", what_, shown(place->first));
  return Ok{};
}

}  // namespace millrace
