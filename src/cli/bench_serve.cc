// `millrace bench-serve`: a load test of any OpenAI-compatible endpoint.

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "bench/arrivals.h"
#include "bench/load_test.h"
#include "bench/report.h"
#include "bench/trace.h"
#include "cli/options.h"
#include "core/mapped_file.h"

namespace millrace::cli {

namespace {

struct BenchServeFlags {
  std::string url, model, endpoint = "completions";
  double rate = 0;  // 0: not given
  std::int64_t concurrency = 0;
  std::int64_t requests = 0;  // 0: 100, or all of the trace
  std::int64_t warmup = 0;
  std::string input_tokens = "512", output_tokens = "128";
  std::int32_t shared_prefix = 0;
  std::string trace;
  double time_scale = 1, length_scale = 1;
  std::string text;
  std::int32_t vocab = 0, first_id = -1;
  std::uint64_t seed = 0;
  double temperature = 0;
  std::optional<double> top_p;
  bool stop_at_eos = false;
  std::string extra_body;
  std::string api_key_file, api_key_env, ca_file;
  bool insecure = false;
  double timeout = 600;
  std::string slo, save;
  bool json = false;
};

Result<std::string> api_key(const BenchServeFlags& flags) {
  if (!flags.api_key_env.empty()) {
    const char* const key = std::getenv(flags.api_key_env.c_str());
    if (key == nullptr || *key == '\0') return fail("the environment has no {}", flags.api_key_env);
    return std::string(key);
  }
  if (flags.api_key_file.empty()) return std::string();
  MILLRACE_TRY(const std::string text, read_text_file(flags.api_key_file, std::size_t{1} << 16));
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return fail("{}: no API key in it", flags.api_key_file);
  return text.substr(begin, text.find_first_of(" \t\r\n", begin) - begin);
}

Result<bench::Target> make_target(const BenchServeFlags& flags) {
  bench::Target target;
  MILLRACE_TRY(target.url, bench::parse_url(flags.url));
  MILLRACE_TRY(target.api_key, api_key(flags));
  target.verify = !flags.insecure;
  target.ca_file = flags.ca_file;
  target.timeout_s = flags.timeout;
  return target;
}

/// What prompts may be made of, from the flags and what the server says of its vocabulary (0: nothing).
Result<bench::TokenRange> token_range(const BenchServeFlags& flags, std::int64_t served_vocab) {
  bench::TokenRange range = bench::plain_tokens(flags.vocab > 0 ? flags.vocab : served_vocab);
  if (flags.vocab > 0 && flags.first_id >= 0) range.end = flags.vocab;
  if (flags.first_id >= 0) range.first = flags.first_id;
  if (range.first >= range.end) return fail("--first-id {} leaves no ids below {}", range.first, range.end);
  return range;
}

/// A prompt of `tokens` tokens whose first ones are those that all share.
std::vector<bench::PromptPart> made_up_prompt(std::int32_t shared, std::int32_t tokens, bench::Stream use,
                                              std::uint64_t number) {
  shared = std::min(shared, tokens);
  std::vector<bench::PromptPart> parts;
  if (shared > 0) parts.push_back({bench::Stream::shared_prefix, 0, shared});
  if (tokens > shared) parts.push_back({use, number, tokens - shared});
  return parts;
}

/// The requests of a trace, the first ones where fewer are wanted; a shared prefix comes before each prompt.
Result<std::vector<bench::PlannedRequest>> traced_requests(const BenchServeFlags& flags) {
  MILLRACE_TRY(bench::Trace trace, bench::read_trace(flags.trace));
  if (flags.requests > 0 && static_cast<std::size_t>(flags.requests) < trace.records.size()) {
    trace.records.resize(static_cast<std::size_t>(flags.requests));
  }
  MILLRACE_CHECK_OK(bench::scale_trace(trace, flags.time_scale, flags.length_scale));
  std::vector<bench::PlannedRequest> requests;
  for (const bench::TraceRecord& record : trace.records) {
    std::vector<bench::PromptPart> prompt = bench::trace_prompt(record, trace.block_tokens, requests.size());
    if (flags.shared_prefix > 0) {
      prompt.insert(prompt.begin(), {bench::Stream::shared_prefix, 0, flags.shared_prefix});
    }
    requests.push_back({record.arrival_s, std::move(prompt), record.output_tokens});
  }
  return requests;
}

Result<std::vector<bench::PlannedRequest>> made_up_requests(const BenchServeFlags& flags, bench::Stream use,
                                                            std::int64_t count) {
  MILLRACE_TRY(const bench::LengthRange input, bench::parse_lengths(flags.input_tokens, 1));
  MILLRACE_TRY(const bench::LengthRange output, bench::parse_lengths(flags.output_tokens, 1));
  const std::int32_t shared = use == bench::Stream::warmup ? 0 : flags.shared_prefix;
  std::vector<bench::PlannedRequest> requests;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(count); ++i) {
    const std::int32_t tokens = bench::draw_length(input, flags.seed, i, 0);
    requests.push_back({0.0, made_up_prompt(shared, tokens, use, i), bench::draw_length(output, flags.seed, i, 1)});
  }
  return requests;
}

Result<bench::LoadPlan> make_plan(const BenchServeFlags& flags) {
  constexpr std::int64_t kRequests = 100;
  bench::LoadPlan plan;
  plan.seed = flags.seed;
  plan.concurrency = flags.concurrency;
  if (flags.trace.empty()) {
    const std::int64_t count = flags.requests > 0 ? flags.requests : kRequests;
    MILLRACE_TRY(plan.requests, made_up_requests(flags, bench::Stream::request, count));
  } else {
    MILLRACE_TRY(plan.requests, traced_requests(flags));
  }
  if (flags.rate > 0) {
    const auto count = static_cast<std::int64_t>(plan.requests.size());
    const std::vector<double> arrivals = bench::poisson_arrivals(flags.rate, count, flags.seed);
    for (std::size_t i = 0; i < arrivals.size(); ++i) plan.requests[i].due_s = arrivals[i];
  }
  MILLRACE_TRY(plan.warmup, made_up_requests(flags, bench::Stream::warmup, flags.warmup));
  if (!flags.text.empty()) {
    MILLRACE_TRY(std::string text, read_text_file(flags.text));
    MILLRACE_TRY(plan.text, bench::PromptText::make(std::move(text)));
  }
  return plan;
}

/// A stream takes a file descriptor, and the usual soft limit is far below what one process may have.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);  // where it is refused, connections fail and are counted
}

