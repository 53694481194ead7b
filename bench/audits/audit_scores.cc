// Answers that one model gives, scored by another as an audit scores them: one line of CSV an answer. Driven by
// bench/audits/record.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <vector>

#include "audits/audit_score.h"
#include "cli/options.h"
#include "core/mapped_file.h"
#include "engine/engine_core.h"

namespace millrace {

namespace {

constexpr int kRows = 512;  // of a step, all of which may want logits
constexpr int kSequences = 16;

struct Flags {
  cli::ModelFlags node, reference;
  std::string text, made_up = "none";
  int answers = 100;
  std::uint64_t seed = 1;
};

/// A request, and what the node says to it.
struct Answer {
  Request request;
  std::vector<std::int32_t> tokens;
  std::vector<ReferredToken> referred;
};

void add_flags(CLI::App& app, const std::string& who, cli::ModelFlags& flags) {
  app.add_option("--" + who, flags.model, "Model of the " + who)->required();
  app.add_option("--" + who + "-recipe", flags.recipe, "Its recipe");
  app.add_option("--" + who + "-device", flags.device, "Its device");
  app.add_option("--" + who + "-isa", flags.isa, "Its instruction set");
  app.add_option("--" + who + "-compute-dtype", flags.compute_dtype, "What its products read");
}

using Dice = std::mt19937_64;

std::size_t throw_dice(Dice& dice, std::size_t sides) {
  return static_cast<std::size_t>(dice() % sides);
}

/// Requests as real ones are: short answers, most of them drawn, at the usual temperatures.
std::vector<Answer> make_requests(const std::vector<std::int32_t>& text, const Flags& flags, std::int64_t context,
                                  Dice& dice) {
  constexpr std::array<float, 4> kTemperatures{0.0f, 0.6f, 0.8f, 1.0f};
  constexpr std::array<float, 3> kTopP{1.0f, 0.95f, 0.9f};
  std::vector<Answer> answers(static_cast<std::size_t>(flags.answers));
  for (Answer& answer : answers) {
    const std::size_t length = std::min<std::size_t>(16 + throw_dice(dice, 185), static_cast<std::size_t>(context) / 2);
    const std::size_t begin = throw_dice(dice, text.size() - length);
    Request& request = answer.request;
    request.prompt.assign(text.begin() + static_cast<std::ptrdiff_t>(begin),
                          text.begin() + static_cast<std::ptrdiff_t>(begin + length));
    request.max_new_tokens = static_cast<std::int64_t>(16 + throw_dice(dice, 49));
    request.sampling.temperature = kTemperatures[throw_dice(dice, kTemperatures.size())];
    request.sampling.top_p = kTopP[throw_dice(dice, kTopP.size())];
    request.sampling.seed = dice();
  }
  return answers;
}

/// Tokens by lot, or after each token one that follows it in the text.
void make_up(std::vector<Answer>& answers, const std::vector<std::int32_t>& text, bool random, std::int64_t vocab,
             Dice& dice) {
  std::multimap<std::int32_t, std::int32_t> followers;
  for (std::size_t i = 1; i < text.size() && !random; ++i) followers.emplace(text[i - 1], text[i]);
  for (Answer& answer : answers) {
    std::int32_t last = answer.request.prompt.back();
    for (std::int64_t i = 0; i < answer.request.max_new_tokens; ++i) {
      const std::size_t known = followers.count(last);
      if (known == 0) {
        last = static_cast<std::int32_t>(throw_dice(dice, static_cast<std::size_t>(vocab)));
      } else {
        last = std::next(followers.lower_bound(last), static_cast<std::ptrdiff_t>(throw_dice(dice, known)))->second;
      }
      answer.tokens.push_back(last);
    }
  }
}

/// Runs what `ask` makes of each answer, and tells `take` all that comes.
Status run_all(LoadedModel& model, std::vector<Answer>& answers, const std::function<Request(const Answer&)>& ask,
               const std::function<void(Answer&, const TokenEvent&)>& take) {
  EngineCore engine(*model.runner, &*model.tokenizer);
  std::string wrong;
  for (std::size_t begin = 0; begin < answers.size(); begin += kSequences) {
    for (std::size_t i = begin; i < std::min(answers.size(), begin + kSequences); ++i) {
      Request request = ask(answers[i]);
      MILLRACE_CHECK_OK(engine.prepare(request));
      engine.submit(
          i + 1, std::move(request),
          [&, i](const TokenEvent& event) {
            if (event.finish == FinishReason::error) wrong = event.error;
            take(answers[i], event);
            return Demand::more;
          },
          EngineCore::Clock::now());
    }
    while (engine.step()) {
    }
    if (!wrong.empty()) return fail("{}", wrong);
  }
  return Ok{};
}

Status record(Flags flags) {
  for (cli::ModelFlags* model : {&flags.node, &flags.reference}) {
    model->kv_memory = "256M";
    model->max_batch_tokens = kRows;
  }
  MILLRACE_TRY(LoadedModel reference, cli::load(flags.reference, kRows, kSequences));
  const std::int64_t vocab = reference.runner->config().vocab;
  MILLRACE_TRY(const std::string content, read_text_file(flags.text, std::size_t{1} << 28));
  MILLRACE_TRY(const std::vector<std::int32_t> text, reference.tokenizer->encode(content, false));
  Dice dice(flags.seed);
  std::vector<Answer> answers = make_requests(text, flags, reference.runner->max_sequence_tokens(), dice);
  if (flags.made_up != "none") {
    make_up(answers, text, flags.made_up == "random", vocab, dice);
  } else {
    MILLRACE_TRY(LoadedModel node, cli::load(flags.node, kRows, kSequences));
    MILLRACE_CHECK_OK(run_all(
        node, answers, [](const Answer& answer) { return answer.request; },
        [](Answer& answer, const TokenEvent& event) {
          if (event.token >= 0) answer.tokens.push_back(event.token);
        }));
  }
  const auto ask = [](const Answer& answer) {
    Request request;
    request.prompt = answer.request.prompt;
    request.max_new_tokens = 1;
    request.logprobs = kAuditTop;
    request.prompt_logprobs = true;
    request.begun = {{.tokens = {}, .prompt_reported = static_cast<std::int64_t>(request.prompt.size())}};
    request.prompt.insert(request.prompt.end(), answer.tokens.begin(), answer.tokens.end());
    return request;
  };
  MILLRACE_CHECK_OK(run_all(reference, answers, ask, [](Answer& answer, const TokenEvent& event) {
    if (event.of_prompt && event.logprobs) answer.referred.push_back({event.token, *event.logprobs});
  }));
  for (const Answer& answer : answers) {
    if (answer.referred.size() != answer.tokens.size()) return fail("the reference has not spoken of all tokens");
    const double score = answer_score(answer.referred, answer.request.sampling,
                                      static_cast<std::int64_t>(answer.request.prompt.size()), vocab);
    std::printf("%zu,%.1f,%.2f,%.3g\n", answer.tokens.size(), static_cast<double>(answer.request.sampling.temperature),
                static_cast<double>(answer.request.sampling.top_p), score);
  }
  return Ok{};
}

}  // namespace

}  // namespace millrace

int main(int argc, char** argv) {
  CLI::App app("Scores of answers, as audits give them: tokens, temperature, top_p, score");
  millrace::Flags flags;
  millrace::add_flags(app, "node", flags.node);
  millrace::add_flags(app, "reference", flags.reference);
  app.add_option("--text", flags.text, "File that prompts are taken from")->required();
  app.add_option("--made-up", flags.made_up, "Answers of no model: none, random, bigram")
      ->check(CLI::IsMember({"none", "random", "bigram"}));
  app.add_option("--answers", flags.answers, "How many")->check(CLI::Range(1, 1000000));
  app.add_option("--seed", flags.seed, "Of prompts and parameters");
  CLI11_PARSE(app, argc, argv);
  const millrace::Status status = millrace::record(std::move(flags));
  if (!status.ok()) std::fprintf(stderr, "audit_scores: %s\n", status.error().message.c_str());
  return status.ok() ? 0 : 1;
}
