// Any bytes as a config.json: a model's configuration or one line.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/checkpoint/huggingface.h"
#include "model/checkpoint/json.h"
#include "model/families/family.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace millrace;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto json = parse_json(text, "input");
  if (!json.ok() || !json->is_object()) return 0;
  if (!complete_architecture(*json, "input").ok()) return 0;
  const auto config = parse_model_config(*json, nlohmann::json::object());
  if (!config.ok() && config.error().message.find('\n') != std::string::npos) std::abort();
  return 0;
}
