// SPDX-License-Identifier: Apache-2.0
#include "server/generation_job.h"

#include <utility>

#include "server/answer_constraint.h"
#include "server/api_error.h"
#include "server/auth.h"

namespace quatrain::server {
namespace {

constexpr std::string_view kDone = "data: [DONE]\n\n";

std::vector<std::string> call_ids(std::size_t count) {
  std::vector<std::string> ids;
  while (ids.size() < count) ids.push_back(random_id("call_"));
  return ids;
}

double since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

void Mailbox::put(std::shared_ptr<GenerationJob> job, std::size_t choice, RequestEvent&& event) {
  const std::lock_guard lock(mutex_);
  if (server_ == nullptr) return;
  letters_.push_back({std::move(job), choice, std::move(event)});
  if (letters_.size() == 1) server_->post([self = shared_from_this()] { self->deliver(); });
}

void Mailbox::close() {
  std::vector<Letter> undelivered;
  const std::lock_guard lock(mutex_);
  server_ = nullptr;
  undelivered.swap(letters_);
}

void Mailbox::deliver() {
  std::vector<Letter> letters;
  {
    const std::lock_guard lock(mutex_);
    letters.swap(letters_);
  }
  for (Letter& letter : letters) letter.job->on_event(letter.choice, std::move(letter.event));
}

GenerationJob::GenerationJob(JobContext context, GenerationRequest request,
                             std::vector<TokenIds> prompts, AnswerHead head, HttpFields fields,
                             std::shared_ptr<Exchange> exchange)
    : context_(std::move(context)),
      request_(std::move(request)),
      prompts_(std::move(prompts)),
      head_(std::move(head)),
      fields_(std::move(fields)),
      exchange_(std::move(exchange)) {
  for (const TokenIds& prompt : prompts_)
    usage_.prompt_tokens += static_cast<std::int64_t>(prompt.size());
  const std::size_t count = prompts_.size() * static_cast<std::size_t>(request_.n);
  for (std::size_t i = 0; i < count; ++i)
    choices_.emplace_back(Answer(context_.tokenizer, request_));
  open_ = count;
}

double GenerationJob::seconds() const { return since(begin_); }

EngineRequest GenerationJob::engine_request(std::size_t index) const {
  const auto n = static_cast<std::size_t>(request_.n);
  EngineRequest request;
  request.prompt = prompts_[index / n];
  request.sampling = request_.sampling;
  // Choices of one prompt differ; the first is what n = 1 gives.
  if (request.sampling.seed) *request.sampling.seed += index % n;
  request.max_tokens = request_.max_tokens;
  request.stop_tokens = request_.stop_token_ids;
  if (const auto eos = context_.tokenizer.eos_id(); eos && !request_.ignore_eos)
    request.stop_tokens.push_back(*eos);
  if (index % n == 0) request.prompt_logprobs = request_.prompt_logprobs;
  request.priority = request_.priority;
  if (request_.grammar) {
    const bool thinks = request_.is_chat && request_.chat.mode == ThinkingMode::kThinking;
    request.constraint =
        std::make_shared<AnswerConstraint>(request_.vocabulary, request_.grammar, thinks);
  }
  return request;
}

void GenerationJob::start() {
  if (!exchange_->is_open()) return done("abort");
  exchange_->on_closed = [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->cancel_all();
  };
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    auto on_event = [self = shared_from_this(), i](RequestEvent&& event) {
      self->context_.mailbox->put(self, i, std::move(event));
    };
    const auto submitted = context_.engine.submit(engine_request(i), std::move(on_event));
    if (submitted.refusal) return refuse(submitted);
    choices_[i].id = submitted.id;
  }
  if (request_.stream) begin_stream();
}

void GenerationJob::begin_stream() {
  HttpResponse head{200, "text/event-stream; charset=utf-8", "", fields_};
  head.fields.emplace_back("Cache-Control", "no-cache");
  head.fields.emplace_back("X-Accel-Buffering", "no");  // nginx would collect the events
  has_head_ = true;
  exchange_->begin(head);
  const auto n = static_cast<std::size_t>(request_.n);
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    if (head_.is_chat) exchange_->write(role_event(head_, static_cast<int>(i)));
    if (!request_.echo) continue;
    AnswerPiece echo;
    echo.content = context_.tokenizer.decode(prompts_[i / n], true);
    choices_[i].text_offset = echo.content.size();
    exchange_->write(chunk_event(head_, {static_cast<int>(i), 0, 0}, echo, {}, false, ""));
  }
}

void GenerationJob::refuse(const Engine::Submitted& submitted) {
  HttpFields fields;
  int status = 503;
  std::string code = "server_full";
  if (*submitted.refusal == Refusal::kInvalid) {
    status = 400;
    code = "invalid_value";
  } else {
    if (*submitted.refusal == Refusal::kDraining) code = "shutting_down";
    fields.emplace_back("Retry-After", std::to_string(context_.retry_after()));
  }
  const std::string param = status == 400 ? (head_.is_chat ? "messages" : "prompt") : "";
  fail_with(ApiError(status, submitted.message, param, code), std::move(fields));
}

