#include "recipe/attention_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

namespace millrace {

namespace {

using Json = nlohmann::ordered_json;

template <typename Choice>
using Names = std::span<const std::pair<std::string_view, Choice>>;

constexpr std::pair<std::string_view, BlockChoice> kBlockChoices[] = {
    {"xattention", BlockChoice::xattention}, {"recent", BlockChoice::recent}, {"random", BlockChoice::random}};
constexpr std::pair<std::string_view, PageChoice> kPageChoices[] = {
    {"quest", PageChoice::quest}, {"recent", PageChoice::recent}, {"random", PageChoice::random}};
constexpr std::pair<std::string_view, KeepChoice> kKeepChoices[] = {{"heavy_hitters", KeepChoice::heavy_hitters},
                                                                    {"relevance", KeepChoice::relevance},
                                                                    {"recent", KeepChoice::recent},
                                                                    {"random", KeepChoice::random}};

template <typename Choice>
Status parse_choice(const Json& value, Names<Choice> names, const std::string& where, Choice& choice,
                    std::string_view others) {
  std::string known;
  for (const auto& [name, meaning] : names) {
    if (value == name) {
      choice = meaning;
      return Ok{};
    }
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
  }
  return fail("{}: {} is not supported; this version has {}{}", where, value.dump(), known, others);
}

/// A number of positions, of layers, at the key.
Status parse_count(const Json& value, std::int64_t least, const std::string& where, std::int64_t& count) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  if (!value.is_number_integer() || value.get<std::int64_t>() < least || value.get<std::int64_t>() > kMost) {
    return fail("{}: {} is not a whole number from {} on", where, value.dump(), least);
  }
  count = value.get<std::int64_t>();
  return Ok{};
}

/// The keys that all of them have; false: it is none of these.
template <typename Selection, typename Choice>
Result<bool> parse_common(const std::string& key, const Json& value, Names<Choice> names, const std::string& where,
                          Selection& selection) {
  if (key == "select") {
    // What hyper has is another object (parse_hyper()).
    constexpr std::string_view kOthers = std::is_same_v<Choice, BlockChoice> ? ", hyper" : "";
    MILLRACE_CHECK_OK(parse_choice(value, names, where, selection.choice, kOthers));
  } else if (key == "tokens") {
    MILLRACE_CHECK_OK(parse_count(value, 1, where, selection.tokens));
  } else if (key == "sink_tokens") {
    MILLRACE_CHECK_OK(parse_count(value, 0, where, selection.sink_tokens));
  } else if (key == "recent_tokens") {
    MILLRACE_CHECK_OK(parse_count(value, 1, where, selection.recent_tokens));
  } else {
    return false;
  }
  return true;
}

/// The same, of those that choose what to read, each layer for itself.
template <typename Selection, typename Choice>
Result<bool> parse_reading(const std::string& key, const Json& value, Names<Choice> names, const std::string& where,
                           Selection& selection) {
  if (key == "mass") {
    if (!value.is_number() || !(value.get<double>() > 0.0) || !(value.get<double>() <= 1.0)) {
      return fail("{}: {} is not a part of attention, above 0 and up to 1", where, value.dump());
    }
    selection.mass = value.get<double>();
    return true;
  }
  if (key != "dense_layers") return parse_common(key, value, names, where, selection);
  MILLRACE_CHECK_OK(parse_count(value, 0, where, selection.dense_layers));
  return true;
}

std::int64_t whole(std::int64_t tokens, std::int64_t unit) {
  return (tokens + unit - 1) / unit * unit;
}

Status check_room(std::string_view key, std::int64_t tokens, std::int64_t least, std::int64_t sinks,
                  std::int64_t recent, const std::string& where) {
  if (tokens >= least) return Ok{};
  return fail(
      "{}: \"{}\": {} leaves nothing to choose beside {} of \"sink_tokens\" and {} of \"recent_tokens\"; give {} or "
      "more",
      where, key, tokens, sinks, recent, least);
}

Result<BlockSelection> parse_prefill(const Json& prefill, const std::string& where) {
  if (!prefill.is_object()) return fail("{} is not an object", where);
  BlockSelection selection;
  for (const auto& [key, value] : prefill.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    MILLRACE_TRY(const bool known, parse_reading(key, value, Names<BlockChoice>(kBlockChoices), place, selection));
    if (known) continue;
    return fail(
        "{} is not supported by this version (it has \"select\", \"mass\", \"tokens\", \"sink_tokens\", "
        "\"recent_tokens\" and \"dense_layers\")",
        place);
  }
  if (!prefill.contains("select") || (!prefill.contains("mass") && !prefill.contains("tokens"))) {
    return fail("{}: \"select\" must be there, and \"mass\" or \"tokens\"", where);
  }
  if (selection.choice != BlockChoice::xattention && !prefill.contains("tokens")) {
    return fail("{}: \"mass\" is for xattention: others do not know what attention a block has; give \"tokens\"",
                where);
  }
  if (selection.choice != BlockChoice::xattention && prefill.contains("mass")) {
    return fail("{}: \"mass\" is for xattention: others do not know what attention a block has", where);
  }
  const std::int64_t least =
      whole(selection.sink_tokens, kKeyBlock) + kKeyBlock + whole(selection.recent_tokens, kKeyBlock);
  MILLRACE_CHECK_OK(
      check_room("tokens", selection.tokens, least, selection.sink_tokens, selection.recent_tokens, where));
  return selection;
}

Status parse_up_to(const Json& value, std::int64_t least, std::int64_t most, const std::string& where,
                   std::int64_t& count) {
  MILLRACE_CHECK_OK(parse_count(value, least, where, count));
  return count <= most ? Status(Ok{}) : fail("{}: {} is more than {}", where, count, most);
}

/// A number of positions in whole units.
Status parse_units(const Json& value, std::int64_t least, const std::string& where, std::int64_t& count) {
  MILLRACE_CHECK_OK(parse_count(value, least, where, count));
  return count % kHyperUnit == 0 ? Status(Ok{}) : fail("{}: {} is not a multiple of {}", where, count, kHyperUnit);
}

bool is_hyper(const Json& prefill) {
  return prefill.is_object() && prefill.contains("select") && prefill["select"] == "hyper";
}

Result<HyperAttention> parse_hyper(const Json& prefill, const std::string& where) {
  constexpr std::int64_t kMostGathered = 16384;
  HyperAttention hyper;
  for (const auto& [key, value] : prefill.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    if (key == "select") continue;
    if (key == "block") {
      MILLRACE_CHECK_OK(parse_up_to(value, 1, kMostGathered, place, hyper.block));
    } else if (key == "samples") {
      MILLRACE_CHECK_OK(parse_up_to(value, 0, kMostGathered, place, hyper.samples));
    } else if (key == "chunk") {
      MILLRACE_CHECK_OK(parse_units(value, kHyperUnit, place, hyper.chunk));
    } else if (key == "min_tokens") {
      MILLRACE_CHECK_OK(parse_count(value, 0, place, hyper.min_tokens));
    } else if (key == "sink_tokens") {
      MILLRACE_CHECK_OK(parse_units(value, 0, place, hyper.sink_tokens));
    } else if (key == "recent_tokens") {
      MILLRACE_CHECK_OK(parse_units(value, 0, place, hyper.recent_tokens));
    } else if (key == "dense_layers") {
      MILLRACE_CHECK_OK(parse_count(value, 0, place, hyper.dense_layers));
    } else if (key == "seed") {
      if (!value.is_number_unsigned()) return fail("{}: {} is not a whole number from 0 on", place, value.dump());
      hyper.seed = value.get<std::uint64_t>();
    } else {
      return fail(
          "{} is not supported by this version (hyper has \"block\", \"samples\", \"chunk\", \"min_tokens\", "
          "\"sink_tokens\", \"recent_tokens\", \"dense_layers\" and \"seed\")",
          place);
    }
  }
  return hyper;
}

/// The selection, and whose profile shares its positions out to the layers.
struct Decode {
  PageSelection selection;
  std::string profile_file;
};

Result<Decode> parse_decode(const Json& decode, const std::string& where) {
  if (!decode.is_object()) return fail("{} is not an object", where);
  PageSelection selection;
  std::string profile_file;
  for (const auto& [key, value] : decode.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    MILLRACE_TRY(const bool known, parse_reading(key, value, Names<PageChoice>(kPageChoices), place, selection));
    if (known) continue;
    if (key == "profile") {
      if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
        return fail("{} is not the name of a file that `millrace calibrate` has written", place);
      }
      profile_file = value.get<std::string>();
      continue;
    }
    return fail(
        "{} is not supported by this version (it has \"select\", \"mass\", \"tokens\", \"sink_tokens\", "
        "\"recent_tokens\", \"dense_layers\" and \"profile\")",
        place);
  }
  if (!decode.contains("select") || (!decode.contains("mass") && !decode.contains("tokens"))) {
    return fail("{}: \"select\" must be there, and \"mass\" or \"tokens\"", where);
  }
  if (selection.choice != PageChoice::quest && (decode.contains("mass") || !decode.contains("tokens"))) {
    return fail("{}: \"mass\" is for quest: others do not know what attention a page has; give \"tokens\"", where);
  }
  if (!profile_file.empty() && decode.contains("mass")) {
    return fail("{}: \"profile\" shares \"tokens\" out to the layers, \"mass\" leaves it to each row: give one of them",
                where);
  }
  MILLRACE_CHECK_OK(check_room("tokens", selection.tokens, least_tokens(selection), selection.sink_tokens,
                               selection.recent_tokens, where));
  return Decode{selection, std::move(profile_file)};
}

