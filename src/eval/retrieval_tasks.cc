#include "eval/retrieval_tasks.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/philox.h"
#include "eval/greedy_answers.h"
#include "eval/retrieval_words.h"

namespace millrace {

namespace {

constexpr std::size_t kMostPairs = 2048;      // fewer than there are things in colours
constexpr std::int64_t kLongestUsual = 4096;  // tokens; and that of so many pairs is about twice as much

std::vector<std::string> words_of(std::string_view list) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at < list.size();) {
    const std::size_t end = std::min(list.find(' ', at), list.size());
    words.emplace_back(list.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

/// The random numbers of one problem, which depend on nothing but the task, the length and the problem's number.
class Draws {
 public:
  Draws(std::uint64_t task, std::int64_t length, std::int64_t problem)
      : seed_(task << 32 | static_cast<std::uint64_t>(length)), problem_(static_cast<std::uint32_t>(problem)) {}

  double uniform() { return philox_uniform(seed_, problem_, at_++); }
  std::size_t below(std::size_t count) { return static_cast<std::size_t>(uniform() * static_cast<double>(count)); }
  const std::string& one_of(const std::vector<std::string>& words) { return words[below(words.size())]; }

  /// `count` different ones, in random order (Fisher and Yates).
  std::vector<std::string> sample(std::vector<std::string> words, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) std::swap(words[i], words[i + below(words.size() - i)]);
    words.resize(count);
    return words;
  }

 private:
  std::uint64_t seed_;
  std::uint32_t problem_;
  std::uint64_t at_ = 0;
};

struct Problem {
  std::string context, key, value;
  double baseline = 0.0;
  std::string system = {};  // what the context begins with
};

/// How many of the tokens are of the prompt up to where `system` ends in it.
Result<std::size_t> count_system(const TaskModel& model, std::span<const std::int32_t> tokens,
                                 const std::string& prompt, const std::string& system, bool rendered) {
  if (system.empty()) return std::size_t{0};
  const std::string before = prompt.substr(0, prompt.find(system) + system.size());
  MILLRACE_TRY(const std::vector<std::int32_t> ids,
               rendered ? model.tokenizer->encode(before, false) : encode_text(model, before));
  return static_cast<std::size_t>(std::ranges::mismatch(ids, tokens).in1 - ids.begin());
}

/// The problem as the model reads it. Its length is not looked at.
Result<EvalDocument> make_document(const TaskModel& model, const Problem& problem) {
  const std::string question = fmt::format("{}\nWhat about {}?", problem.context, problem.key);
  const std::string answer = fmt::format(" {} {}", problem.key, problem.value);
  TaskModel any = model;
  any.longest = std::numeric_limits<std::int64_t>::max();
  EvalDocument document{.name = {}, .group = {}, .baseline = {problem.baseline}};
  if (model.chat_template == nullptr) {
    MILLRACE_TRY(Continuation continuation, make_continuation(any, question + "\n", answer));
    MILLRACE_TRY(continuation.pinned, count_system(model, continuation.tokens, question, problem.system, false));
    document.continuations.push_back(std::move(continuation));
    return document;
  }
  const nlohmann::json message{{"role", "user"}, {"content", question}};
  MILLRACE_TRY(const std::string prompt, model.chat_template->render_messages(nlohmann::json::array({message}).dump()));
  MILLRACE_TRY(Continuation continuation, make_continuation(any, prompt, answer, true));
  MILLRACE_TRY(continuation.pinned, count_system(model, continuation.tokens, prompt, problem.system, true));
  continuation.asks_further = !model.eos_ids.empty();
  document.continuations.push_back(std::move(continuation));
  document.end_ids = model.eos_ids;
  return document;
}

/// What a problem is built of, so many pieces (pairs, sentences).
using Build = std::function<Problem(std::size_t pieces)>;

/// The document with as many pieces as fit `length` tokens, or nearly as many: how much a piece adds is guessed from
/// what they have added so far. `pieces`: a first guess, and then what was found.
Result<EvalDocument> fit(const TaskModel& model, std::int64_t length, std::size_t most, std::size_t& pieces,
                         const Build& build) {
  std::optional<EvalDocument> best;
  std::size_t fits = 0, fails = most + 1;
  pieces = std::clamp<std::size_t>(pieces, 2, most);
  while (true) {
    MILLRACE_TRY(EvalDocument document, make_document(model, build(pieces)));
    const auto tokens = static_cast<std::int64_t>(document.continuations.front().tokens.size());
    const std::int64_t each = std::max<std::int64_t>(1, tokens / static_cast<std::int64_t>(pieces));
    const std::int64_t room = length - tokens;
    if (room >= 0) {
      best = std::move(document);
      fits = pieces;
    } else {
      fails = pieces;
    }
    if (best && (fits + 1 >= fails || (room >= 0 && room < 2 * each))) break;
    if (fails <= 2) return fail("{} tokens are too few for a problem", length);
    const std::int64_t step = room >= 0 ? room / each : -((-room + each - 1) / each);
    const std::int64_t next = static_cast<std::int64_t>(pieces) + step;
    pieces = static_cast<std::size_t>(std::clamp(next, static_cast<std::int64_t>(std::max<std::size_t>(fits + 1, 2)),
                                                 static_cast<std::int64_t>(fails) - 1));
  }
  const auto tokens = static_cast<std::int64_t>(best->continuations.front().tokens.size());
  if (fits == most && tokens < length * 9 / 10) {
    return fail("what there is fills {} tokens, not {}: name shorter lengths", tokens, length);
  }
  pieces = fits;
  return std::move(*best);
}

/// Builds the problem `number` of a length; `pieces` is kept from problem to problem of a length.
using MakeProblem = std::function<Result<EvalDocument>(std::int64_t length, std::int64_t number, std::size_t& pieces)>;

Result<EvalTask> make_task(std::string name, const TaskModel& model, std::span<const std::int64_t> lengths,
                           std::int64_t problems, const MakeProblem& make) {
  EvalTask task{.name = std::move(name), .kind = TaskKind::answer, .documents = {}};
  for (const std::int64_t length : lengths) {
    if (length > model.longest) {
      return fail("{}: {} tokens, but a sequence may have {} here: name shorter lengths", task.name, length,
                  model.longest);
    }
    auto pieces = static_cast<std::size_t>(std::max<std::int64_t>(2, length / 4));
    for (std::int64_t p = 0; p < problems; ++p) {
      auto document = make(length, p, pieces);
      if (!document.ok()) return fail("{}: {}", task.name, document.error().message);
      document->name = fmt::format("{}/{} problem {}", task.name, length, p + 1);
      document->group = std::to_string(length);
      task.documents.push_back(std::move(*document));
    }
  }
  return task;
}

std::vector<std::string> colored_things(const std::vector<std::string>& things) {
  std::vector<std::string> keys;
  for (const std::string& color : words_of(kColors)) {
    for (const std::string& thing : things) keys.push_back(color + " " + thing);
  }
  return keys;
}

Problem key_value_problem(Draws draws, std::size_t pairs) {
  const std::vector<std::string> things = words_of(kThings), qualities = words_of(kQualities);
  const std::vector<std::string> keys = draws.sample(pairs <= things.size() ? things : colored_things(things), pairs);
  Problem problem{.context = "Remember: ", .key = {}, .value = {}, .baseline = 1.0 / static_cast<double>(pairs)};
  const std::size_t asked = draws.below(pairs);
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::string& value = draws.one_of(qualities);
    problem.context += fmt::format("{}{} {}", i == 0 ? "" : ", ", keys[i], value);
    if (i == asked) problem.value = value;
  }
  problem.context += ".";
  problem.key = keys[asked];
  return problem;
}

/// Sentences of a text, each with the white space in front of it.
std::vector<std::string> sentences_of(std::string_view text) {
  std::vector<std::string> sentences;
  std::size_t start = 0;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    const bool ends = text[i] == '.' || text[i] == '!' || text[i] == '?';
    if (!ends || (text[i + 1] != ' ' && text[i + 1] != '\n')) continue;
    sentences.emplace_back(text.substr(start, i + 1 - start));
    start = i + 1;
  }
  if (start < text.size() && !trimmed(text.substr(start)).empty()) sentences.emplace_back(text.substr(start));
  return sentences;
}

