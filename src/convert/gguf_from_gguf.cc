// GGUF to GGUF: nothing is renamed or reordered.
#include <filesystem>
#include <utility>

#include "convert/gguf_plan.h"
#include "core/mapped_file.h"
#include "model/checkpoint/gguf_file.h"
#include "model/checkpoint/json.h"
#include "quant/codec.h"

namespace millrace {

namespace {

/// Parts of a model, each with its mapping, which the parsed file points into.
struct MappedParts {
  std::vector<MappedFile> maps;
  std::vector<GgufFile> files;
};

/// What tells how a model is split does not hold for the one file that is written; nor does another alignment.
bool is_dropped(std::string_view key) {
  return key.starts_with("split.") || key == "general.alignment";
}

GgufStep step_of(const GgufTensor& tensor, const MappedFile& map, QuantFormat format, ThreadPool& pool,
                 std::vector<std::string>& notes) {
  GgufStep step;
  step.output = {.name = std::string(tensor.name), .shape = tensor.shape};
  step.output.format = format_for(format, step.output.name, tensor.shape, notes);
  step.source_bytes = tensor.data.size();
  step.source_format = tensor.format;
  step.stored = tensor.data;
  step.early = step.output.name.starts_with("rope_");
  const auto cols = static_cast<std::size_t>(step.cols());
  step.read = [data = tensor.data, from = tensor.format, cols, &pool](std::int64_t first, std::int64_t count,
                                                                      float* target) {
    const std::size_t row_bytes = format_bytes(from, cols);
    pool.run(count, [&](std::int64_t row, int) {
      dequantize(from, data.data() + static_cast<std::size_t>(first + row) * row_bytes,
                 target + static_cast<std::size_t>(row) * cols, cols);
    });
  };
  step.release = [data = tensor.data, &map] { map.release(data); };
  return step;
}

}  // namespace

Result<GgufPlan> plan_from_gguf(const Checkpoint& source, QuantFormat format, ThreadPool& pool) {
  const auto parts = std::make_shared<MappedParts>();
  for (const std::string& path : source.files()) {
    MILLRACE_TRY(MappedFile map, MappedFile::open(path));
    MILLRACE_TRY(GgufFile file, parse_gguf(map.bytes(), path));
    parts->maps.push_back(std::move(map));
    parts->files.push_back(std::move(file));
  }
  GgufPlan plan;
  GgufMetadata kept = parts->files.front().metadata;
  std::erase_if(kept, [](const auto& entry) { return is_dropped(entry.first); });
  plan.metadata = copy_metadata(kept);
  set_file_type(plan.metadata, format);
  for (std::size_t i = 0; i < parts->files.size(); ++i) {
    const GgufFile& file = parts->files[i];
    if (!file.unreadable.empty()) {
      return fail("{}: tensor {} has the type {}, which is not written", parts->maps[i].path(),
                  shown(file.unreadable.begin()->first), file.unreadable.begin()->second);
    }
    for (const GgufTensor& tensor : file.tensors) {
      plan.steps.push_back(step_of(tensor, parts->maps[i], format, pool, plan.notes));
    }
  }
  plan.owner = parts;
  return plan;
}

}  // namespace millrace
