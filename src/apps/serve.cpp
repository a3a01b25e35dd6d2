// SPDX-License-Identifier: Apache-2.0
// quatrain serve: an HTTP server with the API of OpenAI.
//
// The port answers from the first moment on, /health with 503 until the model is loaded and has run
// once. SIGTERM ends in order: see docs/http_api.md.
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/serve_flags.h"
#include "core/json.h"
#include "core/log.h"
#include "runtime/batching_engine.h"
#include "runtime/simulated_engine.h"
#include "server/http_server.h"
#include "server/service.h"

namespace quatrain::apps {
namespace {

using Clock = std::chrono::steady_clock;

// The model and the engine that runs it; or an engine without a model.
struct Served {
  std::unique_ptr<LoadedEngine> model;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Tokenizer> tokenizer;
};

Served load_simulation(const ServeFlags& flags) {
  Served served;
  served.tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(flags.model.model));
  SimulationOptions options;
  options.tokens_per_second = flags.simulate;
  options.max_num_seqs = flags.model.options.max_num_seqs;
  options.max_queued_requests = flags.service.max_queued_requests;
  options.max_queued_tokens = flags.service.max_queued_tokens;
  options.vocab_size = served.tokenizer->vocab_size();
  options.output = served.tokenizer->encode(flags.simulate_text, AddedTokens::kMatch);
  if (flags.model.options.max_model_len > 0)
    options.max_model_len = flags.model.options.max_model_len;
  served.engine = make_simulated_engine(options);
  return served;
}

Served load(const ServeFlags& flags, server::Service& service) {
  if (flags.simulate > 0) return load_simulation(flags);
  Served served;
  const auto tenth = std::make_shared<std::atomic<int>>(0);
  const auto on_progress = [&service, tenth](double share) {
    service.set_progress(share, "loading weights");
    // For machines, instead of the bar.
    const int now = static_cast<int>(share * 10);
    if (log_format() == LogFormat::kJson && tenth->exchange(now) < now)
      log_event(LogLevel::kInfo, "loading", "", fmt::format(R"("share":{:.2f})", share));
  };
  served.model = std::make_unique<LoadedEngine>(flags.model, LoadedEngine::Decorate(), on_progress);
  served.tokenizer =
      std::make_unique<Tokenizer>(load_tokenizer(flags.model.model, served.model->config()));
  const auto& ends = served.model->config().eos_token_ids;
  if (!served.tokenizer->eos_id() && !ends.empty())
    served.tokenizer->set_eos_id(static_cast<std::int32_t>(ends[0]));
  if (!served.tokenizer->bos_id())
    served.tokenizer->set_bos_id(static_cast<std::int32_t>(served.model->config().bos_token_id));
  SchedulerOptions options;
  options.max_queued_requests = flags.service.max_queued_requests;
  options.max_queued_tokens = flags.service.max_queued_tokens;
  options.prefix_snapshots = flags.prefix_caching ? flags.prefix_snapshots : 0;
  // A GPU runs hundreds of tokens in little more time than a few: the rest of a prompt behind a
  // snapshot would cost as much again as a short prompt.
  const Ops& ops = served.model->ops();
  const bool is_cpu = ops.backend_name() == "cpu";
  options.snapshot_interval = flags.snapshot_interval.value_or(is_cpu ? kBlockTokens : 0);
  if (!is_cpu) options.snapshot_gain = ops.prompt_rows();
  served.engine = make_engine(served.model->runner(), options);
  return served;
}

// One request from prompt to end, so that no client pays for what happens only once.
void warm_up(Engine& engine, const Tokenizer& tokenizer) {
  auto end = std::make_shared<std::promise<RequestEnd>>();
  EngineRequest request;
  request.prompt = tokenizer.encode("Once upon a time", AddedTokens::kText);
  request.sampling.temperature = 0;
  request.max_tokens = 2;
  const auto submitted = engine.submit(request, [end](RequestEvent&& event) {
    if (event.end) end->set_value(*event.end);
  });
  if (submitted.refusal) fail("the first request was refused: {}", submitted.message);
  if (end->get_future().get() == RequestEnd::kNonFinite)
    fail("the model's logits are not finite; `quatrain run --check` names the operation at fault");
}

// Ends the server's thread however this function is left.
class ServerThread {
 public:
  explicit ServerThread(server::HttpServer& http) : http_(http), thread_([&http] { http.run(); }) {}
  ~ServerThread() {
    if (thread_.joinable()) http_.stop();
  }
  void join() { thread_.join(); }

