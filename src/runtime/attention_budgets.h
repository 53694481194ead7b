// What a profile makes of a recipe's "attention" for the model that it is loaded with.
#pragma once

#include "runtime/load_model.h"

namespace millrace {

/// The recipe's; where it names a profile, with a budget for each layer: those that select have the recipe's "tokens"
/// on average, in proportion to the pages that their heads need. `plan` has its checkpoint and config. Errors: the
/// profile was not read, is of another model, has no "attention", or nothing of a layer that selects.
Result<AttentionPolicy> attention_with_budgets(const LoadOptions& options, const ModelPlan& plan);

}  // namespace millrace
