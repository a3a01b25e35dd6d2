// SPDX-License-Identifier: Apache-2.0
// A server on a free port of the loopback, and a client that sends exactly the bytes it is given.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "server/fake_engine.h"
#include "server/http_server.h"
#include "server/service.h"
#include "tokenizer/tokenizer.h"

namespace quatrain::testing {

using nlohmann::json;

inline const Tokenizer& storyteller_tokenizer() {
  static const Tokenizer tokenizer =
      Tokenizer::load(std::string(QUATRAIN_SOURCE_DIR) + "/models/storyteller-nvfp4");
  return tokenizer;
}

/// A response as read from the socket.
struct Reply {
  int status = 0;  // 0: the connection ended without one
  std::string header;
  std::string body;  // without the framing of chunks

  [[nodiscard]] json parsed() const { return json::parse(body, nullptr, false); }
  /// The value of a field, by its name as sent; empty when it is missing.
  [[nodiscard]] std::string field(const std::string& name) const {
    const auto begin = header.find("\r\n" + name + ": ");
    if (begin == std::string::npos) return "";
    const auto value = begin + name.size() + 4;
    return header.substr(value, header.find("\r\n", value) - value);
  }
  /// The payloads of the "data:" events of a stream.
  [[nodiscard]] std::vector<std::string> events() const {
    std::vector<std::string> list;
    for (std::size_t at = 0; (at = body.find("data: ", at)) != std::string::npos;) {
      const auto end = body.find("\n\n", at);
      list.push_back(body.substr(at + 6, end - at - 6));
      at = end;
    }
    return list;
  }
};

class Client {
 public:
  explicit Client(std::uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    is_connected_ =
        ::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  [[nodiscard]] int descriptor() const { return socket_; }
  void close() {
    if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  }
  void shutdown_send() { ::shutdown(socket_, SHUT_WR); }

  bool send(std::string_view bytes) {
    while (is_connected_ && !bytes.empty()) {
      const auto n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return is_connected_;
  }

  /// Waits for more bytes; false at the end of the connection or after `milliseconds`.
  bool receive(int milliseconds = 20'000) {
    pollfd wanted{socket_, POLLIN, 0};
    if (::poll(&wanted, 1, milliseconds) <= 0) return false;
    char buffer[65536];
    const auto n = ::recv(socket_, buffer, sizeof buffer, 0);
    if (n > 0) in_.append(buffer, static_cast<std::size_t>(n));
    return n > 0;
  }
  bool receive_until(std::string_view text) {
    while (in_.find(text) == std::string::npos)
      if (!receive()) return false;
    return true;
  }
  [[nodiscard]] bool ended(int milliseconds = 20'000) {
    while (receive(milliseconds)) {
    }
    char byte = 0;
    return ::recv(socket_, &byte, 1, MSG_DONTWAIT) == 0 || (errno != EAGAIN && errno != EINTR);
  }

  /// Reads one response from the connection.
  Reply reply() {
    Reply reply;
    for (;;) {
      if (!receive_until("\r\n\r\n")) return reply;
      const auto end = in_.find("\r\n\r\n") + 4;
      reply.header = in_.substr(0, end);
      in_.erase(0, end);
      reply.status = std::atoi(reply.header.c_str() + 9);
      if (reply.status != 100) break;
    }
    if (reply.field("Transfer-Encoding") == "chunked") {
      read_chunks(reply);
    } else {
      const auto size = std::strtoull(reply.field("Content-Length").c_str(), nullptr, 10);
      while (in_.size() < size && receive()) {
      }
      reply.body = in_.substr(0, size);
      in_.erase(0, size);
    }
    return reply;
  }

  Reply request(std::string_view bytes) {
    send(bytes);
    return reply();
  }

 private:
  void read_chunks(Reply& reply) {
    for (;;) {
      if (!receive_until("\r\n")) return;
      const auto size = std::strtoull(in_.c_str(), nullptr, 16);
      const auto begin = in_.find("\r\n") + 2;
      while (in_.size() < begin + size + 2)
        if (!receive()) return;
      reply.body += in_.substr(begin, size);
      in_.erase(0, begin + size + 2);
      if (size == 0) return;
    }
  }

  int socket_;
  bool is_connected_ = false;
  std::string in_;
};

class TestServer {
 public:
  struct Setup {
    server::HttpServerOptions http;
    server::ServiceOptions service;
    std::string text = "The owl flew.";  // what the engine answers
    bool is_ready = true;
  };

  explicit TestServer(Setup setup) {
    setup.http.port = 0;
    setup.service.model_names = {"story", "alias"};
    setup.service.version = "test";
    engine.output = storyteller_tokenizer().encode(setup.text, AddedTokens::kMatch);
    service = std::make_unique<server::Service>(setup.service);
    http = std::make_unique<server::HttpServer>(setup.http, *service);
    service->attach(*http);
    if (setup.is_ready) service->set_ready(engine, storyteller_tokenizer());
    thread_ = std::jthread([this] { http->run(); });
  }
  TestServer() : TestServer(Setup()) {}
  ~TestServer() {
    http->stop();
    thread_.join();
    service->close();
  }

  [[nodiscard]] std::uint16_t port() const { return http->port(); }

  Reply send(std::string_view bytes) { return Client(port()).request(bytes); }
  Reply get(const std::string& path, const std::string& fields = "") {
    return send("GET " + path + " HTTP/1.1\r\nHost: x\r\n" + fields + "\r\n");
  }
  static std::string post_text(const std::string& path, const std::string& body,
                               const std::string& fields = "") {
    return "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + fields +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  Reply post(const std::string& path, const json& body, const std::string& fields = "") {
    return send(post_text(path, body.dump(), fields));
  }
  Reply chat(json body) {
    if (!body.contains("messages"))
      body["messages"] = {{{"role", "user"}, {"content", "Tell me."}}};
    return post("/v1/chat/completions", body);
  }
  /// Waits for something that another thread does; false after ten seconds.
  template <class Condition>
  static bool eventually(Condition&& condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  FakeEngine engine;
  std::unique_ptr<server::Service> service;
  std::unique_ptr<server::HttpServer> http;

 private:
  std::jthread thread_;
};

}  // namespace quatrain::testing
