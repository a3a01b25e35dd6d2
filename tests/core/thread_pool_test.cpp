// SPDX-License-Identifier: Apache-2.0
// The thread pool: every index once, exceptions come through, loops by the ten thousand, many
// pools.
#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace quatrain {
namespace {

void expect_covered_once(ThreadPool& pool, std::int64_t n, std::int64_t grain) {
  std::vector<std::atomic<int>> hits(static_cast<std::size_t>(n));
  std::atomic<bool> bad_range{false};
  pool.parallel_for(n, grain, [&](std::int64_t begin, std::int64_t end, int thread) {
    if (begin < 0 || begin >= end || end > n || end - begin > std::max<std::int64_t>(grain, 1) ||
        thread < 0 || thread >= pool.threads())
      bad_range = true;
    for (std::int64_t i = begin; i < end; ++i) hits[static_cast<std::size_t>(i)]++;
  });
  EXPECT_FALSE(bad_range) << n << " " << grain;
  for (const auto& hit : hits) ASSERT_EQ(hit, 1) << n << " by " << grain;
}

TEST(ThreadPool, EveryIndexOnce) {
  for (const int threads : {1, 2, 3, 4, 7, 16}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    for (const std::int64_t n : {1, 2, 3, 5, 16, 63, 64, 65, 1000, 4099})
      for (const std::int64_t grain : {-3, 0, 1, 2, 3, 7, 64, 1000, 100000})
        expect_covered_once(pool, n, grain);
  }
}

TEST(ThreadPool, NothingToDo) {
  ThreadPool pool(3);
  for (const std::int64_t n : {0, -1, -1000})
    pool.parallel_for(n, 1, [](std::int64_t, std::int64_t, int) { FAIL() << "called"; });
}

TEST(ThreadPool, DefaultUsesTheMachine) {
  EXPECT_EQ(ThreadPool().threads(),
            std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  EXPECT_EQ(ThreadPool(-2).threads(), ThreadPool(0).threads());
}

TEST(ThreadPool, AThreadRunsOneRangeAtATime) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<int> overlaps{0};
  pool.parallel_for(20000, 1, [&](std::int64_t, std::int64_t, int thread) {
    if (inside[static_cast<std::size_t>(thread)].fetch_add(1) != 0) ++overlaps;
    inside[static_cast<std::size_t>(thread)].fetch_sub(1);
  });
  EXPECT_EQ(overlaps, 0);
}

TEST(ThreadPool, WorkersTakePart) {
  ThreadPool pool(3);
  std::atomic<int> arrived{0};
  // Every range waits until three threads are inside at once: only possible with all of them.
  pool.parallel_for(3, 1, [&](std::int64_t, std::int64_t, int) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 3);
}

TEST(ThreadPool, ExceptionsComeThrough) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const std::int64_t at : {0, 1, 499, 999}) {
      try {
        pool.parallel_for(1000, 1, [&](std::int64_t begin, std::int64_t, int) {
          if (begin == at) throw std::runtime_error("at " + std::to_string(begin));
        });
        FAIL() << "no exception";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(error.what(), "at " + std::to_string(at));
      }
      expect_covered_once(pool, 100, 3);  // usable as before
    }
  }
}

TEST(ThreadPool, OneOfManyExceptionsIsRethrown) {
  ThreadPool pool(4);
  for (int i = 0; i < 200; ++i) {
    const auto body = [](std::int64_t, std::int64_t, int) {
      throw std::logic_error("all of them");
    };
    EXPECT_THROW(pool.parallel_for(64, 1, body), std::logic_error);
  }
}

TEST(ThreadPool, TenThousandLoops) {
  ThreadPool pool(3);
  std::vector<std::int64_t> data(257);
  for (std::int64_t round = 0; round < 10'000; ++round) {
    pool.parallel_for(257, 16, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) data[static_cast<std::size_t>(i)] += i + round;
    });
  }
  for (std::int64_t i = 0; i < 257; ++i)
    ASSERT_EQ(data[static_cast<std::size_t>(i)], 10'000 * i + 10'000 * 9'999 / 2);
}

TEST(ThreadPool, ManyPoolsComeAndGo) {
  for (int round = 0; round < 100; ++round) {
    ThreadPool used(3);
    expect_covered_once(used, 50, 1);
    const ThreadPool unused(4);
  }
}

TEST(ThreadPool, PoolsOfSeveralThreadsAreIndependent) {
  std::vector<std::jthread> owners;
  std::atomic<std::int64_t> total{0};
  for (int owner = 0; owner < 4; ++owner) {
    owners.emplace_back([&] {
      ThreadPool pool(3);
      for (int round = 0; round < 200; ++round)
        pool.parallel_for(100, 7,
                          [&](std::int64_t begin, std::int64_t end, int) { total += end - begin; });
    });
  }
  owners.clear();
  EXPECT_EQ(total, 4 * 200 * 100);
}

TEST(ThreadPool, SleepingWorkersWakeUp) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // long past any spinning
    expect_covered_once(pool, 1000, 10);
  }
}

}  // namespace
}  // namespace quatrain