 private:
  server::HttpServer& http_;
  std::jthread thread_;
};

void print_ready(const ServeFlags& flags, const Engine& engine, std::uint16_t port,
                 Clock::time_point begin) {
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const EngineStats stats = engine.stats();
  const std::string url = fmt::format(
      "{}://{}:{}", flags.http.certificate_file.empty() ? "http" : "https", flags.http.host, port);
  const auto& service = flags.service;
  log_event(
      LogLevel::kInfo, "model",
      fmt::format("model {}: context {} tokens, {} sequences at once, {} KV blocks of 128 tokens "
                  "({:.1f} full contexts); at most {} requests or {} tokens wait",
                  service.model_names[0], engine.max_model_len(), flags.model.options.max_num_seqs,
                  stats.kv_blocks_total,
                  static_cast<double>(stats.kv_blocks_total) * 128 /
                      static_cast<double>(engine.max_model_len()),
                  service.max_queued_requests, service.max_queued_tokens),
      fmt::format(R"("model":{},"max_model_len":{},"max_num_seqs":{},"kv_blocks":{},)"
                  R"("max_queued_requests":{},"max_queued_tokens":{})",
                  json_quote(service.model_names[0]), engine.max_model_len(),
                  flags.model.options.max_num_seqs, stats.kv_blocks_total,
                  service.max_queued_requests, service.max_queued_tokens));
  const bool needs_key = !service.api_keys.empty();
  log_event(LogLevel::kInfo, "ready",
            fmt::format("serving at {} after {:.2f} s, {}", url, seconds,
                        needs_key ? "with API keys" : "no API key needed"),
            fmt::format(R"("url":{},"api_key":{},"seconds":{:.2f})", json_quote(url), needs_key,
                        seconds));
}

void serve(ServeFlags& flags) {
  const auto begin = Clock::now();
  flags.resolve();
  server::Service service(flags.service);
  server::HttpServer http(flags.http, service);
  service.attach(http);
  std::atomic<bool> is_ready = false;
  http.on_signal([&](int number) {
    if (!is_ready) std::_Exit(128 + number);  // loading cannot be interrupted
    const auto time =
        number == SIGINT ? std::chrono::seconds(5) : std::chrono::seconds(flags.shutdown_timeout);
    log_info("draining: {} s for what runs; a second signal ends it", time.count());
    service.drain(time);
  });
  // Members of `served` are used by the server's thread, so it ends first.
  Served served;
  ServerThread thread(http);
  served = load(flags, service);
  service.set_progress(1, "warming up");
  warm_up(*served.engine, *served.tokenizer);
  service.set_ready(*served.engine, *served.tokenizer);
  is_ready = true;
  print_ready(flags, *served.engine, http.port(), begin);
  thread.join();
  service.close();
  if (!service.drained()) fail("requests were given up when the server ended");
  log_info("ended: every request was finished");
}

}  // namespace

void add_serve(CLI::App& app) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* verb = app.add_subcommand("serve", "Serve the API of OpenAI over HTTP");
  flags->add_to(*verb);
  // The parser reads files for the whole command only: the flags of this verb stand in [serve].
  app.set_config("--config", "", "Read flags from a TOML file with a section for the verb");
  app.allow_config_extras(CLI::config_extras_mode::error);
  verb->fallthrough();
  verb->callback([flags] { serve(*flags); });
}

}  // namespace quatrain::apps