Status save_records(const std::string& path, const std::vector<bench::RequestRecord>& records) {
  if (path.empty()) return Ok{};
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (const bench::RequestRecord& record : records) file << bench::record_line(record) << '\n';
  file.close();
  if (!file) return fail("{}: cannot be written", path);
  return Ok{};
}

Status run(const BenchServeFlags& flags) {
  std::optional<bench::Slo> slo;
  if (!flags.slo.empty()) {
    MILLRACE_TRY(slo, bench::parse_slo(flags.slo));
  }
  MILLRACE_TRY(const bench::Target target, make_target(flags));
  MILLRACE_TRY(bench::LoadPlan plan, make_plan(flags));
  bench::ServedModel served;
  if (flags.model.empty() || (flags.vocab == 0 && !plan.text)) {
    Result<bench::ServedModel> asked = bench::ask_model(target);
    // A named model can be tested on a server that lists none.
    if (!asked.ok() && flags.model.empty()) return std::move(asked).error();
    if (asked.ok()) served = std::move(*asked);
  }
  MILLRACE_TRY(plan.range, token_range(flags, served.vocab));
  bench::RequestTemplate common;
  common.endpoint = flags.endpoint == "chat" ? bench::Endpoint::chat : bench::Endpoint::completions;
  common.model = flags.model.empty() ? served.name : flags.model;
  common.temperature = flags.temperature;
  common.top_p = flags.top_p;
  if (flags.temperature > 0) common.seed = flags.seed;
  common.ignore_eos = !flags.stop_at_eos;
  common.extra = flags.extra_body;
  raise_descriptor_limit();
  MILLRACE_TRY(const bench::LoadResult result, bench::run_load(target, common, plan, progress_bar("requests")));
  MILLRACE_CHECK_OK(save_records(flags.save, result.records));
  const bench::LoadReport report = bench::summarize(result.records, result.duration_s, slo, result.client);
  std::fputs((flags.json ? bench::report_json(report).dump() + "\n" : bench::report_text(report)).c_str(), stdout);
  if (report.failed == report.requests) {
    const auto& [name, detail] = *report.examples.begin();
    return fail("all {} requests failed, one with {}: {}", report.requests, name, detail);
  }
  return Ok{};
}

/// As what CLI11 checks a flag with: empty where `parsed` is a value, else why not.
template <typename T>
std::string complaint(const Result<T>& parsed) {
  return parsed.ok() ? std::string() : parsed.error().message;
}

std::string check_length(const std::string& text) {
  return complaint(bench::parse_lengths(text, 1));
}

/// "inf" is a rate as well: all requests at once.
std::string check_rate(const std::string& text) {
  char* end = nullptr;
  const double rate = std::strtod(text.c_str(), &end);
  return end != text.c_str() && *end == '\0' && rate > 0 ? "" : "a rate is a number above 0, or inf";
}

