// SPDX-License-Identifier: Apache-2.0
// One connection of the HTTP server. Private to http_server.cpp and connection.cpp: costs a minute
// to compile.
#pragma once

#include <utility>  // before Asio 1.74, which forgets it

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/http_server.h"
#include "server/request_parser.h"

namespace quatrain::server {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

/// What all connections share.
struct ServerState {
  const HttpServerOptions& options;
  HttpHandler& handler;
  std::vector<char> read_buffer = std::vector<char>(64 << 10);  // of whoever reads at the moment
  std::size_t body_bytes = 0;                                   // of bodies being read
  std::size_t active = 0;
};

class Connection;

/// See Exchange. Collects what is to be sent; the connection's coroutine sends it.
class ConnectionExchange final : public Exchange {
 public:
  ConnectionExchange(Connection& connection, bool is_http11, bool keep_alive)
      : connection_(&connection), is_http11_(is_http11), keep_alive_(keep_alive) {}

  void respond(HttpResponse response) override;
  void begin(HttpResponse head) override;
  void write(std::string_view text) override;
  void end() override;
  [[nodiscard]] bool is_open() const override { return connection_ != nullptr && !is_complete_; }

 private:
  friend class Connection;
  void put_head(const HttpResponse& response, bool is_stream);
  void abandon();

  Connection* connection_;  // null once the connection has done with it
  bool is_http11_;
  bool keep_alive_;
  bool is_complete_ = false;
  std::string out_;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(ServerState& state, asio::ip::tcp::socket socket, asio::ssl::context* tls,
             std::string peer);
  ~Connection();

  /// Serves requests until either side ends it.
  static asio::awaitable<void> serve(std::shared_ptr<Connection> self);

  /// Called a few times a second: ends what has taken too long.
  void check_deadline(Clock::time_point now);
  void close();
  [[nodiscard]] const std::string& peer() const { return peer_; }

 private:
  friend class ConnectionExchange;
  enum class Waiting : unsigned char { kNothing, kInput, kOutput };

  static asio::awaitable<void> read_loop(std::shared_ptr<Connection> self);
  asio::awaitable<void> run();
  asio::awaitable<std::size_t> read_some(boost::system::error_code& ec);
  asio::awaitable<bool> serve_one(bool is_first);
  asio::awaitable<bool> receive(RequestParser& parser, bool is_first);
  asio::awaitable<bool> answer(std::shared_ptr<ConnectionExchange> exchange);
  asio::awaitable<bool> send(std::string text);
  asio::awaitable<void> refuse(HttpResponse response);
  asio::awaitable<void> linger();
  asio::awaitable<void> wait();
  void notify() { signal_.cancel(); }
  void set_deadline(Waiting waiting, Clock::duration time);
  bool lease_body(std::size_t bytes);
  std::optional<HttpResponse> check_head(RequestParser& parser);

  ServerState& state_;
  asio::ip::tcp::socket socket_;
  std::unique_ptr<asio::ssl::stream<asio::ip::tcp::socket&>> tls_;
  std::string peer_;
  asio::steady_timer signal_;  // never expires: cancelled to wake the coroutine that serves
  asio::steady_timer space_;   // the same for the one that reads
  std::string in_;             // received, not read yet
  bool is_eof_ = false;
  bool is_discarding_ = false;
  bool is_closed_ = false;
  bool is_timed_out_ = false;
  Waiting waiting_ = Waiting::kNothing;
  Clock::time_point deadline_{};
  std::size_t body_lease_ = 0;
  std::shared_ptr<ConnectionExchange> exchange_;
};

}  // namespace quatrain::server
