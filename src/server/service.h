// SPDX-License-Identifier: Apache-2.0
// The API: which path does what, who may, when the server is full, ready or draining.
//
// Runs on the server's thread; requests are read and tokenised on workers.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "server/api_request.h"
#include "server/auth.h"
#include "server/generation_job.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/worker_pool.h"

namespace quatrain::server {

struct ServiceOptions {
  std::vector<std::string> model_names;  // at least one; the first is said in answers
  std::string version;
  std::vector<std::string> api_keys;      // none: no key is needed
  bool protect_metrics = false;           // /metrics needs a key too
  std::vector<std::string> cors_origins;  // none: no CORS; "*": any
  std::size_t workers = 2;
  std::size_t max_waiting_tasks = 4096;  // requests that wait for a worker
  std::int64_t max_queued_requests = 1024;
  std::int64_t max_queued_tokens = std::int64_t{1} << 20;
  RequestDefaults defaults;  // max_model_len and vocab_size come from the engine
  bool vllm_metrics = true;
  bool reasoning_alias = false;
  bool page = true;
  std::chrono::milliseconds keep_alive{15'000};      // silence before a comment in a stream
  std::chrono::milliseconds stats_interval{10'000};  // between lines of statistics
};

class Service final : public HttpHandler {
 public:
  explicit Service(ServiceOptions options);
  ~Service() override;

  /// Before the server runs; both live until it has ended.
  void attach(HttpServer& server);
  /// After the server's run() has ended, and before the engine goes: what is under way is dropped.
  void close();

  /// How far loading is, for /health. Any thread.
  void set_progress(double share, const std::string& what);
  /// From now on requests are served. Any thread; both outlive the server's run().
  void set_ready(Engine& engine, const Tokenizer& tokenizer);

  /// Refuses new requests, lets the others finish until the timeout, then stops the server; a
  /// second call gives them up at once. The server's thread. drained() says how it went.
  void drain(std::chrono::milliseconds timeout);
  /// Whether every request was finished when the server stopped.
  [[nodiscard]] bool drained() const { return drained_; }

  std::optional<HttpResponse> check_head(const HttpRequest& request) override;
  void handle(HttpRequest&& request, std::shared_ptr<Exchange> exchange) override;
  HttpResponse fault(int status, std::string_view message) override;

 private:
  struct Route;
  // A request on its way through the workers.
  struct Call {
    const Route* route;
    HttpRequest request;
    std::shared_ptr<Exchange> exchange;
    std::chrono::steady_clock::time_point begin;
  };
  using CallPtr = std::shared_ptr<Call>;

  static const Route* find_route(std::string_view path);
  void check_route(const HttpRequest& request) const;
  void check_key(const HttpRequest& request) const;
  void check_admission(const HttpRequest& request) const;
  [[nodiscard]] HttpResponse error_response(const class ApiError& error) const;
  [[nodiscard]] HttpFields common_fields(const HttpRequest& request) const;
  [[nodiscard]] HttpResponse preflight(const HttpRequest& request) const;
  void answer(const CallPtr& call, HttpResponse response);
  void count(const HttpRequest& request, int status, double seconds);

  HttpResponse get_health(const HttpRequest& request);
  HttpResponse get_models(const HttpRequest& request);
  HttpResponse get_metrics(const HttpRequest& request);
  HttpResponse get_version(const HttpRequest& request);
  HttpResponse get_load(const HttpRequest& request);
  HttpResponse get_page(const HttpRequest& request);
  // These run on a worker.
  HttpResponse post_tokenize(const HttpRequest& request);
  HttpResponse post_detokenize(const HttpRequest& request);
  void prepare(const CallPtr& call);
  std::vector<TokenIds> tokenise(const GenerationRequest& request) const;
  void check_model(const std::string& name) const;

  void start(const CallPtr& call, GenerationRequest request, std::vector<TokenIds> prompts);
  [[nodiscard]] int retry_after() const;
  void tick();
  void print_stats();

  const ServiceOptions options_;
  ApiKeys keys_;
  HttpServer* server_ = nullptr;
  Engine* engine_ = nullptr;
  const Tokenizer* tokenizer_ = nullptr;
  RequestDefaults defaults_;
  Metrics metrics_;
  std::shared_ptr<Mailbox> mailbox_;
  std::unordered_set<std::shared_ptr<GenerationJob>> jobs_;
  std::size_t preparing_ = 0;  // calls that workers have

  std::mutex progress_mutex_;
  double progress_share_ = 0;
  std::string progress_what_ = "starting";

  bool is_draining_ = false;
  bool drained_ = true;
  std::chrono::steady_clock::time_point drain_end_{};
  std::jthread drainer_;

  EngineStats last_stats_;
  std::chrono::steady_clock::time_point last_stats_time_ = std::chrono::steady_clock::now();
  double finish_rate_ = 0;  // requests a second, over the last minute or so
  std::int64_t last_finished_ = 0;
  const std::int64_t created_;  // seconds since 1970

  std::unique_ptr<WorkerPool> workers_;  // last: its threads use the others
};

}  // namespace quatrain::server