Result<KvRetention> parse_keep(const Json& keep, const std::string& where) {
  if (!keep.is_object()) return fail("{} is not an object", where);
  KvRetention retention;
  for (const auto& [key, value] : keep.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    MILLRACE_TRY(const bool known, parse_common(key, value, Names<KeepChoice>(kKeepChoices), place, retention));
    if (known) continue;
    if (key == "queries") {
      MILLRACE_CHECK_OK(parse_count(value, 1, place, retention.queries));
    } else if (key == "pin_system") {
      if (!value.is_boolean()) return fail("{}: {} is not true or false", place, value.dump());
      retention.pin_system = value.get<bool>();
    } else if (key == "levels") {
      MILLRACE_CHECK_OK(parse_count(value, 0, place, retention.levels));
    } else if (key == "last_tokens") {
      MILLRACE_CHECK_OK(parse_count(value, 1, place, retention.last_tokens));
    } else {
      return fail(
          "{} is not supported by this version (it has \"select\", \"tokens\", \"last_tokens\", \"sink_tokens\", "
          "\"recent_tokens\", \"queries\", \"pin_system\" and \"levels\")",
          place);
    }
  }
  if (!keep.contains("select") || retention.tokens == 0) {
    return fail("{}: \"select\" and \"tokens\" must be there", where);
  }
  if (!retention.measures() && keep.contains("queries")) {
    return fail("{}: \"queries\" is for heavy_hitters and relevance: others do not look at attention", where);
  }
  // Whole pages are kept: of 16 positions, and for the sake of the earliest recent one up to a page more. One is
  // chosen.
  const std::int64_t least = whole(retention.sink_tokens, 16) + 16 + whole(retention.recent_tokens, 16) + 16;
  MILLRACE_CHECK_OK(
      check_room("tokens", retention.tokens, least, retention.sink_tokens, retention.recent_tokens, where));
  if (!keep.contains("last_tokens")) return retention;
  MILLRACE_CHECK_OK(
      check_room("last_tokens", retention.last_tokens, least, retention.sink_tokens, retention.recent_tokens, where));
  if (retention.last_tokens > retention.tokens) {
    return fail(
        "{}: \"last_tokens\": {} is more than \"tokens\": {}; what levels keep falls from the first to the last", where,
        retention.last_tokens, retention.tokens);
  }
  if (retention.levels == 1) {
    return fail("{}: \"last_tokens\" is for several levels, and \"levels\" is 1", where);
  }
  return retention;
}

