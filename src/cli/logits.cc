// `millrace logits`: the logits of each position of given ids, for checking against other implementations.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "runtime/sequence.h"

namespace millrace::cli {

namespace {

struct LogitsFlags {
  ModelFlags model;
  std::string ids;
};

/// Runs `ids` in chunks of the model's batch limit and hands each position's logits to `take`.
Status each_logit_row(ModelRunner& runner, const std::vector<std::int32_t>& ids,
                      const std::function<void(std::span<const float>)>& take) {
  const auto vocab = static_cast<std::size_t>(runner.config().vocab);
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= vocab)
      return fail("token id {} is outside the vocabulary of {}", id, vocab);
  }
  const auto total = static_cast<std::int64_t>(ids.size());
  if (total > runner.max_sequence_tokens()) {
    return fail("{} ids, but a sequence may have {} tokens here (KV memory holds {}, the model's context is {})", total,
                runner.max_sequence_tokens(), runner.cache().token_capacity(), runner.config().max_position);
  }
  Sequence sequence{1, ids, total, runner.cache().make_tables()};
  std::vector<std::int64_t> windows;
  for (const CacheGroup& group : runner.cache().layout().groups) windows.push_back(group.window);
  const std::int64_t step = std::min(runner.limits().max_rows, runner.limits().max_logit_rows);
  for (std::int64_t start = 0; start < total; start += step) {
    const auto rows = static_cast<std::int32_t>(std::min(step, total - start));
    const ForwardBatch batch = make_forward_batch({{{1, start, rows, true}}}, windows, true,
                                                  [&](SequenceId) -> Sequence& { return sequence; });
    const std::span<const float> logits = runner.run(batch);
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) take(logits.subspan(r * vocab, vocab));
  }
  return Ok{};
}

Status print_json(ModelRunner& runner, const std::vector<std::int32_t>& ids) {
  std::fputs("{\"logits\":[", stdout);
  bool first = true;
  const Status status = each_logit_row(runner, ids, [&](std::span<const float> row) {
    std::fputs(first ? "[" : ",[", stdout);
    first = false;
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
  std::fputs("]}\n", stdout);
  return status;
}

Status print_table(ModelRunner& runner, const std::vector<std::int32_t>& ids) {
  std::size_t position = 0;
  return each_logit_row(runner, ids, [&](std::span<const float> row) {
    std::vector<std::size_t> order(row.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const std::size_t top = std::min<std::size_t>(5, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                      [&](std::size_t a, std::size_t b) { return row[a] > row[b]; });
    std::printf("%4zu  id %-7d", position, ids[position]);
    for (std::size_t i = 0; i < top; ++i) std::printf("  %zu: %.4f", order[i], static_cast<double>(row[order[i]]));
    std::printf("\n");
    ++position;
  });
}

Status run(const LogitsFlags& flags) {
  MILLRACE_TRY(const std::vector<std::int32_t> ids, parse_ids(flags.ids));
  if (ids.empty()) return fail("--ids names no token");
  MILLRACE_TRY(LoadedModel model, load(flags.model, flags.model.max_batch_tokens));
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
