#include "eval/task_spec.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace millrace {

namespace {

struct Form {
  std::string_view name, shown;
  bool lengths = false;              // are taken
  std::size_t fewest = 0, most = 0;  // paths
};

constexpr std::array kForms{Form{"blimp", "blimp:FOLDER_OR_FILE,...", false, 1, 1000},
                            Form{"lambada", "lambada:FILE", false, 1, 1},
                            Form{"piqa", "piqa:FILE[,LABELS]", false, 1, 2},
                            Form{"key_value", "key_value[:LENGTH,...]", true, 0, 0},
                            Form{"needle", "needle[:LENGTH,...][,TEXT]", true, 0, 1},
                            Form{"instructions", "instructions[:LENGTH,...]", true, 0, 0},
                            Form{"generate", "generate:FILE", false, 1, 1}};

bool is_number(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

Result<TaskSpec> parse_task_spec(std::string_view text) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  TaskSpec spec{.name = std::string(text.substr(0, colon))};
  const auto* form = std::ranges::find(kForms, spec.name, &Form::name);
  if (form == kForms.end()) {
    std::string known;
    for (const Form& each : kForms) known += (known.empty() ? "" : ", ") + std::string(each.shown);
    return fail("no task \"{}\"; there are {}", spec.name, known);
  }
  std::string_view rest = colon < text.size() ? text.substr(colon + 1) : std::string_view();
  if (colon < text.size() && rest.empty()) return fail("nothing behind the colon; write {}", form->shown);
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view argument = rest.substr(0, comma);
    rest = comma < rest.size() ? rest.substr(comma + 1) : std::string_view();
    if (argument.empty()) return fail("an argument of {} is empty; write {}", spec.name, form->shown);
    if (form->lengths && is_number(argument)) {
      std::int64_t length = 0;
      const auto code = std::from_chars(argument.data(), argument.data() + argument.size(), length).ec;
      if (code != std::errc() || length < 1) return fail("\"{}\" is no number of tokens", argument);
      spec.lengths.push_back(length);
    } else {
      spec.paths.emplace_back(argument);
    }
  }
  if (spec.paths.size() < form->fewest) return fail("{} needs a file; write {}", spec.name, form->shown);
  if (spec.paths.size() > form->most) {
    return fail("\"{}\" is no argument of {}; write {}", spec.paths.back(), spec.name, form->shown);
  }
  return spec;
}

}  // namespace millrace