void add_load_flags(CLI::App& command, BenchServeFlags& flags) {
  command.add_option("--url", flags.url, "The server: http://host:port or https://host")
      ->required()
      ->check([](const std::string& text) { return complaint(bench::parse_url(text)); });
  CLI::Option* const rate =
      command.add_option("--rate", flags.rate, "Requests a second, as a Poisson process; inf: all at once")
          ->check(check_rate);
  CLI::Option* const concurrency =
      command.add_option("--concurrency", flags.concurrency, "Keep so many requests running")
          ->check(CLI::Range(1, 1 << 20));
  rate->excludes(concurrency);
  command.add_option("--requests", flags.requests, "How many; absent: 100, or all of the trace")
      ->check(CLI::Range(1, 1 << 24));
  command.add_option("--warmup", flags.warmup, "Requests sent before and not counted")->check(CLI::Range(0, 1 << 20));
  command.add_option("--input-tokens", flags.input_tokens, "Prompt length: N, or A-B for any between")
      ->check(check_length);
  command.add_option("--output-tokens", flags.output_tokens, "Answer length: N, or A-B for any between")
      ->check(check_length);
  command
      .add_option("--shared-prefix", flags.shared_prefix,
                  "The first N tokens are the same in all prompts (with --trace: N more tokens before each)")
      ->check(CLI::Range(0, 1 << 24));
  command.add_option("--trace", flags.trace,
                     "Lengths and arrivals from Azure's CSV or Mooncake's JSON lines, shared prefixes included; with "
                     "--rate or --concurrency its order and lengths alone");
  command.add_option("--time-scale", flags.time_scale, "Multiplies the trace's times: 2 is half the rate")
      ->check(CLI::PositiveNumber);
  command.add_option("--length-scale", flags.length_scale, "Multiplies the trace's lengths and shared blocks")
      ->check(CLI::PositiveNumber);
  command.add_option("--seed", flags.seed, "Of prompts, lengths and arrivals; with a temperature of answers too");
}

void add_request_flags(CLI::App& command, BenchServeFlags& flags) {
  command.add_option("--model", flags.model, "Name of the model; absent: the first that the server lists");
  command.add_option("--endpoint", flags.endpoint, "completions, or chat, which needs --text")
      ->check(CLI::IsMember({"completions", "chat"}));
  command.add_option("--text", flags.text, "Make prompts of this file's words instead of token ids");
  command.add_option("--vocab", flags.vocab, "Size of the vocabulary; absent: as the server lists it")
      ->check(CLI::Range(1, 1 << 30));
  command
      .add_option("--first-id", flags.first_id,
                  "Draw ids from here on, with --vocab up to its end; absent: a range that special tokens avoid")
      ->check(CLI::Range(0, 1 << 30));
  command.add_option("--temperature", flags.temperature, "Of the answers")->check(CLI::Range(0.0, 100.0));
  command.add_option("--top-p", flags.top_p, "Of the answers")->check(CLI::Range(0.0, 1.0));
  command.add_flag("--stop-at-eos", flags.stop_at_eos, "Let answers end early (ignore_eos is sent otherwise)");
  command.add_option("--extra-body", flags.extra_body, "A JSON object, added to each request");
  CLI::Option* const file = command.add_option("--api-key-file", flags.api_key_file, "File with the API key");
  command.add_option("--api-key-env", flags.api_key_env, "Environment variable with the API key")->excludes(file);
  CLI::Option* const insecure =
      command.add_flag("--insecure", flags.insecure, "Do not verify the server's certificate");
  command.add_option("--ca-file", flags.ca_file, "Certificates to trust, as PEM")->excludes(insecure);
  command.add_option("--timeout", flags.timeout, "Seconds for a request as a whole")->check(CLI::PositiveNumber);
}

}  // namespace

void add_bench_serve(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<BenchServeFlags>();
  CLI::App* command = app.add_subcommand("bench-serve", "Load test of an OpenAI-compatible server");
  add_load_flags(*command, *flags);
  add_request_flags(*command, *flags);
  command->add_option("--slo", flags->slo, "Limits in seconds for goodput: ttft:0.5,tpot:0.05,e2e:10")
      ->check([](const std::string& text) { return complaint(bench::parse_slo(text)); });
  command->add_option("--save", flags->save, "Write a JSON line for each request to this file");
  command->add_flag("--json", flags->json, "Print one JSON document");
  command->callback([flags, &chosen] {
    if (flags->rate == 0 && flags->concurrency == 0 && flags->trace.empty()) {
      throw CLI::ValidationError("bench-serve", "one of --rate, --concurrency and --trace is needed");
    }
    if (flags->endpoint == "chat" && flags->text.empty()) {
      throw CLI::ValidationError("--endpoint chat", "needs --text: chats are text");
    }
    if (flags->trace.empty() && (flags->time_scale != 1 || flags->length_scale != 1)) {
      throw CLI::ValidationError("--time-scale and --length-scale", "are for --trace");
    }
    chosen = [flags] { return run(*flags); };
  });
}

}  // namespace millrace::cli
