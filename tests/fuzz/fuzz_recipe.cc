// Any bytes as a recipe, or as a profile that one names; and what a recipe that is accepted says of pages.
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "kv/block_choice.h"
#include "kv/hyper_choice.h"
#include "kv/page_choice.h"
#include "kv/page_keeper.h"
#include "recipe/activation_profile.h"
#include "recipe/page_budgets.h"
#include "recipe/recipe.h"

namespace {

using namespace millrace;

void require(bool condition) {
  if (!condition) std::abort();
}

void check_attention(const AttentionPolicy& policy) {
  if (policy.skip) require(policy.skip->margin() > 0.0f);
  for (std::int64_t position = 0; position < 3000; position += 37) {
    if (policy.decode) {
      const PageCandidates some = page_candidates(*policy.decode, position, 16);
      require(some.first >= 0 && some.end >= some.first && some.end <= position / 16 + 1 && some.chosen >= 0 &&
              some.chosen <= some.end - some.first);
    }
    if (policy.prefill) {
      const BlockCandidates some = block_candidates(*policy.prefill, position / kQueryBlock * kQueryBlock);
      require(some.first >= 0 && some.end >= some.first && (some.all() || some.end * kKeyBlock <= position));
    }
    if (policy.hyper && position >= hyper_begin(*policy.hyper)) {
      const HyperChunk chunk = hyper_chunk(*policy.hyper, position);
      require(chunk.begin <= chunk.end && chunk.end <= chunk.start && chunk.start <= position);
    }
  }
  if (!policy.keep) return;
  for (std::int64_t level = 0; level < 3; ++level) {
    PageKeeper keeper(policy.keep->of_level(level, 3), 16, 0, 0);
    std::int64_t pages = 0;
    for (std::int64_t end = 16; end <= 3000; end += 16) {
      pages += 1 - static_cast<std::int64_t>(keeper.drop(end).size());
      require(pages <= keeper.most());
    }
  }
}

/// Budgets come to what was wanted, and none is below the least.
void check_budgets(const AttentionProfile& profile) {
  constexpr std::int64_t kLeast = 7, kMeans[] = {7, 8, 64, 1000};
  std::vector<double> needs;
  for (const AttentionProfile::Layer& layer : profile.layers) needs.push_back(layer.pages.front());
  for (const std::int64_t mean : kMeans) {
    const std::vector<std::int64_t> pages = page_budgets(needs, mean, kLeast);
    std::int64_t all = 0;
    for (const std::int64_t of_layer : pages) {
      require(of_layer >= kLeast);
      all += of_layer;
    }
    require(all == mean * std::ssize(needs));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto recipe = parse_recipe(text, "recipe"); recipe.ok()) {
    check_attention(recipe->attention);
    (void)recipe->weights_of("model.layers.0.mlp.down_proj");
    (void)recipe->lossless();
  } else {
    require(!recipe.error().message.empty());
  }
  if (auto profile = parse_activation_profile(text, "profile"); profile.ok()) {
    for (const ActivationProfile::Entry& entry : profile->inputs) {
      require(magnitude_at(entry.magnitudes, 0.0) <= magnitude_at(entry.magnitudes, 0.5));
      require(magnitude_at(entry.magnitudes, 0.5) <= magnitude_at(entry.magnitudes, 1.0));
    }
    require(parse_activation_profile(activation_profile_text(*profile), "again").ok());
    if (profile->attention && profile->attention->layers.size() < 100) check_budgets(*profile->attention);
  } else {
    require(!profile.error().message.empty());
  }
  return 0;
}