// Ends the answer with an error: as a status when nothing was sent, otherwise inside the stream.
void GenerationJob::fail_with(const ApiError& error, HttpFields fields) {
  if (is_over_) return;
  cancel_all();
  if (is_over_) return;  // the client has gone
  if (has_head_) {
    exchange_->write("data: " + error_json(error) + "\n\n");
    exchange_->end();
  } else {
    fields.insert(fields.end(), fields_.begin(), fields_.end());
    exchange_->respond({error.status(), "application/json", error_json(error), std::move(fields)});
  }
  context_.count_response(has_head_ ? 200 : error.status());
  done("error");
}

void GenerationJob::on_event(std::size_t index, RequestEvent&& event) {
  Choice& choice = choices_[index];
  if (is_over_ || choice.is_done) return;
  if (event.end == RequestEnd::kNonFinite) {
    ++context_.metrics.corrupted;
    return fail_with(ApiError(500, "the model's logits were not finite", "", "numerical_error"));
  }
  if (event.end == RequestEnd::kCancelled) return abort();
  choice.cached = std::max(choice.cached, event.cached_tokens);
  if (!event.prompt_logprobs.empty())
    choice.whole.prompt_logprobs = prompt_logprobs_json(context_.tokenizer, event.prompt_logprobs);
  if (event.token) observe_token(choice);
  AnswerPiece piece = choice.answer.feed(event);
  take(index, event, std::move(piece));
}

// Nobody but the server itself cancels what a client still waits for.
void GenerationJob::abort() {
  fail_with(ApiError(503, "the server is shutting down", "", "shutting_down"));
}

void GenerationJob::observe_token(Choice& choice) {
  const auto now = Clock::now();
  if (choice.last_token == Clock::time_point())
    context_.metrics.first_token.observe(std::chrono::duration<double>(now - begin_).count());
  else
    context_.metrics.inter_token.observe(
        std::chrono::duration<double>(now - choice.last_token).count());
  choice.last_token = now;
}

void GenerationJob::take(std::size_t index, const RequestEvent& event, AnswerPiece&& piece) {
  Choice& choice = choices_[index];
  const bool ended = choice.answer.ended();
  if (ended && !event.end) context_.engine.cancel(choice.id);  // a stop string
  auto ids = call_ids(piece.tool_calls.size());
  if (!request_.stream) {
    choice.whole.answer.append(std::move(piece));
    std::move(ids.begin(), ids.end(), std::back_inserter(choice.whole.call_ids));
  } else if (!piece.empty() || ended) {
    const ChunkPlace place{static_cast<int>(index), choice.calls, choice.text_offset};
    choice.calls += ids.size();
    choice.text_offset += piece.content.size();
    last_write_ = Clock::now();
    exchange_->write(chunk_event(head_, place, piece, ids, request_.wants_logprobs,
                                 ended ? choice.answer.finish_reason() : ""));
  }
  if (ended) finish_choice(index);
}

std::string GenerationJob::echo_of(std::size_t index) const {
  if (!request_.echo) return "";
  return context_.tokenizer.decode(prompts_[index / static_cast<std::size_t>(request_.n)], true);
}

void GenerationJob::finish_choice(std::size_t index) {
  Choice& choice = choices_[index];
  if (is_over_) return;  // the client went while the last piece was written
  choice.is_done = true;
  choice.whole.finish_reason = choice.answer.finish_reason();
  choice.whole.echo = echo_of(index);
  usage_.completion_tokens += choice.answer.tokens();
  usage_.reasoning_tokens += choice.answer.reasoning_tokens();
  usage_.cached_tokens += index % static_cast<std::size_t>(request_.n) == 0 ? choice.cached : 0;
  ++context_.metrics.finished[choice.whole.finish_reason];
  context_.metrics.generation_tokens.observe(static_cast<double>(choice.answer.tokens()));
  if (--open_ == 0) finish();
}

void GenerationJob::finish() {
  context_.metrics.prompt_tokens.observe(static_cast<double>(usage_.prompt_tokens));
  context_.metrics.request_time.observe(seconds());
  if (request_.stream) {
    if (request_.include_usage) exchange_->write(usage_event(head_, usage_));
    exchange_->write(kDone);
    exchange_->end();
  } else {
    std::vector<FinishedChoice> choices;
    for (Choice& choice : choices_) choices.push_back(std::move(choice.whole));
    exchange_->respond({200, "application/json",
                        answer_json(head_, choices, request_.wants_logprobs, usage_), fields_});
  }
  context_.count_response(200);
  done(choices_[0].answer.finish_reason());
}

void GenerationJob::cancel_all() {
  for (Choice& choice : choices_) {
    if (choice.is_done) continue;
    choice.is_done = true;
    if (choice.id != 0) context_.engine.cancel(choice.id);
  }
  if (exchange_->is_open()) return;
  ++context_.metrics.finished["abort"];
  context_.count_response(499);
  done("abort");
}

void GenerationJob::done(std::string_view outcome) {
  if (is_over_) return;
  is_over_ = true;
  outcome_ = outcome;
  exchange_->on_closed = nullptr;
  context_.on_done(*this);
}

void GenerationJob::keep_alive(std::chrono::steady_clock::time_point now,
                               std::chrono::milliseconds silence) {
  if (!has_head_ || is_over_ || now - last_write_ < silence) return;
  last_write_ = now;
  exchange_->write(": keep-alive\n\n");
}

}  // namespace quatrain::server
