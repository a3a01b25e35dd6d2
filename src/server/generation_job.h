// SPDX-License-Identifier: Apache-2.0
// One request for generation, from submission to its last byte: its choices, its answer.
//
// Lives on the server's thread; the engine's events reach it through the Mailbox.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/answer.h"
#include "server/api_response.h"
#include "server/http_server.h"
#include "server/metrics.h"

namespace quatrain::server {

class GenerationJob;

/// Carries the engine's events to the server's thread, all events of a step with one wake-up.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(HttpServer& server) : server_(&server) {}

  /// The engine's thread.
  void put(std::shared_ptr<GenerationJob> job, std::size_t choice, RequestEvent&& event);
  /// Nothing is delivered any more: the server is about to go.
  void close();

 private:
  struct Letter {
    std::shared_ptr<GenerationJob> job;
    std::size_t choice;
    RequestEvent event;
  };
  void deliver();

  std::mutex mutex_;
  HttpServer* server_;
  std::vector<Letter> letters_;
};

/// What a job needs of the service.
struct JobContext {
  Engine& engine;
  const Tokenizer& tokenizer;
  Metrics& metrics;
  std::shared_ptr<Mailbox> mailbox;
  std::function<int()> retry_after;                   // seconds, for a refusal
  std::function<void(int status)> count_response;     // for the metrics of HTTP
  std::function<void(const GenerationJob&)> on_done;  // the answer is complete, or given up
};

class GenerationJob : public std::enable_shared_from_this<GenerationJob> {
 public:
  /// `prompts` are the ids of the request's prompts; each is answered request.n times.
  GenerationJob(JobContext context, GenerationRequest request, std::vector<TokenIds> prompts,
                AnswerHead head, HttpFields fields, std::shared_ptr<Exchange> exchange);

  /// Submits every choice; answers with an error if one is refused.
  void start();
  void on_event(std::size_t choice, RequestEvent&& event);
  /// Gives up, with an error for the client.
  void abort();
  /// A comment for clients and proxies that give up on silent streams.
  void keep_alive(std::chrono::steady_clock::time_point now, std::chrono::milliseconds silence);

  [[nodiscard]] const AnswerHead& head() const { return head_; }
  [[nodiscard]] const Usage& usage() const { return usage_; }
  [[nodiscard]] std::string_view outcome() const { return outcome_; }
  [[nodiscard]] double seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Choice {
    explicit Choice(Answer a) : answer(std::move(a)) {}
    Answer answer;
    RequestId id = 0;
    bool is_done = false;
    FinishedChoice whole;         // of a request that does not stream
    std::size_t calls = 0;        // handed out
    std::size_t text_offset = 0;  // bytes of text handed out
    std::int64_t cached = 0;
    Clock::time_point last_token{};
  };

  EngineRequest engine_request(std::size_t choice) const;
  void begin_stream();
  void take(std::size_t index, const RequestEvent& event, AnswerPiece&& piece);
  void observe_token(Choice& choice);
  void finish_choice(std::size_t index);
  void finish();
  void refuse(const Engine::Submitted& submitted);
  void fail_with(const class ApiError& error, HttpFields fields = {});
  void cancel_all();
  void done(std::string_view outcome);
  std::string echo_of(std::size_t index) const;

  JobContext context_;
  GenerationRequest request_;
  std::vector<TokenIds> prompts_;
  AnswerHead head_;
  HttpFields fields_;  // of the response
  std::shared_ptr<Exchange> exchange_;
  std::vector<Choice> choices_;
  std::size_t open_ = 0;  // choices that are not done
  Usage usage_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_write_ = begin_;
  bool has_head_ = false;  // the head of a stream was sent
  bool is_over_ = false;
  std::string outcome_;
};

}  // namespace quatrain::server
