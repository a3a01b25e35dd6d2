// SPDX-License-Identifier: Apache-2.0
// The progress bar with a clock and a file of the test's own: what is drawn, and how often.
#include "core/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace quatrain {
namespace {

class Progress : public testing::Test {
 protected:
  Progress() : file_(open_memstream(&text_, &size_)) {}
  ~Progress() override {
    std::fclose(file_);
    std::free(text_);
  }
  ProgressOptions options(bool is_terminal) {
    return {
        .enabled = true, .file = file_, .is_terminal = is_terminal, .columns = 80, .clock = [this] {
          return now_;
        }};
  }
  std::string text() {
    std::fflush(file_);
    return std::string(text_, size_);
  }
  std::int64_t count(char c) {
    const std::string all = text();
    return std::count(all.begin(), all.end(), c);
  }

  char* text_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* file_;
  double now_ = 100;
};

constexpr std::int64_t kGB = 1'000'000'000;

TEST_F(Progress, TerminalDrawsABar) {
  ProgressBar bar("loading", 4 * kGB, options(true));
  now_ += 2;
  bar.advance(kGB);
  EXPECT_EQ(text(),
            "\r\x1b[Kloading [=======-----------------------] 1.00/4.00 GB, 500.00 MB/s, 6 s left");
  now_ += 2;
  bar.advance(3 * kGB);
  bar.finish();
  const std::string all = text();
  const std::string closing = "\r\x1b[Kloading: 4.00 GB in 4.0 s, 1.00 GB/s\n";
  EXPECT_EQ(all.substr(all.size() - closing.size()), closing);
  EXPECT_EQ(count('\n'), 1);
}

TEST_F(Progress, TerminalRedrawsAtMostTenTimesASecond) {
  ProgressBar bar("loading", 4 * kGB, options(true));
  for (int i = 0; i < 1000; ++i) {
    now_ += 0.001;
    bar.advance(1000);
  }
  EXPECT_GE(count('\r'), 9);
  EXPECT_LE(count('\r'), 10);
}

TEST_F(Progress, PlainLinesEveryFiveSeconds) {
  ProgressBar bar("loading", 100 * kGB, options(false));
  for (int i = 0; i < 240; ++i) {  // 12 seconds
    now_ += 0.05;
    bar.advance(kGB / 20);
  }
  bar.finish();
  EXPECT_EQ(count('\n'), 3) << text();
  EXPECT_EQ(count('\r'), 0);
  EXPECT_EQ(count('\x1b'), 0);
  const std::string all = text();
  EXPECT_EQ(all.find("loading: 5.0"), 0u) << all;
  EXPECT_NE(all.find("/100.00 GB, 1.00 GB/s, 1:3"), std::string::npos) << all;
  EXPECT_NE(all.find("loading: 12.00 GB in 12.0 s, 1.00 GB/s\n"), std::string::npos) << all;
}

TEST_F(Progress, ShortWorkIsOneLine) {
  ProgressBar bar("loading", 25'000'000, options(false));
  now_ += 0.5;
  bar.advance(25'000'000);
  bar.finish();
  bar.finish();
  EXPECT_EQ(text(), "loading: 25.00 MB in 0.5 s, 50.00 MB/s\n");
}

TEST_F(Progress, CountsOtherThingsThanBytes) {
  ProgressOptions options = this->options(false);
  options.unit = "steps";
  ProgressBar bar("recording", 11, options);
  now_ += 6;
  bar.advance(3);
  EXPECT_EQ(text(), "recording: 3/11 steps, 16 s left\n");
  now_ += 2;
  bar.advance(8);
  bar.finish();
  EXPECT_EQ(text(), "recording: 3/11 steps, 16 s left\nrecording: 11 steps in 8.0 s\n");
}

TEST_F(Progress, WithoutFinishTheBarIsErased) {
  {
    ProgressBar bar("loading", 4 * kGB, options(true));
    now_ += 1;
    bar.advance(kGB);
  }
  const std::string all = text();
  EXPECT_EQ(all.substr(all.size() - 4), "\r\x1b[K") << "an error message starts on a clean line";
  EXPECT_EQ(count('\n'), 0);
}

TEST_F(Progress, WithoutFinishAPlainOneSaysNothing) {
  { ProgressBar bar("loading", 4 * kGB, options(false)); }
  EXPECT_EQ(text(), "");
}

TEST_F(Progress, DisabledSaysNothing) {
  for (const bool is_terminal : {true, false}) {
    ProgressOptions quiet = options(is_terminal);
    quiet.enabled = false;
    ProgressBar bar("loading", kGB, quiet);
    now_ += 60;
    bar.advance(kGB);
    bar.finish();
  }
  EXPECT_EQ(text(), "");
}

TEST_F(Progress, NeverWiderThanTheTerminal) {
  for (const int columns : {0, 1, 2, 10, 40, 55, 60, 79, 200}) {
    const std::size_t before = text().size();
    ProgressOptions narrow = options(true);
    narrow.columns = columns;
    std::optional<ProgressBar> bar(std::in_place, "loading", 4 * kGB, narrow);
    now_ += 1;
    bar->advance(kGB);
    const std::string line = text().substr(before + 4);  // after the erasing sequence
    EXPECT_LE(static_cast<int>(line.size()), std::max(columns - 1, 0)) << line;
    bar.reset();
  }
}

TEST_F(Progress, MoreThanAnnouncedAndNothingAnnounced) {
  ProgressBar more("writing", kGB, options(true));
  now_ += 1;
  more.advance(3 * kGB);
  EXPECT_NE(text().find("3.00/3.00 GB"), std::string::npos) << text();
  ProgressBar empty("writing", 0, options(true));
  now_ += 1;
  empty.advance(0);
  empty.finish();
  EXPECT_NE(text().find("writing: 0.00 kB in 1.0 s"), std::string::npos) << text();
}

TEST_F(Progress, AdvancesFromManyThreads) {
  ProgressBar bar("loading", 4'000'000, options(false));
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&] {
        for (int i = 0; i < 10'000; ++i) bar.advance(100);
      });
  }
  now_ += 1;
  bar.finish();
  EXPECT_EQ(text(), "loading: 4.00 MB in 1.0 s, 4.00 MB/s\n");
}

TEST(ProgressOptions, StderrIsAskedWhatItIs) {
  const ProgressOptions options = ProgressOptions::for_stderr();
  EXPECT_TRUE(options.enabled);
  EXPECT_EQ(options.file, stderr);
  EXPECT_GT(options.columns, 0);
}

}  // namespace
}  // namespace quatrain
