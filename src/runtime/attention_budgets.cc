#include "runtime/attention_budgets.h"

#include <numeric>

#include "recipe/activation_profile.h"
#include "runtime/model_fingerprint.h"

namespace millrace {

Result<AttentionPolicy> attention_with_budgets(const LoadOptions& options, const ModelPlan& plan) {
  AttentionPolicy policy = options.recipe.attention;
  PageBudgets& budgets = policy.budgets;
  if (!policy.decode || budgets.profile_file.empty()) return policy;
  if (budgets.profile == nullptr) return fail("the profile {} was not read", budgets.profile_file);
  const std::string model = model_fingerprint(plan.checkpoint);
  if (budgets.profile->model != model) {
    return fail("the profile {} is of another model ({}) than {} ({}): make one with `millrace calibrate`",
                budgets.profile_file, budgets.profile->model, options.path.string(), model);
  }
  if (!budgets.profile->attention) {
    return fail(
        "the profile {} has no \"attention\", which the recipe's \"decode\" needs: make one with `millrace calibrate` "
        "and windows of text of more than 136 tokens",
        budgets.profile_file);
  }
  std::vector<std::size_t> selecting;
  std::vector<double> needs;
  for (std::size_t l = 0; l < plan.config.layers.size(); ++l) {
    if (!layer_policy(plan.config, policy, l).decode) continue;
    const AttentionProfile::Layer* layer = budgets.profile->attention->of_layer(static_cast<std::int64_t>(l));
    if (layer == nullptr) {
      return fail("the profile {} has nothing of the attention of layer {}", budgets.profile_file, l);
    }
    const std::int32_t heads = plan.config.layers[l].attention.heads;
    if (std::ssize(layer->pages) != heads) {
      return fail("the profile {}: layer {} has {} heads, the model {}", budgets.profile_file, l, layer->pages.size(),
                  heads);
    }
    selecting.push_back(l);
    needs.push_back(std::accumulate(layer->pages.begin(), layer->pages.end(), 0.0) / static_cast<double>(heads));
  }
  const std::vector<std::int64_t> pages =
      page_budgets(needs, policy.decode->tokens / kProfilePage, least_tokens(*policy.decode) / kProfilePage);
  // Layers that select nothing have no budget; what stands there is read by nobody.
  budgets.tokens.assign(plan.config.layers.size(), policy.decode->tokens);
  for (std::size_t i = 0; i < selecting.size(); ++i) budgets.tokens[selecting[i]] = pages[i] * kProfilePage;
  return policy;
}

}  // namespace millrace
