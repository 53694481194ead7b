#include "text/gguf_pre.h"

#include <algorithm>
#include <array>

namespace millrace {

namespace {

// The expressions are those of the tokenizer.json of the models that brought them up. Parts that recur:
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define LINES_AND_SPACES R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define WORDS R"([^\r\n\p{L}\p{N}]?\p{L}+)"
#define SYMBOLS R"(| ?[^\s\p{L}\p{N}]+[\r\n]*)"
#define UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
#define LEADING R"([^\r\n\p{L}\p{N}]?)"
#define CAMEL(ending) LEADING UPPER "*" LOWER "+" ending "|" LEADING UPPER "+" LOWER "*" ending
#define CJK_AND_KANA R"([一-龥぀-ゟ゠-ヿ]+)"
#define DEEPSEEK_WORDS \
  R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*)" LINES_AND_SPACES

constexpr std::string_view kDigit = R"(\p{N})";
constexpr std::string_view kDigits = R"(\p{N}+)";
constexpr std::string_view kThreeDigits = R"(\p{N}{1,3})";
constexpr std::string_view kThreeAsciiDigits = "[0-9][0-9][0-9]";
constexpr std::string_view kNewline = R"([\r\n])";
constexpr std::string_view kCjkAndHangul = "[一-龥ࠀ-一가-퟿]+";
constexpr std::string_view kGpt2Words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Words = CONTRACTIONS "|" WORDS R"(|\p{N}{1,3})" SYMBOLS LINES_AND_SPACES;
constexpr std::string_view kQwen2Words = CONTRACTIONS "|" WORDS R"(|\p{N})" SYMBOLS LINES_AND_SPACES;
constexpr std::string_view kDeepseek3Words = DEEPSEEK_WORDS;
constexpr std::string_view kCjkAndKana = CJK_AND_KANA;
constexpr std::string_view kBloomWords = " ?[^(\\s|.,!?…。，、।۔،)]+";
constexpr std::string_view kNewlineRuns = R"([^\n]+|[\n]+)";

// What GGUF files without a name of their own were made for.
constexpr std::array kDefault = {std::string_view(R"([\p{P}\$\+<=>\^~\|]+)"), kGpt2Words, kDigits, kThreeAsciiDigits};
constexpr std::array kGpt2 = {kGpt2Words};
constexpr std::array kStarcoder = {kDigit, kGpt2Words};
constexpr std::array kFalcon = {std::string_view(R"([\p{P}\$\+<=>\^~\|`]+)"), kGpt2Words, kThreeAsciiDigits};
constexpr std::array kLlama3 = {kLlama3Words};
constexpr std::array kQwen2 = {kQwen2Words};
constexpr std::array kQwen35 = {std::string_view(
    CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)" LINES_AND_SPACES)};
constexpr std::array kBloom = {kBloomWords};
constexpr std::array kViking = {kBloomWords, kDigit};
constexpr std::array kTekken = {std::string_view(CAMEL("") R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" LINES_AND_SPACES)};
constexpr std::array kGpt4o = {
    std::string_view(CAMEL(CONTRACTIONS "?") R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" LINES_AND_SPACES)};
constexpr std::array kTinyAya = {std::string_view(R"(\d{1,3}(?=(?:\d{3})*\b))"), kGpt4o[0]};
constexpr std::array kDeepseekCoder = {kNewline, std::string_view(R"(\s?\p{L}+)"), std::string_view(R"(\s?\p{P}+)"),
                                       kCjkAndHangul, kDigit};
constexpr std::array kDeepseekLlm = {
    kNewline,
    std::string_view(
        R"(\s?[A-Za-z)"  // and the other letters that have case
        R"(\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF})"
        R"(\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1})"
        R"(\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5})"
        R"(\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77})"
        R"(\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D})"
        R"(\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE})"
        R"(\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC})"
        R"(\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124})"
        R"(\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E})"
        R"(\x{2183}-\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3})"
        R"(\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E})"
        R"(\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A})"
        R"(\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2})"
        R"(\x{118A0}-\x{118DF}\x{1E900}-\x{1E943})"
        R"(]+)"),
    std::string_view("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
    std::string_view("\\s+$"),
    kCjkAndHangul,
    kDigits};
constexpr std::array kDeepseek3 = {kThreeDigits, kCjkAndKana, kDeepseek3Words};
constexpr std::array kYoutu = {
    std::string_view("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" CJK_AND_KANA),
    std::string_view(CAMEL(CONTRACTIONS "?") R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*)" LINES_AND_SPACES)};
constexpr std::array kSeedCoder = {
    std::string_view(CONTRACTIONS "|" WORDS R"(|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+)" LINES_AND_SPACES)};
constexpr std::array kBailingMoe = {std::string_view(
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)")};
constexpr std::array kExaoneMoe = {std::string_view(
    CONTRACTIONS
    R"(|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)")};
constexpr std::array kJais2 = {std::string_view(
    CONTRACTIONS
    "|" WORDS R"(|\p{N}{1,3})" SYMBOLS
    R"(|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S))"
    R"(|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})")};
#define NOT_HAN "&&[^\\p{Han}]]"
#define KIMI_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M})" NOT_HAN
#define KIMI_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M})" NOT_HAN
constexpr std::array kKimiK2 = {std::string_view(R"([\p{Han}]+|)" LEADING KIMI_UPPER "*" KIMI_LOWER "+" CONTRACTIONS
                                                 "?|" LEADING KIMI_UPPER "+" KIMI_LOWER "*" CONTRACTIONS
                                                 R"(?|\p{N}{1,3})" SYMBOLS LINES_AND_SPACES)};
constexpr std::array kSuperBpe = {kDigits, std::string_view(R"((?=(\d{3})+(?!\d)))")};
constexpr std::array kLaguna = {kNewlineRuns, kQwen2Words};
constexpr std::array kMiniCpm5 = {kThreeDigits,
                                  std::string_view(CONTRACTIONS "|" WORDS R"(|\p{N}+)" SYMBOLS LINES_AND_SPACES)};
constexpr std::array kNewlines = {kNewlineRuns};

struct Named {
  std::string_view name;
  GgufPreTokenizer pre;
};

constexpr Named kTable[] = {
    {"", {kDefault}},
    {"default", {kDefault}},
    // GPT-2
    {"gpt-2", {kGpt2}},
    {"phi-2", {kGpt2}},
    {"olmo", {kGpt2}},
    {"mpt", {kGpt2}},
    {"jais", {kGpt2}},
    {"mellum", {kGpt2}},
    {"modern-bert", {kGpt2}},
    {"gigachat", {kGpt2}},
    {"a.x-4.0", {kGpt2}},
    {"exaone4", {kGpt2}},
    {"trillion", {kGpt2}},
    {"granite-docling", {kGpt2}},
    // digits one by one, then GPT-2
    {"starcoder", {kStarcoder}},
    {"refact", {kStarcoder}},
    {"command-r", {kStarcoder}},
    {"smollm", {kStarcoder}},
    {"codeshell", {kStarcoder}},
    {"exaone", {kStarcoder}},
    {"minerva-7b", {kStarcoder}},
    {"mellum2", {kStarcoder}},
    {"falcon", {kFalcon}},
    // Llama 3, that is cl100k
    {"llama3", {kLlama3, true, true}},
    {"llama-v3", {kLlama3, true, true}},
    {"llama-bpe", {kLlama3, true, true}},
    {"falcon3", {kLlama3, true, true}},
    {"falcon-h1", {kLlama3, true, true}},
    {"pixtral", {kLlama3, true, true}},
    {"midm-2.0", {kLlama3, true, true}},
    {"lfm2", {kLlama3, true, true}},
    {"dbrx", {kLlama3}},
    {"smaug-bpe", {kLlama3}},
    {"glm4", {kLlama3}},
    {"chatglm-bpe", {kLlama3}},
    {"jais-2", {kJais2}},
    {"minicpm5", {kMiniCpm5, true}},
    // Qwen 2: digits one by one
    {"qwen2", {kQwen2}},
    {"deepseek-r1-qwen", {kQwen2}},
    {"kormo", {kQwen2}},
    {"megrez", {kQwen2}},
    {"stablelm2", {kQwen2}},
    {"hunyuan", {kQwen2}},
    {"solar-open", {kQwen2}},
    {"grok-2", {kQwen2}},
    {"laguna", {kLaguna}},
    {"qwen35", {kQwen35}},
    {"seed-coder", {kSeedCoder}},
    {"bailingmoe", {kBailingMoe}},
    {"bailingmoe2", {kBailingMoe}},
    {"llada-moe", {kBailingMoe}},
    {"exaone-moe", {kExaoneMoe}},
    // DeepSeek
    {"deepseek-llm", {kDeepseekLlm}},
    {"deepseek-coder", {kDeepseekCoder}},
    {"deepseek-v3", {kDeepseek3}},
    {"hunyuan-dense", {kDeepseek3}},
    {"joyai-llm", {kDeepseek3}},
    {"hy_v4", {kDeepseek3}},
    {"youtu", {kYoutu, true}},
    // o200k and its kin: words split where the case changes
    {"gpt-4o", {kGpt4o}},
    {"o200k", {kGpt4o}},
    {"llama4", {kGpt4o}},
    {"kanana2", {kGpt4o}},
    {"talkie", {kGpt4o}},
    {"minimax-m2", {kGpt4o}},
    {"tekken", {kTekken, true, true}},
    {"tiny_aya", {kTinyAya}},
    {"cohere2moe", {kTinyAya}},
    {"kimi-k2", {kKimiK2}},
    {"superbpe", {kSuperBpe}},
    // BLOOM
    {"bloom", {kBloom}},
    {"poro-chat", {kBloom}},
    {"gpt3-finnish", {kBloom}},
    {"viking", {kViking}},
    // not byte-level: spaces become U+2581, and only newlines stand apart
    {"gemma4", {kNewlines, true, true}},
    {"sarvam-moe", {kNewlines}},
};

}  // namespace

const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kTable), std::end(kTable), [&](const Named& row) { return row.name == name; });
  return found == std::end(kTable) ? nullptr : &found->pre;
}

std::string gguf_pre_tokenizer_names() {
  std::string names;
  for (const Named& row : kTable) {
    if (row.name.empty()) continue;
    if (!names.empty()) names += ", ";
    names += row.name;
  }
  return names;
}

}  // namespace millrace
