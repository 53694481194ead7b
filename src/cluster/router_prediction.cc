#include "cluster/router_prediction.h"

#include <algorithm>
#include <array>

namespace millrace {

namespace {

constexpr float kBehind = 1e12f;  // more than any answer costs

// By value and without a branch: std::max() of two references would keep the compiler from taking several nodes at
// once.
inline float most(float a, float b) {
  return a < b ? b : a;
}
inline float least(float a, float b) {
  return b < a ? b : a;
}

/// A node's row.
struct Row {
  float inverse_prefill, step, step_per_sequence, usd_per_prompt_token, usd_per_answer_token, places, inverse_places;
  float sequences, queued, kv_free, inverse_kv_used, cached;
};

struct Pointers {
  explicit Pointers(const RouterColumns& from)
      : inverse_prefill(from.inverse_prefill.data()),
        step(from.step.data()),
        step_per_sequence(from.step_per_sequence.data()),
        usd_per_prompt_token(from.usd_per_prompt_token.data()),
        usd_per_answer_token(from.usd_per_answer_token.data()),
        places(from.places.data()),
        inverse_places(from.inverse_places.data()),
        sequences(from.sequences.data()),
        queued(from.queued.data()),
        kv_free(from.kv_free.data()),
        inverse_kv_used(from.inverse_kv_used.data()),
        cached(from.cached.data()) {}

  [[nodiscard]] Row row(std::size_t n) const {
    return {inverse_prefill[n],
            step[n],
            step_per_sequence[n],
            usd_per_prompt_token[n],
            usd_per_answer_token[n],
            places[n],
            inverse_places[n],
            sequences[n],
            queued[n],
            kv_free[n],
            inverse_kv_used[n],
            cached[n]};
  }

  const float *inverse_prefill, *step, *step_per_sequence, *usd_per_prompt_token, *usd_per_answer_token, *places,
      *inverse_places;
  const float *sequences, *queued, *kv_free, *inverse_kv_used, *cached;
};

/// The numbers of Router's page.
inline Prediction predict_row(const AskedFor& asked, const Row& node) {
  const float uncached = asked.prompt - node.cached;
  const float others = least(node.sequences, node.places - 1.0f);  // that decode beside it
  const float tpot = node.step + node.step_per_sequence * others;
  const float own = uncached * node.inverse_prefill;
  // Where all places are taken, those before this one must end first: each takes an answer's time, `places` at once.
  const float turns = most(0.0f, node.sequences + 1.0f - node.places) * node.inverse_places;
  // The same for memory: all that is taken becomes free in an answer's time.
  const float short_of = most(0.0f, node.queued + uncached + asked.answer - node.kv_free);
  const float wait =
      node.queued * node.inverse_prefill + most(turns, short_of * node.inverse_kv_used) * asked.answer * tpot;
  return {wait + own + node.step, tpot,
          uncached * node.usd_per_prompt_token + asked.answer * node.usd_per_answer_token};
}

template <class Score>
void score_all(const Pointers nodes, const AskedFor asked, std::vector<float>& scores, Score score) {
  // An array of its own, which is none of the columns: they are more than a compiler checks for while it runs.
  std::array<float, 256> some = {};
  for (std::size_t from = 0; from < scores.size(); from += some.size()) {
    const std::size_t count = std::min(some.size(), scores.size() - from);
    for (std::size_t n = 0; n < count; ++n) some[n] = score(predict_row(asked, nodes.row(from + n)));
    std::copy_n(some.begin(), count, scores.begin() + static_cast<std::ptrdiff_t>(from));
  }
}

}  // namespace

void RouterColumns::resize(std::size_t count) {
  for (std::vector<float>* column :
       {&inverse_prefill, &step, &step_per_sequence, &usd_per_prompt_token, &usd_per_answer_token, &places,
        &inverse_places, &sequences, &queued, &kv_free, &inverse_kv_used, &cached}) {
    column->resize(count, 0.0f);
  }
}

AskedFor::AskedFor(std::int64_t prompt_tokens, double answer_tokens)
    : prompt(static_cast<float>(prompt_tokens)), answer(static_cast<float>(answer_tokens)) {}

Prediction predict(const RouterColumns& columns, std::size_t node, const AskedFor& asked) {
  return predict_row(asked, Pointers(columns).row(node));
}

void score_by_cost(const RouterColumns& columns, const AskedFor& asked, float inverse_ttft, float inverse_tpot,
                   std::vector<float>& scores) {
  score_all(Pointers(columns), asked, scores, [=](const Prediction& p) {
    const float missed = most(p.ttft * inverse_ttft, p.tpot * inverse_tpot);
    return missed <= 1.0f ? p.usd : kBehind * missed;
  });
}

void score_by_ttft(const RouterColumns& columns, const AskedFor& asked, std::vector<float>& scores) {
  score_all(Pointers(columns), asked, scores, [](const Prediction& p) { return p.ttft; });
}

}  // namespace millrace
