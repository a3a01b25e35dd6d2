// SPDX-License-Identifier: Apache-2.0
// Routes, admission, answers of the small endpoints. Generation is in service_generation.cpp.
#include "server/service.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "server/answer_constraint.h"
#include "server/api_error.h"
#include "server/page.h"
#include "server/route.h"

namespace quatrain::server {
namespace {

double since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

bool starts_with_nocase(std::string_view text, std::string_view prefix) {
  return text.size() >= prefix.size() &&
         std::equal(prefix.begin(), prefix.end(), text.begin(), [](char a, char b) {
           return a == (b >= 'A' && b <= 'Z' ? static_cast<char>(b + 32) : b);
         });
}

// What OpenAI has and this server has not.
constexpr std::string_view kNotImplemented[] = {"/v1/embeddings", "/v1/rerank",    "/v1/audio",
                                                "/v1/images",     "/v1/responses", "/v1/messages",
                                                "/v1/moderations"};

}  // namespace

const Service::Route* Service::find_route(std::string_view path) {
  using S = Service;
  static const Route kRoutes[] = {
      {"/v1/chat/completions", "POST", {}, {}, true, true},
      {"/v1/completions", "POST", {}, {}, true, true},
      {"/v1/models", "GET", &S::get_models, {}, true, true},
      {"/health", "GET", &S::get_health, {}, false, false},
      {"/metrics", "GET", &S::get_metrics, {}, false, false},
      {"/tokenize", "POST", {}, &S::post_tokenize, true, true},
      {"/detokenize", "POST", {}, &S::post_detokenize, true, true},
      {"/version", "GET", &S::get_version, {}, true, false},
      {"/load", "GET", &S::get_load, {}, true, true},
      {"/", "GET", &S::get_page, {}, false, false},
  };
  for (const Route& route : kRoutes)
    if (path == route.path || (route.path == "/v1/models" && path.starts_with("/v1/models/")))
      return &route;
  return nullptr;
}

Service::Service(ServiceOptions options)
    : options_(std::move(options)),
      keys_(options_.api_keys),
      defaults_(options_.defaults),
      created_(static_cast<std::int64_t>(std::time(nullptr))) {
  QT_CHECK(!options_.model_names.empty(), "a served model must have a name");
  workers_ = std::make_unique<WorkerPool>(std::max<std::size_t>(1, options_.workers),
                                          options_.max_waiting_tasks);
}

Service::~Service() { close(); }

void Service::close() {
  workers_.reset();
  if (drainer_.joinable()) drainer_.join();
  if (mailbox_) mailbox_->close();
  jobs_.clear();
}

void Service::attach(HttpServer& server) {
  server_ = &server;
  mailbox_ = std::make_shared<Mailbox>(server);
  server.every(std::chrono::seconds(1), [this] { tick(); });
}

void Service::set_progress(double share, const std::string& what) {
  const std::lock_guard lock(progress_mutex_);
  progress_share_ = share;
  progress_what_ = what;
}

void Service::set_ready(Engine& engine, const Tokenizer& tokenizer) {
  auto vocabulary = std::make_shared<const AnswerVocabulary>(tokenizer);
  server_->post([this, &engine, &tokenizer, vocabulary = std::move(vocabulary)] {
    defaults_.vocabulary = vocabulary;
    defaults_.max_model_len = engine.max_model_len();
    defaults_.vocab_size = engine.vocab_size();
    tokenizer_ = &tokenizer;
    engine_ = &engine;
  });
}

HttpResponse Service::error_response(const ApiError& error) const {
  HttpResponse response{error.status(), "application/json", error_json(error)};
  if (error.status() == 503 || error.status() == 429)
    response.fields.emplace_back("Retry-After", std::to_string(retry_after()));
  if (error.status() == 401) response.fields.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse Service::fault(int status, std::string_view message) {
  ++metrics_.http_requests[{"-", "-", status}];
  return error_response(ApiError(status, std::string(message)));
}

void Service::check_route(const HttpRequest& request) const {
  const std::string_view path = request.path();
  const Route* route = find_route(path);
  if (route == nullptr || (path == "/" && !options_.page)) {
    for (const auto known : kNotImplemented)
      if (path.starts_with(known))
        throw ApiError(501, fmt::format("{} is not implemented by this server", known));
    throw ApiError(404, "there is nothing at this path");
  }
  if (request.method != route->method)
    throw ApiError(405, fmt::format("{} takes {} requests", route->path, route->method));
  const auto* type = request.field("content-type");
  if (route->method == "POST" && type != nullptr && !starts_with_nocase(*type, "application/json"))
    throw ApiError(415, "the body must be application/json");
}

void Service::check_key(const HttpRequest& request) const {
  const Route* route = find_route(request.path());
  if (keys_.empty()) return;
  const bool is_metrics = route->path == "/metrics" && options_.protect_metrics;
  if (!route->needs_key && !is_metrics) return;
  std::string_view key;
  if (const auto* header = request.field("authorization");
      header != nullptr && starts_with_nocase(*header, "bearer "))
    key = std::string_view(*header).substr(7);
  else if (const auto* other = request.field("x-api-key"); other != nullptr)
    key = *other;
  if (!keys_.accepts(key))
    throw ApiError(401, "the API key is missing or wrong", "", "invalid_api_key");
}

// What can be refused before a body is read, let alone tokenised.
void Service::check_admission(const HttpRequest& request) const {
  const Route* route = find_route(request.path());
  if (!route->needs_model) return;
  if (engine_ == nullptr) throw ApiError(503, "the model is still being loaded", "", "loading");
  if (request.method != "POST") return;
  if (is_draining_) throw ApiError(503, "the server is shutting down", "", "shutting_down");
  if (!route->is_generation()) return;
  const EngineStats stats = engine_->stats();
  // Text has about four bytes a token. A request longer than the bound runs when nothing waits.
  std::int64_t tokens = 0;
  if (const auto* length = request.field("content-length"); length != nullptr)
    tokens = std::strtoll(length->c_str(), nullptr, 10) / 4;
  const auto preparing = static_cast<std::int64_t>(preparing_);
  const bool is_full =
      stats.waiting + preparing >= options_.max_queued_requests ||
      (stats.waiting > 0 && stats.waiting_tokens + tokens > options_.max_queued_tokens);
  if (is_full) throw ApiError(503, "the server is full: too many requests wait", "", "server_full");
}

std::optional<HttpResponse> Service::check_head(const HttpRequest& request) {
  try {
    if (request.method == "OPTIONS" && !options_.cors_origins.empty()) return std::nullopt;
    check_route(request);
    check_key(request);
    check_admission(request);
    return std::nullopt;
  } catch (const ApiError& error) {
    HttpResponse response = error_response(error);
    if (error.status() == 405)
      response.fields.emplace_back("Allow", std::string(find_route(request.path())->method));
    for (auto& field : common_fields(request)) response.fields.push_back(std::move(field));
    count(request, error.status(), 0);
    return response;
  }
}

HttpFields Service::common_fields(const HttpRequest& request) const {
  HttpFields fields;
  // Given back so that a client finds its request in the logs of both sides.
  if (const auto* id = request.field("x-request-id"); id != nullptr && id->size() <= 128)
    fields.emplace_back("X-Request-Id", *id);
  if (const auto* origin = request.field("origin"); origin != nullptr) {
    const auto& allowed = options_.cors_origins;
    const bool any = std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
    if (any || std::find(allowed.begin(), allowed.end(), *origin) != allowed.end()) {
      fields.emplace_back("Access-Control-Allow-Origin", any ? "*" : *origin);
      fields.emplace_back("Vary", "Origin");
    }
  }
  return fields;
}

HttpResponse Service::preflight(const HttpRequest& request) const {
  HttpResponse response{204, "", "", common_fields(request)};
  response.fields.emplace_back("Access-Control-Allow-Methods", "GET, POST");
  response.fields.emplace_back("Access-Control-Allow-Headers",
                               "Authorization, Content-Type, X-Api-Key, X-Request-Id");
  response.fields.emplace_back("Access-Control-Max-Age", "600");
  return response;
}

void Service::count(const HttpRequest& request, int status, double seconds) {
  const Route* route = find_route(request.path());
  const bool is_known = route != nullptr && (request.method == "GET" || request.method == "POST");
  const std::string path(route != nullptr ? route->path : "-");
  ++metrics_.http_requests[{path, is_known ? request.method : "-", status}];
  metrics_.http_time.observe(seconds);
  if (log_level() < LogLevel::kDebug) return;
  log_event(LogLevel::kDebug, "request",
            fmt::format("{} {} {} {:.1f} ms from {}", request.method, path, status, seconds * 1e3,
                        request.peer),
            fmt::format(R"("method":{},"path":{},"status":{},"ms":{:.1f},"peer":{})",
                        json_quote(request.method), json_quote(path), status, seconds * 1e3,
                        json_quote(request.peer)));
}

void Service::answer(const CallPtr& call, HttpResponse response) {
  count(call->request, response.status, since(call->begin));
  for (auto& field : common_fields(call->request)) response.fields.push_back(std::move(field));
  call->exchange->respond(std::move(response));
}

void Service::handle(HttpRequest&& request, std::shared_ptr<Exchange> exchange) {
  auto call = std::make_shared<Call>(Call{find_route(request.path()), std::move(request),
                                          std::move(exchange), std::chrono::steady_clock::now()});
  if (call->request.method == "OPTIONS") return answer(call, preflight(call->request));
  const Route& route = *call->route;
  if (route.get != nullptr) return answer(call, (this->*route.get)(call->request));
  ++preparing_;
  const bool is_taken = workers_->submit([this, call] {
    if (call->route->is_generation()) return prepare(call);
    HttpResponse response;
    try {
      response = (this->*call->route->post)(call->request);
    } catch (const ApiError& error) {
      response = error_response(error);
    } catch (const std::exception& error) {
      log_error("{}: {}", call->route->path, error.what());
      response = error_response(ApiError(500, "the request could not be answered"));
    }
    server_->post([this, call, response = std::move(response)]() mutable {
      --preparing_;
      answer(call, std::move(response));
    });
  });
  if (is_taken) return;
  --preparing_;
  answer(call, error_response(ApiError(503, "the server is full: too many requests are being read",
                                       "", "server_full")));
}

HttpResponse Service::get_health(const HttpRequest& /*request*/) {
  if (is_draining_) return {503, "application/json", R"({"status":"draining"})"};
  if (engine_ != nullptr) return {200, "application/json", R"({"status":"ok"})"};
  const std::lock_guard lock(progress_mutex_);
  return {503,
          "application/json",
          fmt::format(R"({{"status":"loading","progress":{:.3f},"step":{}}})", progress_share_,
                      json_quote(progress_what_)),
          {{"Retry-After", "1"}}};
}

HttpResponse Service::get_models(const HttpRequest& request) {
  std::string list, wanted;
  if (request.path().size() > std::string_view("/v1/models/").size())
    wanted = request.path().substr(std::string_view("/v1/models/").size());
  for (const auto& name : options_.model_names) {
    const std::string model = fmt::format(
        R"({{"id":{},"object":"model","created":{},"owned_by":"quatrain","max_model_len":{}}})",
        json_quote(name), created_, defaults_.max_model_len);
    if (name == wanted) return {200, "application/json", model};
    if (!list.empty()) list += ',';
    list += model;
  }
  if (!wanted.empty())
    return error_response(
        ApiError(404, "there is no model with this name", "model", "model_not_found"));
  return {200, "application/json", R"({"object":"list","data":[)" + list + "]}"};
}

HttpResponse Service::get_metrics(const HttpRequest& /*request*/) {
  const EngineStats stats = engine_ != nullptr ? engine_->stats() : EngineStats();
  return {
      200, "text/plain; version=0.0.4; charset=utf-8",
      metrics_.text(stats, options_.model_names[0], server_->connections(), options_.vllm_metrics)};
}

HttpResponse Service::get_version(const HttpRequest& /*request*/) {
  return {200, "application/json",
          fmt::format(R"({{"version":{}}})", json_quote(options_.version))};
}

HttpResponse Service::get_load(const HttpRequest& /*request*/) {
  const EngineStats s = engine_->stats();
  return {200, "application/json",
          fmt::format(R"({{"server_load":{},"running":{},"waiting":{},"waiting_tokens":{},)"
                      R"("kv_blocks_used":{},"kv_blocks_cached":{},"kv_blocks_total":{},)"
                      R"("prompt_tokens":{},"output_tokens":{},"draining":{}}})",
                      s.running + s.waiting, s.running, s.waiting, s.waiting_tokens,
                      s.kv_blocks_used, s.kv_blocks_cached, s.kv_blocks_total, s.prompt_tokens,
                      s.output_tokens, is_draining_)};
}

HttpResponse Service::get_page(const HttpRequest& /*request*/) {
  return {200,
          "text/html; charset=utf-8",
          std::string(kPage),
          {{"Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"},
           {"X-Content-Type-Options", "nosniff"}}};
}

}  // namespace quatrain::server
