// SPDX-License-Identifier: Apache-2.0
// Time and load: deadlines, full queues, clients that leave or do not read, loading and draining.
#include <dirent.h>
#include <fmt/format.h>

#include <random>

#include "server/test_server.h"

namespace quatrain {
namespace {

using namespace std::chrono_literals;
using testing::Client;
using testing::json;
using testing::TestServer;

int open_descriptors() {
  DIR* folder = opendir("/proc/self/fd");
  int count = 0;
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

std::string streaming(int max_tokens = 2000) {
  return TestServer::post_text(
      "/v1/completions",
      json{{"prompt", "a"}, {"stream", true}, {"max_tokens", max_tokens}}.dump());
}

// A server whose answers last until they are cancelled.
TestServer::Setup endless() {
  TestServer::Setup setup;
  for (int i = 0; i < 300; ++i) setup.text += "The owl flew over the hill. ";
  return setup;
}

TEST(Lifecycle, SlowHeadersAndBodiesEndInTime) {
  TestServer::Setup setup;
  setup.http.header_timeout = 300ms;
  setup.http.body_timeout = 400ms;
  setup.http.idle_timeout = 300ms;
  setup.http.min_body_rate = 0;
  TestServer server(setup);
  Client header(server.port()), body(server.port()), idle(server.port()), silent(server.port());
  header.send("GET /health HT");
  body.send("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_EQ(idle.request("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status, 200);
  EXPECT_EQ(header.reply().status, 408);
  EXPECT_EQ(body.reply().status, 408);
  EXPECT_TRUE(idle.ended());
  EXPECT_TRUE(silent.ended());
  EXPECT_TRUE(TestServer::eventually([&] { return server.http->connections() <= 2; }));
}

TEST(Lifecycle, AClientThatLeavesIsCancelled) {
  TestServer server(endless());
  server.engine.delay = 5ms;
  std::mt19937 random(1);
  const int before = open_descriptors();
  for (int i = 0; i < 60; ++i) {
    Client client(server.port());
    const std::string request =
        i % 3 == 0 ? TestServer::post_text("/v1/completions", R"({"prompt":"a","max_tokens":2000})")
                   : streaming();
    client.send(request.substr(0, i % 5 == 0 ? random() % request.size() : request.size()));
    if (i % 2 == 0) client.receive(static_cast<int>(random() % 20));
  }
  EXPECT_TRUE(TestServer::eventually([&] { return server.engine.stats().running == 0; }));
  EXPECT_TRUE(TestServer::eventually([&] { return server.http->connections() == 0; }));
  EXPECT_TRUE(TestServer::eventually([&] { return open_descriptors() == before; }));
  EXPECT_NE(server.get("/metrics").body.find("finished_reason=\"abort\""), std::string::npos);
}

TEST(Lifecycle, AClientThatDoesNotReadIsCancelled) {
  auto setup = endless();
  setup.http.write_buffer = 4096;
  setup.http.write_timeout = 500ms;
  TestServer server(setup);
  Client client(server.port());
  const int small = 4096;
  ::setsockopt(client.descriptor(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  for (int i = 0; i < 20; ++i) client.send(streaming());  // more than the kernel's buffers hold
  EXPECT_TRUE(TestServer::eventually([&] { return server.http->connections() == 0; }));
  EXPECT_TRUE(TestServer::eventually([&] { return server.engine.stats().running == 0; }));
}

TEST(Lifecycle, AFullServerRefusesBeforeItReadsTheBody) {
  TestServer::Setup setup;
  setup.service.max_queued_requests = 10;
  setup.service.max_queued_tokens = 1000;
  TestServer server(setup);
  server.engine.set_waiting(10);
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n";
  const auto reply = server.send(head);
  EXPECT_EQ(reply.status, 503);
  EXPECT_GE(std::atoi(reply.field("Retry-After").c_str()), 1);
  EXPECT_EQ(reply.parsed()["error"]["code"], "server_full");
  server.engine.set_waiting(0);
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}}).status, 200);
  server.engine.max_waiting = 0;  // the engine has the last word
  const auto late = server.post("/v1/completions", {{"prompt", "a"}});
  EXPECT_EQ(late.status, 503);
  EXPECT_NE(late.field("Retry-After"), "");
}

TEST(Lifecycle, ConnectionsAreBounded) {
  TestServer::Setup setup;
  setup.http.max_connections = 3;
  TestServer server(setup);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<Client>(server.port()));
    EXPECT_EQ(clients.back()->request("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status, 200);
  }
  EXPECT_EQ(server.get("/health").status, 503);
  clients.clear();
  EXPECT_TRUE(TestServer::eventually([&] { return server.get("/health").status == 200; }));
}

TEST(Lifecycle, BodiesBeingReadAreBoundedTogether) {
  TestServer::Setup setup;
  setup.http.max_body_bytes = 10'000;
  TestServer server(setup);
  const auto head = [](int size) {
    return fmt::format("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", size);
  };
  {
    Client first(server.port());
    first.send(head(8000));
    EXPECT_TRUE(TestServer::eventually([&] { return server.send(head(3000)).status == 503; }));
  }
  EXPECT_TRUE(TestServer::eventually([&] {
    return server.post("/tokenize", {{"prompt", std::string(5000, 'a')}}).status == 200;
  }));
}

TEST(Lifecycle, ContinueIsSaidOnlyToWhatIsAccepted) {
  TestServer server;
  Client client(server.port());
  client.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(client.receive_until("HTTP/1.1 100 Continue\r\n\r\n"));
  EXPECT_EQ(client.request(R"({"prompt":"a"})").status, 200);
  Client refused(server.port());
  EXPECT_EQ(refused
                .request("POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n"
                         "Expect: 100-continue\r\n\r\n")
                .status,
            404);
}

TEST(Lifecycle, KeepAliveAndClose) {
  TestServer server;
  Client client(server.port());
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(client.request("GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status, 200);
  EXPECT_EQ(client.request("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status,
            200);
  EXPECT_TRUE(client.ended());
  Client old(server.port());
  EXPECT_EQ(old.request("GET /health HTTP/1.0\r\n\r\n").status, 200);
  EXPECT_TRUE(old.ended());
  const std::string body = R"({"prompt":"a","stream":true})";
  EXPECT_EQ(server
                .send(fmt::format("POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{}",
                                  body.size(), body))
                .status,
            400);
}

TEST(Lifecycle, SilentStreamsGetComments) {
  TestServer::Setup setup;
  setup.service.keep_alive = 500ms;
  TestServer server(setup);
  server.engine.delay = 1500ms;
  Client client(server.port());
  client.send(streaming(3));
  EXPECT_TRUE(client.receive_until(": keep-alive\n\n"));
}

TEST(Lifecycle, LoadingIsNotReady) {
  TestServer::Setup setup;
  setup.is_ready = false;
  TestServer server(setup);
  server.service->set_progress(0.5, "loading weights");
  const auto health = server.get("/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.parsed()["progress"], 0.5);
  EXPECT_EQ(health.parsed()["step"], "loading weights");
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}}).status, 503);
  EXPECT_EQ(server.get("/version").status, 200);
  server.service->set_ready(server.engine, testing::storyteller_tokenizer());
  EXPECT_TRUE(TestServer::eventually([&] { return server.get("/health").status == 200; }));
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}}).status, 200);
}

