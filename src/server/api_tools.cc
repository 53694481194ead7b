#include "server/api_tools.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>

namespace millrace {

namespace {

constexpr std::size_t kMaxTools = 512;
constexpr std::size_t kMaxNameBytes = 128;

bool is_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  };
  return !name.empty() && name.size() <= kMaxNameBytes && std::all_of(name.begin(), name.end(), allowed);
}

/// The "function" of a tool or of a tool_choice; null when it is wrong.
const Json* read_function(const Json& holder, const std::string& path, Fields& errors) {
  if (!holder.is_object()) {
    errors.refuse(invalid_type(path, "an object", holder));
    return nullptr;
  }
  Fields fields(holder, path);
  constexpr std::array<std::string_view, 1> kTypes = {"function"};
  if (!fields.has("type")) fields.refuse(missing(fields.path("type")));
  (void)fields.choice("type", "function", kTypes);
  const Json* function = fields.object("function");
  if (function == nullptr) {
    fields.refuse(missing(fields.path("function")));
  } else {
    Fields inner(*function, fields.path("function"));
    if (!inner.has("name")) inner.refuse(missing(inner.path("name")));
    (void)inner.text("name", "");
    if (inner.error) fields.refuse(*inner.error);
  }
  if (!fields.error) return function;
  errors.refuse(*fields.error);
  return nullptr;
}

void check_function(const Json& function, const std::string& path, std::set<std::string>& names, Fields& errors) {
  Fields fields(function, path);
  const std::string name = fields.text("name", "");
  if (!is_name(name)) {
    fields.refuse(invalid_value(fields.path("name"),
                                fmt::format("expected 1 to {} letters, digits, '_', '-' or '.'", kMaxNameBytes)));
  } else if (!names.insert(name).second) {
    fields.refuse(invalid_value(fields.path("name"), fmt::format("there are two tools called '{}'", name)));
  }
  (void)fields.text("description", "");
  (void)fields.object("parameters");
  (void)fields.boolean("strict", false);
  if (fields.error) errors.refuse(*fields.error);
}

/// References of a schema that stands at `place` of a larger one.
void move_references(Json& schema, const std::string& place) {
  if (schema.is_object()) {
    for (auto& [key, value] : schema.items()) {
      if (key == "$ref" && value.is_string() && value.get_ref<const std::string&>().starts_with('#')) {
        value = "#" + place + value.get<std::string>().substr(1);
      } else {
        move_references(value, place);
      }
    }
  } else if (schema.is_array()) {
    for (Json& value : schema) move_references(value, place);
  }
}

Json parameters_of(const Json& function) {
  const auto found = function.find("parameters");
  return found == function.end() || found->is_null() || found->empty() ? Json{{"type", "object"}} : *found;
}

/// The schema of a list of calls.
Json calls_schema(const Json& tools, bool parallel) {
  Json calls = Json::array();
  Json definitions = Json::object();
  for (const Json& tool : tools) {
    const Json& function = tool.at("function");
    const std::string name = fmt::format("tool{}", calls.size());
    Json parameters = parameters_of(function);
    move_references(parameters, "/$defs/" + name);
    definitions[name] = std::move(parameters);
    calls.push_back(
        {{"type", "object"},
         {"properties", {{"name", {{"const", function.at("name")}}}, {"arguments", {{"$ref", "#/$defs/" + name}}}}},
         {"required", Json::array({"name", "arguments"})},
         {"additionalProperties", false}});
  }
  Json schema = {{"type", "array"}, {"minItems", 1}, {"items", {{"anyOf", std::move(calls)}}}};
  if (!parallel) schema["maxItems"] = 1;
  schema["$defs"] = std::move(definitions);
  return schema;
}

const Json* find_tool(const Json& tools, const std::string& name) {
  const auto found =
      std::find_if(tools.begin(), tools.end(), [&](const Json& tool) { return tool["function"]["name"] == name; });
  return found == tools.end() ? nullptr : &*found;
}

