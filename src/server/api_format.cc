#include "server/api_format.h"

#include <array>
#include <utility>
#include <vector>

namespace millrace {

namespace {

using Kind = GrammarSpec::Kind;

class FormatReader {
 public:
  explicit FormatReader(Fields& fields) : fields_(&fields) {}

  void response_format();
  /// The constraints of one object: its fields are called `prefix` + json, regex, choice, grammar.
  void constraints(Fields& fields, const std::string& prefix);

  std::optional<FormatSpec> found;

 private:
  void add(Kind kind, std::string text, std::string param, std::vector<std::string> choices = {});
  void add_choices(const Json& list, const std::string& param);

  Fields* fields_;
};

void FormatReader::add(Kind kind, std::string text, std::string param, std::vector<std::string> choices) {
  if (found) {
    fields_->refuse(invalid_value(param, "the answer is constrained by '" + found->param + "' already"));
    return;
  }
  found = FormatSpec{.grammar = {.kind = kind, .text = std::move(text), .choices = std::move(choices)},
                     .param = std::move(param)};
}

void FormatReader::response_format() {
  const Json* format = fields_->object("response_format");
  if (format == nullptr) return;
  constexpr std::array<std::string_view, 3> kTypes = {"text", "json_object", "json_schema"};
  Fields fields(*format, "response_format");
  if (!fields.has("type")) fields.refuse(missing(fields.path("type")));
  const std::string type = fields.choice("type", "text", kTypes);
  if (type == "json_object") add(Kind::json_object, {}, "response_format");
  if (type == "json_schema") {
    const Json* holder = fields.object("json_schema");
    const std::string path = fields.path("json_schema");
    if (holder == nullptr) {
      fields.refuse(missing(path));
    } else {
      Fields inner(*holder, path);
      (void)inner.text("name", "");
      (void)inner.boolean("strict", false);
      const Json* schema = inner.object("schema");
      if (schema == nullptr) {
        inner.refuse(missing(inner.path("schema")));
      } else {
        add(Kind::json_schema, schema->dump(), inner.path("schema"));
      }
      if (inner.error) fields.refuse(*inner.error);
    }
  }
  if (fields.error) fields_->refuse(*fields.error);
}

void FormatReader::add_choices(const Json& list, const std::string& param) {
  if (list.empty()) {
    fields_->refuse(invalid_value(param, "an empty list"));
    return;
  }
  std::vector<std::string> choices;
  for (const Json& choice : list) {
    if (!choice.is_string()) {
      fields_->refuse(invalid_type(param, "an array of strings", choice));
      return;
    }
    choices.push_back(choice.get<std::string>());
  }
  add(Kind::choice, {}, param, std::move(choices));
}

void FormatReader::constraints(Fields& fields, const std::string& prefix) {
  const std::string json = prefix + "json";
  if (const Json* schema = fields.find(json)) {
    // A schema, or the text of one.
    if (schema->is_object()) {
      add(Kind::json_schema, schema->dump(), fields.path(json));
    } else if (schema->is_string()) {
      add(Kind::json_schema, schema->get<std::string>(), fields.path(json));
    } else {
      fields_->refuse(invalid_type(fields.path(json), "an object or a string", *schema));
    }
  }
  for (const auto& [name, kind] : {std::pair("regex", Kind::regex), std::pair("grammar", Kind::lark)}) {
    const std::string key = prefix + name;
    if (fields.has(key)) add(kind, fields.text(key, ""), fields.path(key));
  }
  const std::string choice = prefix + "choice";
  if (const Json* list = fields.array(choice)) add_choices(*list, fields.path(choice));
  const std::string object = prefix + "json_object";
  if (fields.boolean(object, false)) add(Kind::json_object, {}, fields.path(object));
}

}  // namespace

std::optional<FormatSpec> read_format(Fields& fields) {
  FormatReader reader(fields);
  reader.response_format();
  reader.constraints(fields, "guided_");
  if (const Json* outputs = fields.object("structured_outputs")) {
    Fields inner(*outputs, "structured_outputs");
    reader.constraints(inner, "");
    if (inner.error) fields.refuse(*inner.error);
  }
  return std::move(reader.found);
}

ApiResult<std::shared_ptr<const Grammar>> compile_format(const FormatSpec& format, const ServedModel& model) {
  if (model.grammar_vocabulary == nullptr) {
    return invalid_value(format.param, "answers of this model cannot be constrained, as it has no tokenizer for that");
  }
  auto grammar = Grammar::compile(*model.grammar_vocabulary, format.grammar);
  if (!grammar.ok()) return invalid_value(format.param, grammar.error().message);
  return std::shared_ptr<const Grammar>(std::make_shared<Grammar>(std::move(grammar).value()));
}

}  // namespace millrace
