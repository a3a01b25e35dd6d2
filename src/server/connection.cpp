// SPDX-License-Identifier: Apache-2.0
#include "server/connection.h"

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <ctime>

namespace quatrain::server {
namespace {

using boost::system::error_code;

constexpr std::size_t kMaxInput = 64 << 10;  // received ahead of what is read
constexpr std::size_t kTlsRead = 16 << 10;
constexpr auto kLingerTime = std::chrono::seconds(2);

// "Sat, 21 Nov 2026 05:10:56 GMT", made once a second.
const std::string& http_date() {
  static std::time_t last = -1;
  static std::string text;
  const std::time_t now = std::time(nullptr);
  if (now == last) return text;
  last = now;
  std::tm parts{};
  gmtime_r(&now, &parts);
  char buffer[64];
  text.assign(buffer, std::strftime(buffer, sizeof buffer, "%a, %d %b %Y %H:%M:%S GMT", &parts));
  return text;
}

}  // namespace

void ConnectionExchange::put_head(const HttpResponse& response, bool is_stream) {
  keep_alive_ = keep_alive_ && !response.close;
  auto out = std::back_inserter(out_);
  fmt::format_to(out, "HTTP/1.1 {} {}\r\nDate: {}\r\n", response.status,
                 reason_phrase(response.status), http_date());
  if (!response.content_type.empty())
    fmt::format_to(out, "Content-Type: {}\r\n", response.content_type);
  for (const auto& [name, value] : response.fields) fmt::format_to(out, "{}: {}\r\n", name, value);
  if (is_stream)
    out_ += "Transfer-Encoding: chunked\r\n";
  else
    fmt::format_to(out, "Content-Length: {}\r\n", response.body.size());
  out_ += keep_alive_ ? "\r\n" : "Connection: close\r\n\r\n";
}

void ConnectionExchange::respond(HttpResponse response) {
  if (!is_open()) return;
  put_head(response, false);
  out_ += response.body;
  is_complete_ = true;
  on_closed = nullptr;
  connection_->notify();
}

void ConnectionExchange::begin(HttpResponse head) {
  if (!is_open()) return;
  put_head(head, true);
  connection_->notify();
}

void ConnectionExchange::write(std::string_view text) {
  if (!is_open() || text.empty()) return;
  if (out_.size() > connection_->state_.options.write_buffer) {
    connection_->close();  // its client does not read
    return;
  }
  fmt::format_to(std::back_inserter(out_), "{:x}\r\n", text.size());
  out_ += text;
  out_ += "\r\n";
  connection_->notify();
}

void ConnectionExchange::end() {
  if (!is_open()) return;
  out_ += "0\r\n\r\n";
  is_complete_ = true;
  on_closed = nullptr;
  connection_->notify();
}

// The client has gone.
void ConnectionExchange::abandon() {
  const bool was_open = is_open();
  connection_ = nullptr;
  const auto tell = std::move(on_closed);
  on_closed = nullptr;
  if (was_open && tell) tell();
}

Connection::Connection(ServerState& state, asio::ip::tcp::socket socket, asio::ssl::context* tls,
                       std::string peer)
    : state_(state),
      socket_(std::move(socket)),
      peer_(std::move(peer)),
      signal_(socket_.get_executor(), asio::steady_timer::time_point::max()),
      space_(socket_.get_executor(), asio::steady_timer::time_point::max()) {
  error_code ec;
  socket_.set_option(asio::ip::tcp::no_delay(true), ec);
  socket_.non_blocking(true, ec);
  if (tls != nullptr)
    tls_ = std::make_unique<asio::ssl::stream<asio::ip::tcp::socket&>>(socket_, *tls);
}

Connection::~Connection() { state_.body_bytes -= body_lease_; }

void Connection::close() {
  if (is_closed_) return;
  is_closed_ = true;
  error_code ec;
  socket_.close(ec);
  notify();
  space_.cancel();
  if (exchange_) exchange_->abandon();
}

void Connection::set_deadline(Waiting waiting, Clock::duration time) {
  waiting_ = waiting;
  deadline_ = Clock::now() + time;
}

void Connection::check_deadline(Clock::time_point now) {
  if (waiting_ == Waiting::kNothing || now < deadline_) return;
  is_timed_out_ = true;
  if (waiting_ == Waiting::kOutput) return close();
  waiting_ = Waiting::kNothing;
  notify();
}

asio::awaitable<void> Connection::wait() {
  error_code ec;
  co_await signal_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
}

// Without TLS an idle connection owns no buffer: all read into one.
asio::awaitable<std::size_t> Connection::read_some(error_code& ec) {
  std::size_t size = 0;
  if (tls_) {
    std::vector<char> buffer(kTlsRead);
    size = co_await tls_->async_read_some(asio::buffer(buffer),
                                          asio::redirect_error(asio::use_awaitable, ec));
    if (!is_discarding_) in_.append(buffer.data(), size);
    co_return size;
  }
  co_await socket_.async_wait(asio::ip::tcp::socket::wait_read,
                              asio::redirect_error(asio::use_awaitable, ec));
  if (ec) co_return 0;
  size = socket_.read_some(asio::buffer(state_.read_buffer), ec);
  if (ec == asio::error::would_block) ec = {};
  if (!is_discarding_) in_.append(state_.read_buffer.data(), size);
  co_return size;
}

// Reads as long as the connection lasts, also while an answer is sent: this is how a client that
// leaves is noticed.
asio::awaitable<void> Connection::read_loop(std::shared_ptr<Connection> self) {
  Connection& c = *self;
  while (!c.is_closed_) {
    error_code ec;
    while (c.in_.size() >= kMaxInput && !c.is_discarding_ && !c.is_closed_)
      co_await c.space_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    ec = {};
    if (c.is_closed_) break;
    co_await c.read_some(ec);
    if (ec) break;
    c.notify();
  }
  c.is_eof_ = true;
  c.notify();
}

asio::awaitable<void> Connection::serve(std::shared_ptr<Connection> self) {
  co_await self->run();
  self->close();
}

asio::awaitable<void> Connection::run() {
  if (tls_) {
    error_code ec;
    set_deadline(Waiting::kOutput, state_.options.header_timeout);
    co_await tls_->async_handshake(asio::ssl::stream_base::server,
                                   asio::redirect_error(asio::use_awaitable, ec));
    if (ec) co_return;
  }
  asio::co_spawn(socket_.get_executor(), read_loop(shared_from_this()), asio::detached);
  bool is_first = true;
  while (co_await serve_one(is_first)) is_first = false;
}

// Receives one request and answers it; false when the connection is to end.
asio::awaitable<bool> Connection::serve_one(bool is_first) {
  auto parser = std::make_unique<RequestParser>(state_.options.limits);
  bool keep = false;
  if (co_await receive(*parser, is_first)) {
    ++state_.active;
    HttpRequest& request = parser->request();
    request.peer = peer_;
    keep = request.keep_alive;
    exchange_ = std::make_shared<ConnectionExchange>(*this, request.is_http11, keep);
    const auto exchange = exchange_;
    state_.handler.handle(std::move(request), exchange);
    parser.reset();
    state_.body_bytes -= std::exchange(body_lease_, 0);
    keep = co_await answer(exchange);
    exchange_.reset();
    --state_.active;
  }
  co_return keep;
}

bool Connection::lease_body(std::size_t bytes) {
  if (bytes <= body_lease_) return true;
  if (bytes - body_lease_ > state_.options.max_body_bytes - state_.body_bytes) return false;
  state_.body_bytes += bytes - body_lease_;
  body_lease_ = bytes;
  return true;
}

std::optional<HttpResponse> Connection::check_head(RequestParser& parser) {
  HttpRequest& request = parser.request();
  request.peer = peer_;
  if (auto refusal = state_.handler.check_head(request)) return refusal;
  const bool has_length = parser.content_length() || request.field("transfer-encoding") != nullptr;
  const bool has_body = request.method == "POST" || request.method == "PUT";
  if (has_body && !has_length)
    return state_.handler.fault(411, "a request with a body must have a Content-Length");
  if (!lease_body(parser.content_length().value_or(0)))
    return state_.handler.fault(503, "the server is full: too many requests are being read");
  return std::nullopt;
}

// True when the request is complete; otherwise everything about it was said to the client.
asio::awaitable<bool> Connection::receive(RequestParser& parser, bool is_first) {
  const auto& options = state_.options;
  bool has_begun = false, head_checked = false;
  Clock::time_point body_begin{};
  set_deadline(Waiting::kInput, is_first ? options.header_timeout : options.idle_timeout);
  is_timed_out_ = false;
  for (;;) {
    if (!in_.empty() && !has_begun) {
      has_begun = true;
      set_deadline(Waiting::kInput, options.header_timeout);
    }
    const std::size_t used = parser.feed(in_);
    in_.erase(0, used);
    if (in_.size() < kMaxInput) space_.cancel();
    std::optional<HttpResponse> refusal;
    if (parser.fault())
      refusal = state_.handler.fault(parser.fault()->status, parser.fault()->message);
    else if (parser.header_done() && !head_checked)
      refusal = check_head(parser);
    if (!refusal && !lease_body(parser.request().body.size()))
      refusal = state_.handler.fault(503, "the server is full: too many requests are being read");
    if (!refusal && is_timed_out_ && has_begun)
      refusal = state_.handler.fault(408, "the request did not arrive in time");
    if (refusal) {
      co_await refuse(std::move(*refusal));
      co_return false;
    }
    if (parser.done()) break;
    if (is_closed_ || is_eof_ || is_timed_out_) co_return false;
    if (parser.header_done()) {
      if (!head_checked) {
        body_begin = Clock::now();
        if (parser.expects_continue() && !co_await send("HTTP/1.1 100 Continue\r\n\r\n"))
          co_return false;
      }
      head_checked = true;
      auto time = options.body_timeout;
      if (options.min_body_rate > 0)
        time +=
            std::chrono::milliseconds(parser.request().body.size() * 1000 / options.min_body_rate);
      waiting_ = Waiting::kInput;
      deadline_ = body_begin + time;
    }
    if (used == 0 || in_.empty()) co_await wait();
  }
  waiting_ = Waiting::kNothing;
  co_return true;
}

// Sends what the handler writes, until the answer is complete; true if the connection may go on.
asio::awaitable<bool> Connection::answer(std::shared_ptr<ConnectionExchange> exchange) {
  for (;;) {
    if (is_closed_) co_return false;
    if (!exchange->out_.empty()) {
      std::string text;
      text.swap(exchange->out_);
      if (!co_await send(std::move(text))) break;
    } else if (exchange->is_complete_) {
      exchange->connection_ = nullptr;
      if (exchange->keep_alive_) co_return true;
      co_await linger();
      co_return false;
    } else if (is_eof_) {
      break;
    } else {
      co_await wait();
    }
  }
  exchange->abandon();
  co_return false;
}

asio::awaitable<bool> Connection::send(std::string text) {
  error_code ec;
  set_deadline(Waiting::kOutput, state_.options.write_timeout);
  for (std::size_t done = 0; done < text.size() && !ec;) {
    const auto rest = asio::buffer(text.data() + done, text.size() - done);
    if (tls_)
      done += co_await tls_->async_write_some(rest, asio::redirect_error(asio::use_awaitable, ec));
    else
      done +=
          co_await socket_.async_write_some(rest, asio::redirect_error(asio::use_awaitable, ec));
    set_deadline(Waiting::kOutput, state_.options.write_timeout);
  }
  waiting_ = Waiting::kNothing;
  co_return !ec;
}

// Answers a request that was not read to its end.
asio::awaitable<void> Connection::refuse(HttpResponse response) {
  response.close = true;
  ConnectionExchange exchange(*this, true, false);
  exchange.respond(std::move(response));
  if (co_await send(std::move(exchange.out_))) co_await linger();
}

// Lets the client read the answer before the connection is gone: closing with unread input resets
// it, and a reset discards what the client has not read.
asio::awaitable<void> Connection::linger() {
  error_code ec;
  is_discarding_ = true;
  in_.clear();
  space_.cancel();
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ec);
  is_timed_out_ = false;
  set_deadline(Waiting::kInput, kLingerTime);
  while (!is_eof_ && !is_closed_ && !is_timed_out_) co_await wait();
}

}  // namespace quatrain::server
