// SPDX-License-Identifier: Apache-2.0
// The part of Service that turns text into tokens and starts jobs, and what it does by the clock.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <numeric>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "server/api_error.h"
#include "server/route.h"
#include "server/service.h"
#include "tokenizer/unicode.h"

namespace quatrain::server {
namespace {

std::string valid_utf8(std::string bytes) {
  std::string text;
  drain_utf8(bytes, true, text);
  return text;
}

std::int64_t finished_requests(const EngineStats& stats) {
  return std::accumulate(std::begin(stats.finished), std::end(stats.finished), std::int64_t{0});
}

// Lengths and times of an answer; nothing of what was said.
void log_answer(const GenerationJob& job) {
  if (log_level() < LogLevel::kDebug) return;
  const Usage& usage = job.usage();
  log_event(LogLevel::kDebug, "answer",
            fmt::format("{} {} tokens in, {} out, {}, {:.2f} s", job.head().id, usage.prompt_tokens,
                        usage.completion_tokens, job.outcome(), job.seconds()),
            fmt::format(R"("id":{},"prompt_tokens":{},"cached_tokens":{},"output_tokens":{},)"
                        R"("outcome":{},"seconds":{:.3f})",
                        json_quote(job.head().id), usage.prompt_tokens, usage.cached_tokens,
                        usage.completion_tokens, json_quote(job.outcome()), job.seconds()));
}

}  // namespace

void Service::check_model(const std::string& name) const {
  const auto& names = options_.model_names;
  if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end())
    throw ApiError(404,
                   fmt::format("model: {} is not served here; /v1/models lists what is",
                               name.size() > 100 ? "this model" : name),
                   "model", "model_not_found");
}

std::vector<TokenIds> Service::tokenise(const GenerationRequest& request) const {
  std::vector<TokenIds> prompts;
  if (request.is_chat) {
    prompts.push_back(encode_chat(*tokenizer_, request.messages, request.chat));
  } else {
    for (const auto& prompt : request.prompts) {
      TokenIds ids;
      if (const auto* text = std::get_if<std::string>(&prompt)) {
        if (const auto bos = tokenizer_->bos_id()) ids.push_back(*bos);
        tokenizer_->encode_to(*text, AddedTokens::kText, ids);
      } else {
        ids = std::get<TokenIds>(prompt);
      }
      prompts.push_back(std::move(ids));
    }
  }
  const std::string param = request.is_chat ? "messages" : "prompt";
  for (const TokenIds& ids : prompts) {
    if (ids.empty()) throw ApiError(400, "prompt: expected at least one token", param);
    if (static_cast<std::int64_t>(ids.size()) >= defaults_.max_model_len)
      throw ApiError(400,
                     fmt::format("{}: {} tokens leave no room for an answer in a context of {}",
                                 param, ids.size(), defaults_.max_model_len),
                     param, "context_length_exceeded");
  }
  return prompts;
}

// On a worker: body → request → tokens, then back to the server's thread.
void Service::prepare(const CallPtr& call) {
  try {
    const bool is_chat = call->route->path == "/v1/chat/completions";
    GenerationRequest request = is_chat ? read_chat(call->request.body, defaults_)
                                        : read_completion(call->request.body, defaults_);
    std::string().swap(call->request.body);
    check_model(request.model);
    if (request.stream && !call->request.is_http11)
      throw ApiError(400, "stream: needs HTTP/1.1", "stream");
    auto prompts = tokenise(request);
    request.prompts.clear();
    request.messages.clear();
    server_->post(
        [this, call, request = std::move(request), prompts = std::move(prompts)]() mutable {
          --preparing_;
          start(call, std::move(request), std::move(prompts));
        });
    return;
  } catch (const ApiError& error) {
    server_->post([this, call, error] {
      --preparing_;
      answer(call, error_response(error));
    });
  } catch (const std::exception& error) {
    // The chat encoding refuses some conversations: the message names the fault.
    const bool is_fault = dynamic_cast<const Error*>(&error) != nullptr;
    if (!is_fault) log_error("{}: {}", call->route->path, error.what());
    const ApiError refusal(is_fault ? 400 : 500,
                           is_fault ? error.what() : "the request could not be answered");
    server_->post([this, call, refusal] {
      --preparing_;
      answer(call, error_response(refusal));
    });
  }
}

void Service::start(const CallPtr& call, GenerationRequest request, std::vector<TokenIds> prompts) {
  if (!call->exchange->is_open()) return count(call->request, 499, 0);
  if (is_draining_)
    return answer(
        call, error_response(ApiError(503, "the server is shutting down", "", "shutting_down")));
  AnswerHead head;
  head.is_chat = request.is_chat;
  head.id = random_id(request.is_chat ? "chatcmpl-" : "cmpl-");
  head.model = request.model.empty() ? options_.model_names[0] : request.model;
  head.created = static_cast<std::int64_t>(std::time(nullptr));
  head.reasoning_alias = options_.reasoning_alias;
  head.tokenizer = tokenizer_;
  JobContext context{
      *engine_,
      *tokenizer_,
      metrics_,
      mailbox_,
      [this] { return retry_after(); },
      [this, call](int status) {
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - call->begin;
        count(call->request, status, time.count());
      },
      [this](const GenerationJob& job) {
        log_answer(job);
        std::erase_if(jobs_, [&job](const auto& known) { return known.get() == &job; });
      }};
  auto job = std::make_shared<GenerationJob>(std::move(context), std::move(request),
                                             std::move(prompts), std::move(head),
                                             common_fields(call->request), call->exchange);
  jobs_.insert(job);
  job->start();
}

