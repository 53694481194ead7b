// Any bytes as the body of a request; what is accepted is answered, and the answer is JSON.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "server/api_answer.h"
#include "server/api_json.h"
#include "server/api_request.h"

namespace {

using namespace millrace;

void require(bool condition) {
  if (!condition) std::abort();
}

void append_utf8(std::string& out, unsigned character) {
  if (character < 0x80) {
    out += static_cast<char>(character);
  } else {
    out += static_cast<char>(0xC0 | character >> 6);
    out += static_cast<char>(0x80 | (character & 0x3F));
  }
}

/// A tokenizer whose tokens are the 256 bytes, in the alphabet of byte-level BPE, and an end of sequence.
std::string byte_tokenizer() {
  Json vocab = Json::object();
  unsigned others = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    std::string letter;
    append_utf8(letter, itself ? byte : others++);
    vocab[letter] = byte;
  }
  const Json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const Json end = {{"id", 256},       {"content", "<|end|>"}, {"single_word", false}, {"lstrip", false},
                    {"rstrip", false}, {"normalized", false},  {"special", true}};
  return Json{{"version", "1.0"},
              {"added_tokens", Json::array({end})},
              {"normalizer", nullptr},
              {"pre_tokenizer", level},
              {"post_processor", nullptr},
              {"decoder", level},
              {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}}
      .dump();
}

struct Model {
  Model() {
    const std::string source =
        "{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}{% for call in message.tool_calls or "
        "[] %}<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}<think>";
    auto read = Tokenizer::from_json(byte_tokenizer());
    auto compiled = ChatTemplate::create(source, nlohmann::json::object());
    require(read.ok() && compiled.ok());
    tokenizer = std::make_unique<Tokenizer>(std::move(read).value());
    chat_template = std::make_unique<ChatTemplate>(std::move(compiled).value());
    served.ids = {"m"};
    served.tokenizer = tokenizer.get();
    served.chat_template = chat_template.get();
    served.template_source = source;
    served.format = AnswerFormat::detect(source, tokenizer.get());
    served.eos_ids = {256};
    served.vocab = 257;
    served.hidden = 2;
    served.max_sequence_tokens = 4096;
    auto vocabulary = GrammarVocabulary::create(*tokenizer, served.eos_ids, served.vocab);
    require(vocabulary.ok());
    served.grammar_vocabulary = std::make_shared<const GrammarVocabulary>(std::move(vocabulary).value());
  }

  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  ServedModel served;
};

/// Answers each choice with the bytes of `text`, some of them at a time.
void answer(const ServedModel& model, ApiCall call, std::string_view text) {
  if (call.requests.size() * static_cast<std::size_t>(call.answer.choices) > 8) return;
  const bool stream = call.answer.stream;
  const bool embeds = call.answer.endpoint == Endpoint::embedding;
  const std::int32_t choices = embeds ? 1 : call.answer.choices;
  AnswerBuilder builder(model, std::move(call.answer));
  const RequestSummary summary{.prompt_tokens = 1};
  std::string out;
  for (std::size_t request = 0; request < call.requests.size(); ++request) {
    for (std::int32_t choice = 0; choice < choices; ++choice) {
      for (std::size_t at = 0; at < text.size(); at += 3) {
        TokenEvent event{.choice = choice, .token = text[at] & 0x7F, .text = std::string(text.substr(at, 3))};
        if (call.requests[request].logprobs >= 0) event.logprobs = TokenLogprobs{.logprob = -1.0f, .top = {{5, -0.5f}}};
        if (!embeds) builder.on(request, event, out);
      }
      TokenEvent last{.choice = choice, .token = 256, .finish = FinishReason::stop};
      if (embeds) last.embedding = {1.0f, 2.0f};
      if (choice + 1 == choices) last.summary = &summary;
      builder.on(request, last, out);
    }
  }
  require(builder.done() && !builder.error());
  if (!stream) {
    require(Json::accept(builder.response()));
    return;
  }
  require(out.ends_with("data: [DONE]\n\n"));
  for (std::size_t at = 0; at < out.size();) {
    const std::size_t end = out.find("\n\n", at);
    require(end != std::string::npos && out.compare(at, 6, "data: ") == 0);
    const std::string_view frame = std::string_view(out).substr(at + 6, end - at - 6);
    require(frame == "[DONE]" || Json::accept(frame));
    at = end + 2;
  }
}

void check(const ApiResult<std::string>& result) {
  require(Json::accept(result.ok() ? *result : result.error().json()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Model kModel;
  if (size == 0) return 0;
  const ServedModel& model = kModel.served;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 5 == 3) check(answer_tokenize(body, model));
  if (data[0] % 5 == 4) check(answer_detokenize(body, model));
  if (data[0] % 5 >= 3) return 0;
  auto call = data[0] % 5 == 0   ? parse_chat(body, model)
              : data[0] % 5 == 1 ? parse_completion(body, model)
                                 : parse_embeddings(body, model);
  if (call.ok()) {
    answer(model, std::move(call).value(), body);
  } else {
    require(call.error().status >= 400 && Json::accept(call.error().json()));
  }
  return 0;
}