std::string made_up_sentence(Draws& draws, const std::string& key, const std::vector<std::string>& things,
                             const std::vector<std::string>& qualities) {
  const auto thing = [&]() -> const std::string& {
    while (true) {
      const std::string& word = draws.one_of(things);
      if (word != key) return word;
    }
  };
  const std::string& a = thing();
  const std::string& b = thing();
  const std::string& c = draws.one_of(qualities);
  const std::string& d = draws.one_of(qualities);
  switch (draws.below(5)) {
    case 0:
      return fmt::format(" The {} {} stood near the {}.", c, a, b);
    case 1:
      return fmt::format(" There was a {} behind the {} {}.", a, c, b);
    case 2:
      return fmt::format(" They went past the {} and saw that the {} was {} and {}.", a, b, c, d);
    case 3:
      return fmt::format(" Nobody had told them that the {} would be so {}.", a, c);
    default:
      return fmt::format(" \"What a {} {}!\" they said, and looked for the {}.", c, a, b);
  }
}

/// The needle stands behind one of the sentences.
Problem needle_problem(Draws draws, std::size_t count, const std::vector<std::string>& text) {
  const std::vector<std::string> things = words_of(kThings), qualities = words_of(kQualities);
  Problem problem{.context = {},
                  .key = draws.one_of(things),
                  .value = draws.one_of(qualities),
                  .baseline = 1.0 / static_cast<double>(qualities.size())};
  const std::size_t behind = draws.below(count);
  // So that the passage does not change with `count`, but where the text ends.
  const std::size_t start = text.empty() ? 0 : std::min(draws.below(text.size()), text.size() - count);
  for (std::size_t i = 0; i < count; ++i) {
    problem.context += text.empty() ? made_up_sentence(draws, problem.key, things, qualities) : text[start + i];
    if (i == behind) problem.context += fmt::format(" Remember: {} {}.", problem.key, problem.value);
  }
  problem.context = trimmed(problem.context);
  return problem;
}

