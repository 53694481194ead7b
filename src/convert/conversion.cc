#include "convert/conversion.h"

#include <nlohmann/json.hpp>
#include <system_error>

namespace millrace {

namespace {

/// Whether a journal's line has what journal_note() writes: it may have been damaged, or edited.
bool is_layer(const nlohmann::json& entry) {
  const auto has = [&](const char* key, bool (nlohmann::json::*of_type)() const noexcept) {
    return entry.contains(key) && (entry[key].*of_type)();
  };
  using Json = nlohmann::json;
  return has("layer", &Json::is_string) && has("format", &Json::is_string) && has("rows", &Json::is_number_integer) &&
         has("cols", &Json::is_number_integer) && has("error", &Json::is_number) && has("largest", &Json::is_number) &&
         (!entry.contains("output_error") || has("output_error", &Json::is_number));
}

}  // namespace

std::string journal_note(const LayerReport& report) {
  nlohmann::json note{{"layer", report.layer}, {"format", report.format}, {"rows", report.rows},
                      {"cols", report.cols},   {"error", report.error},   {"largest", report.largest}};
  if (report.output_error) note["output_error"] = *report.output_error;
  return note.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

Result<std::optional<LayerReport>> layer_of_note(const std::string& note, const std::filesystem::path& journal) {
  const nlohmann::json entry = nlohmann::json::parse(note, nullptr, false);
  if (entry.is_object() && entry.empty()) return std::optional<LayerReport>();
  if (!entry.is_object() || !is_layer(entry)) {
    return fail("the journal {} is damaged: remove it and the part beside it", journal.string());
  }
  LayerReport report{.layer = entry["layer"].get<std::string>(),
                     .format = entry["format"].get<std::string>(),
                     .rows = entry["rows"].get<std::int64_t>(),
                     .cols = entry["cols"].get<std::int64_t>(),
                     .error = entry["error"].get<double>(),
                     .largest = entry["largest"].get<double>(),
                     .output_error = {}};
  if (entry.contains("output_error")) report.output_error = entry["output_error"].get<double>();
  return std::optional<LayerReport>(std::move(report));
}

void Fingerprint::add(std::string_view text) {
  for (const char c : text) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
}

void Fingerprint::add_file(const std::filesystem::path& file) {
  std::error_code error;
  add(fmt::format("{} {} {}\n", file.string(), std::filesystem::file_size(file, error),
                  std::filesystem::last_write_time(file, error).time_since_epoch().count()));
}

}  // namespace millrace
