// SPDX-License-Identifier: Apache-2.0
// The load generator: reads any cut of a response, counts what a server does, and gets sums right.
#include "apps/load_report.h"
#include "apps/response_reader.h"
#include "core/error.h"
#include "server/test_server.h"

namespace quatrain {
namespace {

using apps::LoadOptions;
using apps::LoadRecord;
using apps::ResponseReader;
using testing::TestServer;

struct Read {
  int status = 0;
  bool done = false, broken = false, keep_alive = false;
  std::string body;
  std::vector<std::string> events;
  bool operator==(const Read&) const = default;
};

Read read(const std::string& bytes, std::size_t piece) {
  ResponseReader reader;
  Read result;
  for (std::size_t at = 0; at < bytes.size(); at += piece)
    reader.feed(std::string_view(bytes).substr(at, piece), result.events);
  result.status = reader.status();
  result.done = reader.done();
  result.broken = reader.broken();
  result.keep_alive = reader.keep_alive();
  result.body = reader.body();
  return result;
}

TEST(ResponseReader, EveryCutGivesTheSame) {
  const std::string stream =
      "HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream\r\nTransfer-Encoding: chunked\r\n\r\n"
      "8\r\ndata: a\n\r\n1\r\n\n\r\n14\r\n: hm\n\ndata: b\n\ndata:\r\n9\r\n "
      "[DONE]\n\n\r\n0\r\n\r\n";
  const std::string plain =
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"
      "Content-Length: 4\r\n\r\nfull";
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
    const Read got = read(stream, piece);
    EXPECT_EQ(got.status, 200);
    EXPECT_TRUE(got.done && got.keep_alive && !got.broken);
    EXPECT_EQ(got.events, (std::vector<std::string>{"a", "b", "[DONE]"})) << piece;
  }
  for (std::size_t piece = 1; piece <= plain.size(); ++piece)
    EXPECT_EQ(read(plain, piece), (Read{503, true, false, false, "full", {}})) << piece;
  EXPECT_TRUE(read("HTTP/2 200\r\n\r\n", 5).broken);
  EXPECT_TRUE(read("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", 5).broken);
  EXPECT_TRUE(
      read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", 100).broken);
  EXPECT_FALSE(read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", 100).done);
}

LoadOptions options_for(const TestServer& server, std::int64_t requests) {
  LoadOptions options;
  options.port = server.port();
  options.requests = requests;
  options.concurrency = 10;
  options.body = [](std::int64_t) {
    return R"({"prompt":"a","max_tokens":4,"stream":true,"stream_options":{"include_usage":true}})";
  };
  return options;
}

TEST(Load, CountsWhatTheServerDoes) {
  TestServer server;
  const auto records = run_load(options_for(server, 100));
  const auto report = apps::make_report(records, {}, 0);
  EXPECT_EQ(report.requests, 100);
  EXPECT_EQ(report.complete, 100);
  EXPECT_EQ(report.good, 100);
  EXPECT_EQ(report.output_tokens, 400);
  EXPECT_EQ(report.first_token.count, 100u);
  EXPECT_EQ(server.engine.submitted(), 100);
  EXPECT_LE(server.http->connections(), 10u);

  auto whole = options_for(server, 20);
  whole.body = [](std::int64_t) { return R"({"prompt":"a","max_tokens":4})"; };
  EXPECT_EQ(apps::make_report(run_load(whole), {}, 0).output_tokens, 80);

  server.engine.max_waiting = 0;
  const auto refused = apps::make_report(run_load(options_for(server, 50)), {}, 0);
  EXPECT_EQ(refused.refused, 50);
  EXPECT_EQ(refused.status.at(503), 50);
}

TEST(Load, StartsAtARateAndGivesUpInTime) {
  TestServer server;
  auto options = options_for(server, 60);
  options.rate = 200;
  options.concurrency = 0;
  const auto records = run_load(options);
  ASSERT_EQ(records.size(), 60u);
  EXPECT_GT(records.back().begin, 0.1);
  TestServer slow;
  slow.engine.delay = std::chrono::milliseconds(800);
  options = options_for(slow, 2);
  options.timeout = 0.2;
  for (const LoadRecord& record : run_load(options)) {
    EXPECT_FALSE(record.complete);
    EXPECT_GT(record.end, 0.2);
  }
  EXPECT_TRUE(TestServer::eventually([&] { return server.engine.stats().running == 0; }));
}

TEST(LoadReport, SumsAndPercentiles) {
  std::vector<double> times;
  for (int i = 1000; i > 0; --i) times.push_back(i);
  const auto spread = apps::time_spread(times);
  EXPECT_EQ(spread.median, 501);
  EXPECT_EQ(spread.p99, 991);
  EXPECT_EQ(spread.max, 1000);
  EXPECT_DOUBLE_EQ(spread.mean, 500.5);

  LoadRecord good;
  good.status = 200;
  good.complete = true;
  good.begin = 1;
  good.end = 0.5;
  good.tokens = {0.1f, 0.21f, 0.3f};
  good.completion_tokens = 3;
  LoadRecord slow = good;
  slow.tokens = {0.4f, 0.45f, 0.5f};
  LoadRecord cut = good;
  cut.complete = false;
  const auto report =
      apps::make_report({good, slow, cut}, apps::parse_goals("ttft:200,tpot:110"), 0.1);
  EXPECT_EQ(report.complete, 2);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.good, 1);
  EXPECT_EQ(report.output_tokens, 6);
  EXPECT_DOUBLE_EQ(report.seconds, 0.5);
  EXPECT_NEAR(report.lag.max, 100, 1e-3);  // the slow one's first token, against its last
  const auto json = nlohmann::json::parse(apps::format_json(report, "x", LoadOptions()));
  EXPECT_EQ(json["completed"], 2);
  EXPECT_NEAR(json["p99_tpot_ms"].get<double>(), 100, 1e-3);
  EXPECT_NE(apps::format_text(report).find("time to first token"), std::string::npos);
  for (const char* wrong :
       {"ttft", "ttft:", "ttft:x", "ttft:1x", "ttft:-1", "other:5", "ttft:1;tpot:2"})
    EXPECT_THROW(apps::parse_goals(wrong), Error) << wrong;
}

}  // namespace
}  // namespace quatrain
