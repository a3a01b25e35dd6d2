// SPDX-License-Identifier: Apache-2.0
// The logger: levels, prefixes, timestamps, and whole lines from several threads.
#include "core/log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace quatrain {
namespace {

class Log : public testing::Test {
 protected:
  void TearDown() override {
    set_log_level(LogLevel::kInfo);
    set_log_timestamps(false);
    set_log_format(LogFormat::kText);
  }
  template <class Action>
  static std::string captured(Action action) {
    testing::internal::CaptureStderr();
    action();
    return testing::internal::GetCapturedStderr();
  }
  static void one_of_each() {
    log_error("e {}", 1);
    log_warn("w {}", 2);
    log_info("i {}", 3);
    log_debug("d {}", 4);
  }
};

TEST_F(Log, LevelsCutOff) {
  EXPECT_EQ(captured(one_of_each), "error: e 1\nwarning: w 2\ni 3\n");
  set_log_level(LogLevel::kError);
  EXPECT_EQ(captured(one_of_each), "error: e 1\n");
  set_log_level(LogLevel::kWarn);
  EXPECT_EQ(captured(one_of_each), "error: e 1\nwarning: w 2\n");
  set_log_level(LogLevel::kDebug);
  EXPECT_EQ(captured(one_of_each), "error: e 1\nwarning: w 2\ni 3\ndebug: d 4\n");
}

TEST_F(Log, Names) {
  EXPECT_EQ(log_level_from_name("error"), LogLevel::kError);
  EXPECT_EQ(log_level_from_name("warn"), LogLevel::kWarn);
  EXPECT_EQ(log_level_from_name("info"), LogLevel::kInfo);
  EXPECT_EQ(log_level_from_name("debug"), LogLevel::kDebug);
  EXPECT_EQ(log_level_from_name("loud"), std::nullopt);
}

TEST_F(Log, JsonIsOneObjectALine) {
  const auto event = [] {
    log_event(LogLevel::kInfo, "ready", "serving \"here\"", R"("port":80)");
    log_event(LogLevel::kDebug, "hidden", "hidden", "");
    log_warn("line\n\"two\"");
  };
  EXPECT_EQ(captured(event), "serving \"here\"\nwarning: line\n\"two\"\n");
  set_log_format(LogFormat::kJson);
  const std::string time = R"(\{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",)";
  const std::string text = captured(event);
  EXPECT_TRUE(std::regex_match(
      text, std::regex(time + R"("level":"info","event":"ready","port":80\}\n)" + time +
                       R"("level":"warn","event":"log","message":"line\\n\\"two\\""\}\n)")))
      << text;
}

TEST_F(Log, TimestampsOnRequest) {
  set_log_timestamps(true);
  const std::string line = captured([] { log_warn("late"); });
  EXPECT_TRUE(std::regex_match(
      line, std::regex(R"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} warning: late\n)")))
      << line;
}

TEST_F(Log, LinesOfSeveralThreadsStayWhole) {
  constexpr int kThreads = 4;
  constexpr int kLines = 500;
  const std::string text = captured([] {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t)
      threads.emplace_back([t] {
        for (int i = 0; i < kLines; ++i)
          log_info("thread {} line {} {}", t, i, std::string(80, 'x'));
      });
  });
  std::vector<int> next(kThreads, 0);
  std::istringstream lines(text);
  std::string word;
  int thread = 0;
  int line = 0;
  std::string tail;
  while (lines >> word >> thread >> word >> line >> tail) {
    ASSERT_EQ(line, next.at(static_cast<std::size_t>(thread))++);
    ASSERT_EQ(tail, std::string(80, 'x'));
  }
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), kThreads * kLines);
  for (const int n : next) EXPECT_EQ(n, kLines);
}

}  // namespace
}  // namespace quatrain
