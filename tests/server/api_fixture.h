// A model for tests of the API: a real tokenizer and chat templates, no weights.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/api_answer.h"
#include "server/api_json.h"
#include "server/api_model.h"
#include "server/api_request.h"
#include "text/detokenizer.h"

namespace millrace::test {

/// ChatML: no tools, no reasoning.
inline constexpr const char* kPlainTemplate =
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}<|endoftext|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// … with tools and reasoning, marked as in Qwen3.
inline constexpr const char* kToolTemplate =
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Answer <tool_call>\n{\"name\": ..., \"arguments\": ...}\n</tool_call><|endoftext|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": "
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|endoftext|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}\n<think>\n\n</think>\n\n{% endif %}{% endif %}";

struct TestModel {
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  ServedModel served;
};

inline std::string text_fixture(const std::string& name) {
  std::ifstream file(std::string(MILLRACE_SOURCE_DIR) + "/tests/fixtures/text/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::unique_ptr<TestModel> make_model(const std::string& chat_template, const std::string& tokenizer) {
  auto model = std::make_unique<TestModel>();
  auto read = Tokenizer::from_json(text_fixture(tokenizer + "/tokenizer.json"));
  EXPECT_TRUE(read.ok());
  model->tokenizer.emplace(std::move(read).value());
  auto compiled = ChatTemplate::create(chat_template, nlohmann::json::object());
  EXPECT_TRUE(compiled.ok()) << (compiled.ok() ? "" : compiled.error().message);
  model->chat_template.emplace(std::move(compiled).value());
  ServedModel& served = model->served;
  served.ids = {"test-model", "alias"};
  served.created = 1'700'000'000;
  served.fingerprint = system_fingerprint_of("test");
  served.tokenizer = &*model->tokenizer;
  served.chat_template = &*model->chat_template;
  served.template_source = chat_template;
  served.format = AnswerFormat::detect(chat_template, served.tokenizer);
  served.eos_ids = {tokenizer == "byte_level_bpe" ? 1500 : 2};
  served.vocab = 1536;
  served.hidden = 4;
  served.max_sequence_tokens = 1000;
  auto vocabulary = GrammarVocabulary::create(*served.tokenizer, served.eos_ids, served.vocab);
  EXPECT_TRUE(vocabulary.ok()) << (vocabulary.ok() ? "" : vocabulary.error().message);
  served.grammar_vocabulary = std::make_shared<const GrammarVocabulary>(std::move(vocabulary).value());
  return model;
}

inline const TestModel& plain_model() {
  static const std::unique_ptr<TestModel> kModel = make_model(kPlainTemplate, "byte_level_bpe");
  return *kModel;
}

inline const TestModel& tool_model() {
  static const std::unique_ptr<TestModel> kModel = make_model(kToolTemplate, "byte_level_bpe");
  return *kModel;
}

/// An answer as the engine tells it: a token an event, then the end of sequence (stop) or the end at the last token
/// (length). `logprobs`: made-up ones, -0.5 for the token itself, then -1.5, -2.5, ... for the ids that follow it.
inline std::vector<TokenEvent> play(const ServedModel& model, std::string_view text, FinishReason finish,
                                    std::int32_t choice = 0, std::int32_t logprobs = -1) {
  auto ids = model.tokenizer->encode(text, false);
  EXPECT_TRUE(ids.ok());
  if (finish == FinishReason::stop) ids->push_back(model.eos_ids[0]);
  Detokenizer detokenizer(*model.tokenizer);
  std::vector<TokenEvent> events;
  for (const std::int32_t id : *ids) {
    TokenEvent event;
    event.choice = choice;
    event.token = id;
    event.text = detokenizer.push(id);
    if (logprobs >= 0) {
      event.logprobs = TokenLogprobs{.logprob = -0.5f, .top = {{id, -0.5f}}};
      for (std::int32_t k = 1; k < logprobs; ++k) {
        event.logprobs->top.emplace_back((id + k) % 1500, -0.5f - static_cast<float>(k));
      }
    }
    events.push_back(std::move(event));
  }
  events.back().text += detokenizer.finish();
  events.back().finish = finish;
  return events;
}

/// The JSON of server-sent events; [DONE] becomes a string.
inline std::vector<Json> parse_sse(std::string_view stream) {
  std::vector<Json> chunks;
  while (!stream.empty()) {
    const std::size_t end = stream.find("\n\n");
    EXPECT_NE(end, std::string_view::npos);
    std::string_view frame = stream.substr(0, end);
    EXPECT_TRUE(frame.starts_with("data: ")) << frame;
    EXPECT_EQ(frame.find('\n'), std::string_view::npos) << frame;
    frame.remove_prefix(6);
    Json chunk = frame == "[DONE]" ? Json("[DONE]") : Json::parse(frame, nullptr, false);
    EXPECT_FALSE(chunk.is_discarded()) << frame;
    chunks.push_back(std::move(chunk));
    stream.remove_prefix(end + 2);
  }
  return chunks;
}

/// What a client makes of a chat's chunks: the message, finish reason and logprobs of each choice. Checks what clients
/// rely on.
struct Merged {
  std::string role, content, reasoning, finish;
  std::vector<Json> calls;  // {"id","name","arguments"}
  Json logprobs = Json::array();
};

inline std::vector<Merged> merge(const std::vector<Json>& chunks, std::size_t choices) {
  std::vector<Merged> merged(choices);
  for (const Json& chunk : chunks) {
    if (chunk == "[DONE]") continue;
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    for (const Json& choice : chunk["choices"]) {
      Merged& one = merged.at(choice["index"].get<std::size_t>());
      const Json& delta = choice["delta"];
      EXPECT_EQ(one.role.empty(), delta.contains("role")) << "the role comes first, and once";
      EXPECT_EQ(one.finish, "") << "nothing comes after the finish reason";
      if (delta.contains("role")) one.role = delta["role"];
      one.content += delta.value("content", "");
      one.reasoning += delta.value("reasoning_content", "");
      for (const Json& call : delta.value("tool_calls", Json::array())) {
        const auto index = call["index"].get<std::size_t>();
        EXPECT_LE(index, one.calls.size());
        if (index == one.calls.size()) {
          EXPECT_EQ(call["type"], "function");
          one.calls.push_back({{"id", call["id"]}, {"name", call["function"]["name"]}, {"arguments", ""}});
        } else {
          EXPECT_FALSE(call.contains("id") || call["function"].contains("name"));
        }
        Json& arguments = one.calls[index]["arguments"];
        arguments = arguments.get<std::string>() + call["function"]["arguments"].get<std::string>();
      }
      if (!choice["logprobs"].is_null()) {
        for (const Json& token : choice["logprobs"]["content"]) one.logprobs.push_back(token);
      }
      if (!choice["finish_reason"].is_null()) one.finish = choice["finish_reason"];
    }
  }
  return merged;
}

}  // namespace millrace::test