/// `asked`: which of the instructions.
Problem instructions_problem(Draws draws, std::size_t asked, std::size_t count) {
  constexpr std::size_t kInstructions = 4;
  std::vector<std::string> things = words_of(kThings);
  const std::vector<std::string> qualities = words_of(kQualities), keys = draws.sample(things, kInstructions);
  std::erase_if(things, [&](const std::string& thing) { return std::ranges::find(keys, thing) != keys.end(); });
  Problem problem{.context = "Remember: ", .key = keys[asked], .value = {}, .baseline = 1.0 / kInstructions};
  for (std::size_t i = 0; i < kInstructions; ++i) {
    const std::string& value = draws.one_of(qualities);
    problem.context += fmt::format("{}{} {}", i == 0 ? "" : ", ", keys[i], value);
    if (i == asked) problem.value = value;
  }
  problem.context += ".";
  problem.system = problem.context;
  for (std::size_t i = 0; i < count; ++i) problem.context += made_up_sentence(draws, "", things, qualities);
  return problem;
}

}  // namespace

std::vector<std::int64_t> usual_lengths(const TaskModel& model) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = 256; length <= std::min(kLongestUsual, model.longest); length *= 2) {
    lengths.push_back(length);
  }
  if (lengths.empty()) lengths.push_back(model.longest);
  return lengths;
}

Result<EvalTask> make_key_value(const TaskModel& model, std::span<const std::int64_t> lengths, std::int64_t problems) {
  return make_task("key_value", model, lengths, problems,
                   [&](std::int64_t length, std::int64_t number, std::size_t& pieces) {
                     const Draws draws(1, length, number);
                     return fit(model, length, kMostPairs, pieces,
                                [&](std::size_t pairs) { return key_value_problem(draws, pairs); });
                   });
}

Result<EvalTask> make_needle(const TaskModel& model, std::span<const std::int64_t> lengths, std::int64_t problems,
                             const std::optional<TaskFile>& text) {
  const std::vector<std::string> sentences = text ? sentences_of(text->content) : std::vector<std::string>();
  if (text && sentences.size() < 2) return fail("needle: {} has fewer than two sentences", text->name);
  const std::size_t most = text ? sentences.size() : std::numeric_limits<std::int32_t>::max();
  return make_task("needle", model, lengths, problems,
                   [&](std::int64_t length, std::int64_t number, std::size_t& pieces) {
                     const Draws draws(2, length, number);
                     return fit(model, length, most, pieces,
                                [&](std::size_t count) { return needle_problem(draws, count, sentences); });
                   });
}

Result<EvalTask> make_instructions(const TaskModel& model, std::span<const std::int64_t> lengths,
                                   std::int64_t problems) {
  constexpr std::size_t kMost = std::numeric_limits<std::int32_t>::max();
  return make_task("instructions", model, lengths, problems,
                   [&](std::int64_t length, std::int64_t number, std::size_t& pieces) {
                     const Draws draws(3, length, number / 4);
                     return fit(model, length, kMost, pieces, [&](std::size_t count) {
                       return instructions_problem(draws, static_cast<std::size_t>(number % 4), count);
                     });
                   });
}

}  // namespace millrace
