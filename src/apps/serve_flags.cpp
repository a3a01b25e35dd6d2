// SPDX-License-Identifier: Apache-2.0
#include "apps/serve_flags.h"

#include <simdjson.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "apps/text_file.h"
#include "core/log.h"

namespace quatrain::apps {
namespace {

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(std::llround(seconds * 1000));
}

// One of the members that both Hugging Face's files and requests have; out of range: an error.
void read_default(const simdjson::dom::element& root, std::string_view key, double low, double high,
                  float& x) {
  double value = 0;
  if (root.at_key(key).get(value)) return;
  if (!(value >= low && value <= high))
    fail("generation_config.json: {}: expected {} to {}, found {}", key, low, high, value);
  x = static_cast<float>(value);
}

}  // namespace

void ServeFlags::add_to(CLI::App& app) {
  model.options.max_num_seqs = 16;
  model.add_to(app);
  add_server(app);
  add_limits(app);
  add_engine(app);
  add_other(app);
}

void ServeFlags::add_server(CLI::App& app) {
  app.add_option("--host", http.host, "Address to listen on")->capture_default_str();
  app.add_option("--port", http.port, "0 takes any free port")->capture_default_str();
  app.add_option("-a,--served-model-name,--alias", service.model_names,
                 "Name in the API, repeatable; default: the folder's");
  app.add_option("--api-key", service.api_keys, "Clients must send one of these, repeatable");
  app.add_option("--api-key-file", api_key_file, "A file with one key a line");
  app.add_flag("--metrics-need-key", service.protect_metrics, "/metrics needs a key too");
  app.add_option("--ssl-certfile", http.certificate_file, "Certificate chain (PEM): serve TLS");
  app.add_option("--ssl-keyfile,--ssl-key-file", http.key_file, "Its private key (PEM)");
  app.add_option("--cors-origins,--allowed-origins", service.cors_origins,
                 "Origins whose pages may call, repeatable; * for all; default: none")
      ->delimiter(',');
  app.add_flag("--ui,!--no-ui", service.page, "Whether / shows the page")->capture_default_str();
  app.add_option("--shutdown-timeout", shutdown_timeout,
                 "Seconds that running requests have after SIGTERM")
      ->check(CLI::Range(0, 86'400))
      ->capture_default_str();
}

void ServeFlags::add_limits(CLI::App& app) {
  const auto seconds = [&app](const std::string& name, double& value, const std::string& text) {
    app.add_option(name, value, text)->check(CLI::Range(0.05, 86'400.0))->capture_default_str();
  };
  const auto count = [&app](const std::string& name, std::size_t& value, const std::string& text) {
    app.add_option(name, value, text)->capture_default_str();
  };
  count("--max-request-line", http.limits.request_line, "Bytes of a request line");
  count("--max-header-size", http.limits.header, "Bytes of a header");
  count("--max-headers", http.limits.header_count, "Fields of a header");
  count("--max-body-size", http.limits.body, "Bytes of a body");
  count("--max-body-bytes", http.max_body_bytes, "Bytes of all bodies being read");
  count("--max-connections", http.max_connections, "Connections");
  count("--max-connections-per-address", http.max_connections_per_address,
        "Connections of one address; 0: no bound");
  count("--write-buffer", http.write_buffer,
        "Bytes waiting for a slow reader before it is cut off");
  count("--min-body-rate", http.min_body_rate, "Bytes a second after --body-timeout");
  seconds("--header-timeout", header_timeout, "Seconds for a header");
  seconds("--body-timeout", body_timeout, "Seconds for a body, at least");
  seconds("--idle-timeout", idle_timeout, "Seconds between requests of a connection");
  seconds("--write-timeout", write_timeout, "Seconds without a byte taken by the client");
  seconds("--keep-alive-interval", keep_alive, "Seconds of silence before a comment in a stream");
}

void ServeFlags::add_engine(CLI::App& app) {
  app.add_option("--max-num-seqs,--parallel,--max-batch-size", model.options.max_num_seqs,
                 "Requests that run at once")
      ->check(CLI::Range(1, 65'536))
      ->capture_default_str();
  app.add_option("--kv-cache-tokens", kv_cache_tokens,
                 "Tokens that all requests together may hold; 0: every one a full context")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--max-num-queued-reqs,--max-queued-requests", service.max_queued_requests,
                 "Requests that may wait")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--max-num-queued-tokens", service.max_queued_tokens,
                 "Prompt tokens of the requests that wait")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--kv-blocks,--num-gpu-blocks-override", model.options.kv_blocks,
                 "The same in blocks of 128 tokens")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 32))
      ->excludes(app.get_option("--kv-cache-tokens"));
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", prefix_caching,
               "Whether prompts resume from prefixes that were computed before")
      ->capture_default_str();
  app.add_option("--prefix-snapshots", prefix_snapshots,
                 "States kept to resume shared prefixes from; 0: no prefix cache")
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  app.add_option(
         "--snapshot-interval", snapshot_interval,
         "Tokens of a prompt between them, a multiple of 128, and where a chunk ends anyway; "
         "0: only there. Unset: 128 on the CPU, 0 on a GPU, which wants long chunks")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 30));
  app.add_option("--workers", service.workers, "Threads that read and tokenise requests")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--simulate", simulate,
                 "No model, only its tokenizer: requests are answered with so many tokens a second")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--simulate-text", simulate_text,
                 "What --simulate answers, special tokens included, again and again; default: the "
                 "prompt")
      ->needs(app.get_option("--simulate"));
}