TEST(Lifecycle, DrainingFinishesWhatRunsAndRefusesTheRest) {
  TestServer server;
  server.engine.delay = 100ms;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(std::make_unique<Client>(server.port()));
    clients.back()->send(streaming(5));
  }
  ASSERT_TRUE(TestServer::eventually([&] { return server.engine.submitted() == 10; }));
  server.http->post([&] { server.service->drain(20s); });
  EXPECT_TRUE(TestServer::eventually([&] { return server.get("/health").status == 503; }));
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}}).status, 503);
  for (auto& client : clients) {
    const auto events = client->reply().events();
    ASSERT_FALSE(events.empty());
    EXPECT_EQ(events.back(), "[DONE]");
  }
  EXPECT_TRUE(TestServer::eventually([&] { return server.get("/health").status == 0; }));
  EXPECT_TRUE(server.service->drained());
}

TEST(Lifecycle, WhatOutlivesTheDrainEndsWithAnError) {
  TestServer server(endless());
  server.engine.delay = 20ms;
  Client client(server.port());
  client.send(streaming());
  ASSERT_TRUE(client.receive_until("data: "));
  server.http->post([&] { server.service->drain(200ms); });
  const auto events = client.reply().events();
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(json::parse(events.back())["error"]["code"], "shutting_down");
  EXPECT_TRUE(TestServer::eventually([&] { return server.get("/health").status == 0; }));
  EXPECT_FALSE(server.service->drained());
}

TEST(Lifecycle, ManyStreamsAtOnce) {
  TestServer server;
  server.engine.delay = 2ms;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 300; ++i) {
    clients.push_back(std::make_unique<Client>(server.port()));
    clients.back()->send(streaming(50));
  }
  for (auto& client : clients) {
    const auto events = client->reply().events();
    ASSERT_FALSE(events.empty());
    EXPECT_EQ(events.back(), "[DONE]");
  }
}

}  // namespace
}  // namespace quatrain