/// {"type":"allowed_tools","allowed_tools":{"mode","tools"}}: leaves only those in `list` and returns the mode.
std::string allow_tools(const Json& choice, Json& list, Fields& errors) {
  Fields fields(choice, "tool_choice");
  constexpr std::array<std::string_view, 2> kModes = {"auto", "required"};
  std::string mode = "auto";
  if (const Json* allowed = fields.object("allowed_tools"); allowed == nullptr) {
    fields.refuse(missing(fields.path("allowed_tools")));
  } else {
    Fields inner(*allowed, fields.path("allowed_tools"));
    mode = inner.choice("mode", "auto", kModes);
    const Json* names = inner.array("tools");
    if (names == nullptr || names->empty()) inner.refuse(missing(inner.path("tools")));
    Json kept = Json::array();
    for (std::size_t i = 0; names != nullptr && i < names->size(); ++i) {
      const std::string path = fmt::format("{}[{}]", inner.path("tools"), i);
      const Json* function = read_function((*names)[i], path, inner);
      if (function == nullptr) break;
      const Json* tool = find_tool(list, function->at("name").get<std::string>());
      if (tool == nullptr) {
        inner.refuse(invalid_value(path, "not among 'tools'"));
        break;
      }
      kept.push_back(*tool);
    }
    if (inner.error) fields.refuse(*inner.error);
    if (!fields.error) list = std::move(kept);
  }
  if (fields.error) errors.refuse(*fields.error);
  return mode;
}

void read_list(Fields& fields, Tools& tools) {
  const Json* list = fields.array("tools");
  if (list == nullptr || list->empty()) return;
  if (list->size() > kMaxTools) {
    fields.refuse(invalid_value("tools", fmt::format("{} tools, at most {} are allowed", list->size(), kMaxTools)));
    return;
  }
  std::set<std::string> names;
  for (std::size_t i = 0; i < list->size() && !fields.error; ++i) {
    const std::string path = fmt::format("tools[{}]", i);
    if (const Json* function = read_function((*list)[i], path, fields)) {
      check_function(*function, path + ".function", names, fields);
    }
  }
  if (!fields.error) tools.list = *list;
}

/// The kind of choice: none, auto, required or named.
std::string read_choice(Fields& fields, Tools& tools) {
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return tools.list.is_null() ? "none" : "auto";
  std::string kind;
  if (choice->is_string()) {
    constexpr std::array<std::string_view, 3> kKinds = {"none", "auto", "required"};
    kind = fields.choice("tool_choice", "auto", kKinds);
  } else if (!choice->is_object()) {
    fields.refuse(invalid_type("tool_choice", "a string or an object", *choice));
  } else if (Fields inner(*choice, "tool_choice");
             inner.find("type") != nullptr && *inner.find("type") == "allowed_tools") {
    kind = tools.list.is_null() ? "required" : allow_tools(*choice, tools.list, fields);
  } else if (const Json* function = read_function(*choice, "tool_choice", fields)) {
    kind = "named";
    tools.forced = function->at("name").get<std::string>();
  }
  if (tools.list.is_null() && (kind == "required" || kind == "named")) {
    fields.refuse(invalid_value("tool_choice", "only allowed with 'tools'"));
  }
  if (tools.list.is_null() && kind == "auto") return "none";
  return kind;
}

}  // namespace

Tools read_tools(Fields& fields, const ServedModel& model) {
  Tools tools;
  for (const char* old : {"functions", "function_call"}) {
    if (fields.has(old)) fields.refuse(invalid_value(old, "no longer part of the API; use 'tools' and 'tool_choice'"));
  }
  read_list(fields, tools);
  tools.parallel = fields.boolean("parallel_tool_calls", true);
  const std::string kind = read_choice(fields, tools);
  if (fields.error) return tools;
  if (kind == "none") {
    tools.list = nullptr;
  } else if (kind == "auto") {
    tools.mode = ToolMode::parse;
    if (!model.format.has_tools()) {
      fields.refuse(
          invalid_value("tools",
                        "the chat template of this model says nothing of tools; a call can only be forced, with "
                        "tool_choice 'required' or a named function"));
    }
  } else if (kind == "required") {
    tools.mode = ToolMode::required;
    tools.format = FormatSpec{.grammar = {.kind = GrammarSpec::Kind::json_schema,
                                          .text = calls_schema(tools.list, tools.parallel).dump(),
                                          .choices = {}},
                              .param = "tools"};
  } else {
    tools.mode = ToolMode::named;
    const Json* tool = find_tool(tools.list, tools.forced);
    if (tool == nullptr) {
      fields.refuse(invalid_value("tool_choice.function.name", "not among 'tools'"));
      return tools;
    }
    tools.format = FormatSpec{.grammar = {.kind = GrammarSpec::Kind::json_schema,
                                          .text = parameters_of(tool->at("function")).dump(),
                                          .choices = {}},
                              .param = "tools"};
  }
  return tools;
}

}  // namespace millrace
