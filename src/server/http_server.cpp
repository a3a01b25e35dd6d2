// SPDX-License-Identifier: Apache-2.0
#include "server/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <map>
#include <vector>

#include "core/error.h"
#include "server/connection.h"

namespace quatrain::server {
namespace {

using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kSweepInterval = std::chrono::milliseconds(100);

// Each connection is a descriptor; the usual soft limit is 1,024.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpServerOptions& options, HttpHandler& handler)
      : options_(options), state_{options_, handler}, acceptor_(context_), signals_(context_) {
    raise_descriptor_limit();
    load_certificate();
    bind();
  }

  std::uint16_t port() const { return port_; }

  void run() {
    asio::co_spawn(context_, accept_loop(), asio::detached);
    every(kSweepInterval, [this] { sweep(); });
    context_.run();
    error_code ec;
    acceptor_.close(ec);
    for (const auto& weak : connections_)
      if (const auto connection = weak.lock()) connection->close();
    context_.restart();
    context_.poll();  // lets the coroutines end, which frees the connections
  }

  void stop() { context_.stop(); }
  void post(std::function<void()> task) { asio::post(context_, std::move(task)); }

  void every(std::chrono::milliseconds interval, std::function<void()> task) {
    auto timer = std::make_shared<asio::steady_timer>(context_);
    repeat(timer, interval, std::make_shared<std::function<void()>>(std::move(task)));
  }

  void on_signal(std::function<void(int)> task) {
    signals_.add(SIGINT);
    signals_.add(SIGTERM);
    signal_task_ = std::move(task);
    wait_for_signal();
  }

  std::size_t connections() const { return count_; }
  std::size_t active() const { return state_.active; }

 private:
  using Timer = std::shared_ptr<asio::steady_timer>;

  void repeat(const Timer& timer, std::chrono::milliseconds interval,
              const std::shared_ptr<std::function<void()>>& task) {
    timer->expires_after(interval);
    timer->async_wait([this, timer, interval, task](error_code ec) {
      if (ec) return;
      (*task)();
      repeat(timer, interval, task);
    });
  }

  void wait_for_signal() {
    signals_.async_wait([this](error_code ec, int number) {
      if (ec) return;
      signal_task_(number);
      wait_for_signal();
    });
  }

  void load_certificate() {
    if (options_.certificate_file.empty() && options_.key_file.empty()) return;
    if (options_.certificate_file.empty() || options_.key_file.empty())
      fail("TLS needs both --ssl-certfile and --ssl-keyfile");
    tls_ = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_server);
    tls_->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_sslv2 |
                      asio::ssl::context::no_sslv3 | asio::ssl::context::no_tlsv1 |
                      asio::ssl::context::no_tlsv1_1);
    error_code ec;
    tls_->use_certificate_chain_file(options_.certificate_file, ec);
    if (ec) fail("{}: not a certificate chain: {}", options_.certificate_file, ec.message());
    tls_->use_private_key_file(options_.key_file, asio::ssl::context::pem, ec);
    if (ec) fail("{}: not the certificate's private key: {}", options_.key_file, ec.message());
  }

  void bind() {
    error_code ec;
    tcp::resolver resolver(context_);
    const auto found =
        resolver.resolve(options_.host, std::to_string(options_.port), tcp::resolver::passive, ec);
    if (ec || found.empty()) fail("--host {}: {}", options_.host, ec.message());
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), ec);
    if (!ec) acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec) acceptor_.bind(endpoint, ec);
    if (!ec) acceptor_.listen(4096, ec);
    if (ec) fail("cannot listen on {}:{}: {}", options_.host, options_.port, ec.message());
    port_ = acceptor_.local_endpoint().port();
  }

  asio::awaitable<void> accept_loop() {
    asio::steady_timer pause(context_);
    for (;;) {
      error_code ec;
      tcp::socket socket =
          co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, ec));
      if (!ec) {
        admit(std::move(socket));
        continue;
      }
      if (ec == asio::error::operation_aborted) co_return;
      // Out of descriptors: the client waits in the backlog until one is free.
      pause.expires_after(std::chrono::milliseconds(50));
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    }
  }

  void admit(tcp::socket socket) {
    error_code ec;
    const tcp::endpoint remote = socket.remote_endpoint(ec);
    if (ec) return;  // gone already
    const std::string peer = remote.address().to_string();
    const std::size_t per_address = options_.max_connections_per_address;
    const auto known = by_address_.find(peer);
    if (count_ >= options_.max_connections ||
        (per_address > 0 && known != by_address_.end() && known->second >= per_address)) {
      turn_away(socket);
      return;
    }
    ++count_;
    ++by_address_[peer];
    auto connection = std::make_shared<Connection>(state_, std::move(socket), tls_.get(), peer);
    connections_.push_back(connection);
    asio::co_spawn(context_, Connection::serve(connection),
                   [this, peer](const std::exception_ptr& error) {
                     --count_;
                     if (--by_address_[peer] == 0) by_address_.erase(peer);
                     if (error) std::rethrow_exception(error);
                   });
  }

  // One attempt to say why; it fits into the socket's buffer.
  void turn_away(tcp::socket& socket) {
    if (tls_) return;
    const HttpResponse response = state_.handler.fault(503, "too many connections");
    const std::string text = fmt::format(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
        response.body.size(), response.body);
    error_code ec;
    socket.non_blocking(true, ec);
    socket.write_some(asio::buffer(text), ec);
    socket.shutdown(tcp::socket::shutdown_send, ec);
  }

  void sweep() {
    const auto now = Clock::now();
    std::erase_if(connections_, [now](const std::weak_ptr<Connection>& weak) {
      const auto connection = weak.lock();
      if (connection) connection->check_deadline(now);
      return !connection;
    });
  }

  const HttpServerOptions options_;
  ServerState state_;
  asio::io_context context_{1};
  std::unique_ptr<asio::ssl::context> tls_;
  tcp::acceptor acceptor_;
  asio::signal_set signals_;
  std::function<void(int)> signal_task_;
  std::vector<std::weak_ptr<Connection>> connections_;
  std::map<std::string, std::size_t> by_address_;
  std::atomic<std::size_t> count_ = 0;  // read by other threads
  std::uint16_t port_ = 0;
};

HttpServer::HttpServer(const HttpServerOptions& options, HttpHandler& handler)
    : impl_(std::make_unique<Impl>(options, handler)) {}
HttpServer::~HttpServer() = default;

std::uint16_t HttpServer::port() const { return impl_->port(); }
void HttpServer::run() { impl_->run(); }
void HttpServer::stop() { impl_->stop(); }
void HttpServer::post(std::function<void()> task) { impl_->post(std::move(task)); }
void HttpServer::every(std::chrono::milliseconds interval, std::function<void()> task) {
  impl_->every(interval, std::move(task));
}
void HttpServer::on_signal(std::function<void(int)> task) { impl_->on_signal(std::move(task)); }
std::size_t HttpServer::connections() const { return impl_->connections(); }
std::size_t HttpServer::active() const { return impl_->active(); }

}  // namespace quatrain::server
