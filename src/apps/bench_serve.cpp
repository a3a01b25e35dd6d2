// SPDX-License-Identifier: Apache-2.0
// quatrain bench serve: load on a server that speaks OpenAI's API, and how it bears it.
#include <CLI/CLI.hpp>
#include <memory>
#include <random>
#include <sstream>

#include "apps/bench.h"
#include "apps/load_report.h"
#include "apps/text_file.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/progress.h"

namespace quatrain::apps {
namespace {

struct LoadFlags {
  LoadOptions load;
  std::string base_url = "http://127.0.0.1:8000";
  std::string model;
  std::string endpoint = "completions";
  std::string prompt_file;
  std::int64_t input_tokens = 128, shared_tokens = 0, output_tokens = 64;
  double temperature = 1;
  bool stream = true;
  std::string goals;
  double interval = 0;
  std::string format = "text";
  std::string save;
};

// Ids that any vocabulary of text has: above the bytes, below the rare words.
constexpr std::int32_t kFirstId = 300, kLastId = 1999;

// What request i asks. The same flags give the same requests.
class Bodies {
 public:
  explicit Bodies(const LoadFlags& flags) : flags_(flags) {
    if (flags.prompt_file.empty()) return;
    std::istringstream lines(read_text(flags.prompt_file));
    for (std::string line; std::getline(lines, line);)
      if (!line.empty()) prompts_.push_back(json_quote(line));
    if (prompts_.empty()) fail("{}: expected a prompt a line, found none", flags.prompt_file);
  }

  std::string operator()(std::int64_t index) const {
    std::string out = "{";
    if (!flags_.model.empty()) out += fmt::format(R"("model":{},)", json_quote(flags_.model));
    if (flags_.endpoint == "chat")
      out += fmt::format(R"("messages":[{{"role":"user","content":{}}}],)", prompt(index));
    else
      out += fmt::format(R"("prompt":{},)", prompt(index));
    out += fmt::format(R"("max_tokens":{},"ignore_eos":true,"temperature":{},"seed":{})",
                       flags_.output_tokens, flags_.temperature, index);
    if (flags_.stream) out += R"(,"stream":true,"stream_options":{"include_usage":true})";
    return out + "}";
  }

 private:
  // A line of the file; or random ids, for a chat random words.
  std::string prompt(std::int64_t index) const {
    if (!prompts_.empty()) return prompts_[static_cast<std::size_t>(index) % prompts_.size()];
    const bool is_chat = flags_.endpoint == "chat";
    std::string list;
    std::mt19937_64 own(static_cast<std::uint64_t>(index) + 1), shared(0);
    std::uniform_int_distribution<std::int32_t> ids(kFirstId, kLastId);
    for (std::int64_t i = 0; i < flags_.input_tokens; ++i) {
      const std::int32_t id = ids(i < flags_.shared_tokens ? shared : own);
      list += fmt::format("{}{}", list.empty() ? "" : is_chat ? " " : ",", id);
    }
    return is_chat ? json_quote(list) : "[" + list + "]";
  }

  const LoadFlags& flags_;
  std::vector<std::string> prompts_;  // as JSON
};

// "http://host:port" → the two.
void read_url(const std::string& url, LoadOptions& load) {
  const std::string scheme = "http://";
  std::string rest = url.starts_with(scheme) ? url.substr(scheme.size()) : "";
  while (rest.ends_with('/')) rest.pop_back();
  const auto colon = rest.rfind(':');
  const int port = colon == rest.npos ? 80 : std::atoi(rest.c_str() + colon + 1);
  load.host = rest.substr(0, colon);
  load.port = static_cast<std::uint16_t>(port);
  if (load.host.empty() || port < 1 || port > 65535)
    fail("--base-url: expected http://HOST:PORT, found {}", url);
}

void bench(LoadFlags& flags) {
  LoadOptions& load = flags.load;
  read_url(flags.base_url, load);
  const LoadGoals goals = parse_goals(flags.goals);
  if (flags.endpoint == "models") {
    load.path = "/v1/models";
    load.method = "GET";
  } else {
    load.path = flags.endpoint == "chat" ? "/v1/chat/completions" : "/v1/completions";
    load.body = Bodies(flags);
  }
  if (load.rate <= 0 && load.concurrency <= 0) load.concurrency = 16;
  ProgressOptions shown = ProgressOptions::for_stderr();
  shown.unit = "requests";
  ProgressBar bar("sending", load.requests, shown);
  std::int64_t seen = 0;
  load.on_progress = [&](std::int64_t done) { bar.advance(done - std::exchange(seen, done)); };
  const auto records = run_load(load);
  load.on_progress(static_cast<std::int64_t>(records.size()));
  bar.finish();
  const LoadReport report = make_report(records, goals, flags.interval);
  if (report.status.size() == 1 && report.status.contains(0))
    fail("{}: no request was answered", flags.base_url);
  const std::string json = format_json(report, flags.base_url, load);
  fmt::print("{}", flags.format == "json" ? json : format_text(report));
  if (!flags.save.empty()) write_text_file(flags.save, json);
}

}  // namespace

void add_bench_serve(CLI::App& bench_verb) {
  auto flags = std::make_shared<LoadFlags>();
  CLI::App* verb = bench_verb.add_subcommand("serve", "Load on a server of OpenAI's API");
  verb->add_option("--base-url", flags->base_url, "http://HOST:PORT")->capture_default_str();
  verb->add_option("--model", flags->model, "As the server names it; default: not said");
  verb->add_option("--api-key", flags->load.api_key, "Sent as a bearer token");
  verb->add_option("--endpoint", flags->endpoint, "completions, chat, or models for GET /v1/models")
      ->check(CLI::IsMember({"completions", "chat", "models"}))
      ->capture_default_str();
  flags->load.requests = 1000;
  verb->add_option("-n,--num-prompts", flags->load.requests, "Requests in all")
      ->check(CLI::Range(1, 100'000'000))
      ->capture_default_str();
  verb->add_option("--max-concurrency", flags->load.concurrency,
                   "Requests at once; default: 16, with --request-rate no bound")
      ->check(CLI::Range(1, 60'000));
  verb->add_option("--request-rate", flags->load.rate,
                   "Requests started a second, at random moments")
      ->check(CLI::Range(1e-3, 1e6));
  verb->add_option("--duration", flags->load.seconds, "Seconds after which none is started")
      ->check(CLI::Range(0.0, 1e6));
  verb->add_option("--timeout", flags->load.timeout, "Seconds after which a request is given up")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str();
  verb->add_option("--input-len", flags->input_tokens, "Tokens of a prompt, drawn at random")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  verb->add_option("--shared-prefix", flags->shared_tokens, "How many of them all prompts share")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  verb->add_option("--prompts", flags->prompt_file, "A file with a prompt a line, instead");
  verb->add_option("--output-len", flags->output_tokens, "Tokens of each answer")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  verb->add_option("--temperature", flags->temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  verb->add_flag("--stream,!--no-stream", flags->stream, "Whether answers are streamed")
      ->capture_default_str();
  verb->add_option("--seed", flags->load.seed, "Of the random moments")->capture_default_str();
  verb->add_option("--goodput", flags->goals,
                   "What a good request keeps, in ms: ttft:200,tpot:50,e2el:3000");
  verb->add_option("--token-interval", flags->interval,
                   "Seconds between tokens of a simulated server: how late they come is measured");
  verb->add_option("-o,--output", flags->format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->add_option("--save", flags->save, "A file that gets the JSON");
  verb->callback([flags] { bench(*flags); });
}

}  // namespace quatrain::apps