void ServeFlags::add_other(CLI::App& app) {
  app.add_option("--thinking", thinking, "Whether chats think when they do not say")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option("--reasoning-effort", effort, "How long, when they do not say")
      ->check(CLI::IsMember({"low", "high", "max"}))
      ->capture_default_str();
  app.add_option("--effort-table", effort_table,
                 "What the efforts mean: to preview checkpoints or to those of the 0731 type")
      ->check(CLI::IsMember({"preview", "0731"}))
      ->capture_default_str();
  app.add_flag("--reasoning-alias", service.reasoning_alias,
               "Send `reasoning` beside `reasoning_content`");
  app.add_flag("--vllm-metrics,!--no-vllm-metrics", service.vllm_metrics,
               "Whether /metrics has vllm: names too")
      ->capture_default_str();
  app.add_option("--log-level", log_level, "error, warn, info or debug (a line per request)")
      ->check(CLI::IsMember({"error", "warn", "info", "debug"}))
      ->capture_default_str();
  app.add_flag("--log-jsonl", log_json, "Every line of the log is a JSON object");
  app.add_option("--stats-interval", stats_interval, "Seconds between lines of statistics")
      ->check(CLI::Range(1.0, 86'400.0))
      ->capture_default_str();
  // Typed by users of vLLM; V4's formats are the only ones here.
  for (const char* name : {"--reasoning-parser", "--tool-call-parser", "--tokenizer-mode"})
    app.add_option(name, ignored, "Accepted, without effect")
        ->check(CLI::IsMember({"deepseek_v4", "auto"}));
  app.add_flag("--enable-auto-tool-choice")->description("Accepted, without effect");
}

// Sampling of requests that do not say: as the checkpoint recommends.
void ServeFlags::read_generation_config() {
  const auto path = std::filesystem::path(model.model) / "generation_config.json";
  if (!std::filesystem::exists(path)) return;
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  const auto text = simdjson::padded_string::load(path.string());
  if (text.error() || parser.parse(text.value_unsafe()).get(root))
    fail("{}: expected JSON", path.string());
  RequestSampling& sampling = service.defaults.sampling;
  read_default(root, "temperature", 0, 2, sampling.temperature);
  read_default(root, "top_p", 0.001, 1, sampling.top_p);
  read_default(root, "min_p", 0, 1, sampling.min_p);
  read_default(root, "repetition_penalty", 0.01, 10, sampling.repetition_penalty);
  log_info("{}: requests that do not say get temperature {}, top_p {}", path.string(),
           sampling.temperature, sampling.top_p);
}

void ServeFlags::resolve() {
  set_log_level(*log_level_from_name(log_level));
  if (log_json) set_log_format(LogFormat::kJson);
  http.header_timeout = milliseconds(header_timeout);
  http.body_timeout = milliseconds(body_timeout);
  http.idle_timeout = milliseconds(idle_timeout);
  http.write_timeout = milliseconds(write_timeout);
  service.keep_alive = milliseconds(keep_alive);
  service.stats_interval = milliseconds(stats_interval);
  service.version = QUATRAIN_VERSION;
  if (service.model_names.empty()) {
    const auto folder = std::filesystem::weakly_canonical(model.model);
    service.model_names.push_back(folder.filename().string());
  }
  if (!api_key_file.empty()) {
    std::istringstream lines(read_text(api_key_file));
    for (std::string line; std::getline(lines, line);)
      if (!line.empty()) service.api_keys.push_back(line);
  }
  for (const auto& key : service.api_keys)
    if (key.empty()) fail("--api-key: expected a key, found an empty one");
  service.defaults.mode = thinking == "on" ? ThinkingMode::kThinking : ThinkingMode::kChat;
  service.defaults.effort = effort == "max"    ? ReasoningEffort::kMax
                            : effort == "high" ? ReasoningEffort::kHigh
                                               : ReasoningEffort::kLow;
  service.defaults.effort_table =
      effort_table == "0731" ? EffortTable::k0731 : EffortTable::kPreview;
  if (snapshot_interval && *snapshot_interval % kBlockTokens != 0)
    fail("--snapshot-interval: expected a multiple of {} tokens, found {}", kBlockTokens,
         *snapshot_interval);
  if (kv_cache_tokens > 0)
    model.options.kv_blocks = (kv_cache_tokens + kBlockTokens - 1) / kBlockTokens;
  model.options.make_room_for_sequences();
  read_generation_config();
}

}  // namespace quatrain::apps