Result<ChunkSkipping> parse_skipping(const Json& skipping, const std::string& where) {
  if (!skipping.is_object()) return fail("{} is not an object", where);
  ChunkSkipping skip;
  for (const auto& [key, value] : skipping.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    if (key == "threshold") {
      if (!value.is_number() || !(value.get<double>() >= 0.0) || !(value.get<double>() < 1.0)) {
        return fail("{}: {} is not a part of the largest weight, from 0 to below 1", place, value.dump());
      }
      skip.threshold = value.get<double>();
    } else if (key == "dense_layers") {
      MILLRACE_CHECK_OK(parse_count(value, 0, place, skip.dense_layers));
    } else {
      return fail("{} is not supported by this version (it has \"threshold\" and \"dense_layers\")", place);
    }
  }
  if (!skipping.contains("threshold")) return fail("{}: \"threshold\" must be there", where);
  return skip;
}

}  // namespace

Result<AttentionPolicy> parse_attention(const Json& attention, const std::string& where) {
  if (!attention.is_object()) return fail("{} is not an object", where);
  AttentionPolicy policy;
  for (const auto& [key, value] : attention.items()) {
    const std::string place = fmt::format("{}.\"{}\"", where, key);
    if (key == "prefill" && is_hyper(value)) {
      MILLRACE_TRY(policy.hyper, parse_hyper(value, place));
    } else if (key == "prefill") {
      MILLRACE_TRY(policy.prefill, parse_prefill(value, place));
    } else if (key == "decode") {
      MILLRACE_TRY(Decode decode, parse_decode(value, place));
      policy.decode = decode.selection;
      policy.budgets.profile_file = std::move(decode.profile_file);
    } else if (key == "keep") {
      MILLRACE_TRY(policy.keep, parse_keep(value, place));
    } else if (key == "skip_softmax") {
      MILLRACE_TRY(policy.skip, parse_skipping(value, place));
    } else {
      return fail("{} is not supported by this version (it has \"prefill\", \"decode\", \"keep\" and \"skip_softmax\")",
                  place);
    }
  }
  if (policy.hyper && policy.skip) {
    return fail("{}: \"skip_softmax\" looks at one chunk after the other, hyper reads in another order", where);
  }
  if (policy.hyper && policy.keep && policy.keep->measures()) {
    return fail(
        "{}: \"keep\" by heavy_hitters or relevance looks at attention that hyper only estimates; keep the recent, or "
        "let prompts select by xattention",
        where);
  }
  return policy;
}

}  // namespace millrace
