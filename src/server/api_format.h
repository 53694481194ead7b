// What an answer has to look like: response_format, guided_*, structured_outputs.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "server/api_error.h"
#include "server/api_json.h"
#include "server/api_model.h"
#include "text/grammar.h"

namespace millrace {

struct FormatSpec {
  GrammarSpec grammar;
  std::string param;  // the field that asks for it
};

/// Empty: anything. Schemas are enforced whether `strict` or not. Wrong fields, and more than one that constrains, are
/// kept in fields.error.
std::optional<FormatSpec> read_format(Fields& fields);

/// Errors (400): the grammar is wrong or too complex; the model cannot be constrained.
ApiResult<std::shared_ptr<const Grammar>> compile_format(const FormatSpec& format, const ServedModel& model);

}  // namespace millrace
