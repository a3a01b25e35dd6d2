// SPDX-License-Identifier: Apache-2.0
// An HTTP/1.1 server: connections, deadlines, TLS, streaming. What paths mean is the handler's.
//
// One thread runs everything here, and every call of the handler; post() brings work of other
// threads to it. A connection is two coroutines, not a thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http_message.h"

namespace quatrain::server {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;     // 0: any free one
  std::string certificate_file;  // PEM chain; with key_file: TLS
  std::string key_file;
  HttpLimits limits;
  std::size_t max_connections = 10'000;
  std::size_t max_connections_per_address = 0;  // 0: no bound
  std::size_t max_body_bytes = 256 << 20;       // of all requests together that are being read
  std::size_t write_buffer = 256 << 10;         // of one stream, before its client counts as gone
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{30'000};
  std::size_t min_body_rate = 1024;  // bytes a second once body_timeout is over; 0: no more time
  std::chrono::milliseconds idle_timeout{75'000};
  std::chrono::milliseconds write_timeout{30'000};  // without one byte taken by the client
};

/// The answer to one request. Used on the server's thread only; outlives its connection, and then
/// does nothing.
class Exchange {
 public:
  virtual ~Exchange() = default;
  /// The whole answer.
  virtual void respond(HttpResponse response) = 0;
  /// The answer in parts: its head (without a body), then write() …, then end().
  virtual void begin(HttpResponse head) = 0;
  virtual void write(std::string_view text) = 0;
  virtual void end() = 0;
  /// False once the answer is complete or the client has gone.
  [[nodiscard]] virtual bool is_open() const = 0;
  /// Called once if the client goes, or reads too slowly, before the answer is complete.
  std::function<void()> on_closed;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  /// Asked when the header of a request is there; a response refuses it, its body is not read.
  virtual std::optional<HttpResponse> check_head(const HttpRequest& request) = 0;
  /// A whole request. Answers through `exchange`, now or later; must not block.
  virtual void handle(HttpRequest&& request, std::shared_ptr<Exchange> exchange) = 0;
  /// The response to a request that could not be read.
  virtual HttpResponse fault(int status, std::string_view message) = 0;
};

class HttpServer {
 public:
  /// Binds; throws Error when the address, the certificate or the key is of no use.
  HttpServer(const HttpServerOptions& options, HttpHandler& handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  [[nodiscard]] std::uint16_t port() const;

  /// Serves until stop().
  void run();
  /// Ends run() and closes all connections. Any thread.
  void stop();
  /// Runs a task on the server's thread. Any thread; ignored once run() has ended.
  void post(std::function<void()> task);
  /// Calls `task` on the server's thread again and again.
  void every(std::chrono::milliseconds interval, std::function<void()> task);
  /// Calls `task` on the server's thread for each SIGINT and SIGTERM instead of the default action.
  void on_signal(std::function<void(int)> task);

  [[nodiscard]] std::size_t connections() const;
  /// Requests that are being answered.
  [[nodiscard]] std::size_t active() const;

 private:
  class Impl;  // Boost.Asio stays in the source files
  std::unique_ptr<Impl> impl_;
};

}  // namespace quatrain::server