HttpResponse Service::post_tokenize(const HttpRequest& request) {
  const TokenizeRequest wanted = read_tokenize(request.body, defaults_);
  TokenIds ids;
  if (const auto* text = std::get_if<std::string>(&wanted.input)) {
    if (const auto bos = tokenizer_->bos_id(); bos && wanted.add_special_tokens)
      ids.push_back(*bos);
    tokenizer_->encode_to(*text, AddedTokens::kText, ids);
  } else {
    ids = encode_chat(*tokenizer_, std::get<std::vector<Message>>(wanted.input), wanted.chat);
  }
  std::string texts;
  for (const std::int32_t id : ids) {
    if (!wanted.with_texts) break;
    if (!texts.empty()) texts += ',';
    texts += json_quote(valid_utf8(std::string(tokenizer_->token(id))));
  }
  return {200, "application/json",
          fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[{}],"token_strs":{}}})",
                      ids.size(), defaults_.max_model_len, fmt::join(ids, ","),
                      wanted.with_texts ? fmt::format("[{}]", texts) : "null")};
}

HttpResponse Service::post_detokenize(const HttpRequest& request) {
  const TokenIds ids = read_detokenize(request.body, defaults_);
  return {200, "application/json",
          fmt::format(R"({{"prompt":{}}})", json_quote(valid_utf8(tokenizer_->decode(ids))))};
}

// Seconds until the queue should have room again.
int Service::retry_after() const {
  if (engine_ == nullptr || is_draining_) return 5;
  const auto waiting = static_cast<double>(engine_->stats().waiting);
  if (finish_rate_ <= 0) return 5;
  return static_cast<int>(std::clamp(waiting / finish_rate_ / 2, 1.0, 60.0));
}

// Once a second.
void Service::tick() {
  const auto now = std::chrono::steady_clock::now();
  const std::vector<std::shared_ptr<GenerationJob>> jobs(jobs_.begin(), jobs_.end());
  for (const auto& job : jobs) job->keep_alive(now, options_.keep_alive);
  if (engine_ != nullptr) {
    const std::int64_t finished = finished_requests(engine_->stats());
    finish_rate_ += (static_cast<double>(finished - last_finished_) - finish_rate_) / 16;
    last_finished_ = finished;
    if (now - last_stats_time_ >= options_.stats_interval) print_stats();
  }
}

// One line about the time since the line before; none while nothing happens.
void Service::print_stats() {
  const auto now = std::chrono::steady_clock::now();
  const double seconds = std::chrono::duration<double>(now - last_stats_time_).count();
  last_stats_time_ = now;
  const EngineStats s = engine_->stats();
  const EngineStats old = std::exchange(last_stats_, s);
  if (s.running + s.waiting == 0 && s.output_tokens == old.output_tokens) return;
  const auto rate = [seconds](std::int64_t n, std::int64_t before) {
    return static_cast<double>(n - before) / seconds;
  };
  const double prompt = rate(s.prompt_tokens, old.prompt_tokens);
  const double output = rate(s.output_tokens, old.output_tokens);
  const double kv = s.kv_blocks_total > 0 ? 100.0 * static_cast<double>(s.kv_blocks_used) /
                                                static_cast<double>(s.kv_blocks_total)
                                          : 0;
  const auto looked_up = std::max<std::int64_t>(1, s.prompt_tokens);
  const double hits =
      100.0 * static_cast<double>(s.cached_prompt_tokens) / static_cast<double>(looked_up);
  log_event(LogLevel::kInfo, "stats",
            fmt::format(
                "running {}, waiting {} · {:.1f} prompt tokens/s, {:.1f} tokens/s · KV {:.1f} % · "
                "prefix hits {:.1f} %",
                s.running, s.waiting, prompt, output, kv, hits),
            fmt::format(R"("running":{},"waiting":{},"prompt_tokens_per_s":{:.1f},)"
                        R"("output_tokens_per_s":{:.1f},"kv_used_percent":{:.1f},)"
                        R"("prefix_hit_percent":{:.1f},"preemptions":{},"finished":{})",
                        s.running, s.waiting, prompt, output, kv, hits, s.preemptions,
                        finished_requests(s)));
}

void Service::drain(std::chrono::milliseconds timeout) {
  if (engine_ == nullptr) return server_->stop();
  if (is_draining_) {  // asked again: now
    const std::vector<std::shared_ptr<GenerationJob>> jobs(jobs_.begin(), jobs_.end());
    for (const auto& job : jobs) job->abort();
    return;
  }
  is_draining_ = true;
  // Waiting for the engine must not stop the answers.
  drainer_ = std::jthread([this, timeout] {
    const bool all_finished = engine_->drain(timeout);
    server_->post([this, all_finished] {
      drained_ = all_finished;
      drain_end_ = std::chrono::steady_clock::now() + std::chrono::seconds(2);
      // Last bytes are on their way to the clients.
      server_->every(std::chrono::milliseconds(20), [this] {
        const bool is_late = std::chrono::steady_clock::now() >= drain_end_;
        if ((jobs_.empty() && preparing_ == 0 && server_->active() == 0) || is_late)
          server_->stop();
      });
    });
  });
}

}  // namespace quatrain::server
