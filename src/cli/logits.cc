// `millrace logits`: the logits of each position of given ids, for checking against other implementations.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "runtime/run_tokens.h"

namespace millrace::cli {

namespace {

// Rows of a step, all of which want logits: with a vocabulary of 262,144 tokens these take 64 MiB.
constexpr int kLogitRows = 64;

struct LogitsFlags {
  ModelFlags model;
  std::string ids;
};

Status print_json(ModelRunner& runner, const std::vector<std::int32_t>& ids) {
  std::fputs("{\"logits\":[", stdout);
  const Status ran = run_tokens(runner, ids, RowsAre::prompt, [&](std::int64_t position, std::span<const float> row) {
    std::fputs(position == 0 ? "[" : ",[", stdout);
    for (std::size_t i = 0; i < row.size(); ++i) {
      // JSON has no infinities; nine digits name a float exactly.
      if (std::isfinite(row[i])) {
        std::printf(i == 0 ? "%.9g" : ",%.9g", static_cast<double>(row[i]));
      } else {
        std::fputs(i == 0 ? "null" : ",null", stdout);
      }
    }
    std::fputs("]", stdout);
  });
  MILLRACE_CHECK_OK(ran);
  std::fputs("]}\n", stdout);
  return Ok{};
}

Status print_table(ModelRunner& runner, const std::vector<std::int32_t>& ids) {
  return run_tokens(runner, ids, RowsAre::prompt, [&](std::int64_t position, std::span<const float> row) {
    std::vector<std::size_t> order(row.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const std::size_t top = std::min<std::size_t>(5, order.size());
    const auto value = [&](std::size_t i) { return std::isnan(row[i]) ? -HUGE_VALF : row[i]; };  // NaN has no order
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                      [&](std::size_t a, std::size_t b) { return value(a) > value(b); });
    std::printf("%4lld  id %-7d", static_cast<long long>(position), ids[static_cast<std::size_t>(position)]);
    for (std::size_t i = 0; i < top; ++i) std::printf("  %zu: %.4f", order[i], static_cast<double>(row[order[i]]));
    std::printf("\n");
  });
}

Status run(const LogitsFlags& flags) {
  MILLRACE_TRY(const std::vector<std::int32_t> ids, parse_ids(flags.ids));
  if (ids.empty()) return fail("--ids names no token");
  MILLRACE_TRY(LoadedModel model, load(flags.model, std::min(kLogitRows, flags.model.max_batch_tokens)));
  MILLRACE_CHECK_OK(check_tokens(*model.runner, ids));
  return flags.model.json ? print_json(*model.runner, ids) : print_table(*model.runner, ids);
}

}  // namespace

void add_logits(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<LogitsFlags>();
  CLI::App* command = app.add_subcommand("logits", "Print the logits of each position");
  add_model_flags(*command, flags->model);
  command->add_option("--ids", flags->ids, "Token ids, separated by commas")->required();
  command->callback([flags, &chosen] { chosen = [flags] { return run(*flags); }; });
}

}  // namespace millrace::cli
