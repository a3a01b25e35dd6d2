// SPDX-License-Identifier: Apache-2.0
// The guard against allocation inside a step: it names the operation and ends the process, on the
// calling thread and on pool workers, and stays out of the way otherwise.
#include "core/step_guard.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <new>
#include <string>
#include <thread>

#include "core/error.h"
#include "core/thread_pool.h"

namespace quatrain {
namespace {

/// A direct call, which the compiler may not remove.
void allocate(std::size_t bytes) { ::operator delete(::operator new(bytes)); }

class StepGuardDeath : public testing::Test {
 protected:
  void SetUp() override { testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

TEST_F(StepGuardDeath, NamesTheOperation) {
  EXPECT_DEATH(
      {
        const StepGuard guard("hc_pre");
        allocate(48);
      },
      "operation 'hc_pre' allocated 48 bytes inside a step");
}

TEST_F(StepGuardDeath, EveryFormOfNew) {
  const auto guarded = [](auto action) {
    const StepGuard guard("attend");
    action();
  };
  const std::string expected = "operation 'attend' allocated";
  EXPECT_DEATH(guarded([] { ::operator delete[](::operator new[](7)); }), expected);
  EXPECT_DEATH(guarded([] { ::operator delete(::operator new(7, std::nothrow)); }), expected);
  EXPECT_DEATH(guarded([] { ::operator delete[](::operator new[](7, std::nothrow)); }), expected);
  EXPECT_DEATH(guarded([] {
                 ::operator delete (::operator new (64, std::align_val_t{64}),
                                    std::align_val_t{64});
               }),
               expected);
  EXPECT_DEATH(guarded([] {
                 ::operator delete[](::operator new[](64, std::align_val_t{64}),
                                     std::align_val_t{64});
               }),
               expected);
}

TEST_F(StepGuardDeath, LaterNamesReplaceEarlierOnes) {
  EXPECT_DEATH(
      {
        const StepGuard guard("step");
        StepGuard::enter("route");
        StepGuard::enter("experts");
        allocate(1);
      },
      "operation 'experts' allocated");
}

TEST_F(StepGuardDeath, CoversPoolWorkers) {
  EXPECT_DEATH(
      {
        ThreadPool pool(2);
        std::atomic<bool> worker_came{false};
        const StepGuard guard("linear");
        // The caller waits inside its range, so the other range falls to the worker.
        pool.parallel_for(2, 1, [&](std::int64_t, std::int64_t, int thread) {
          if (thread == 0) {
            while (!worker_came) std::this_thread::yield();
          } else {
            worker_came = true;
            allocate(24);
          }
        });
      },
      "operation 'linear' allocated 24 bytes");
}

TEST(StepGuard, EndsWithItsScope) {
  {
    const StepGuard guard("outer");
    EXPECT_STREQ(step_operation, "outer");
    {
      const StepGuard inner("inner");
      EXPECT_STREQ(step_operation, "inner");
    }
    EXPECT_STREQ(step_operation, "outer");
    const StepGuardPause pause(nullptr);
    allocate(100);
  }
  EXPECT_EQ(step_operation, nullptr);
  allocate(100);
}

TEST(StepGuard, EnterDoesNothingWithoutAGuard) {
  StepGuard::enter("idle");
  EXPECT_EQ(step_operation, nullptr);
  allocate(100);
}

TEST(StepGuard, OtherThreadsAreFree) {
  ThreadPool pool(2);
  std::atomic<bool> go{false};
  std::jthread other([&] {
    while (!go) std::this_thread::yield();
    allocate(100);
  });
  const StepGuard guard("mine");
  go = true;
  other.join();
}

TEST(StepGuard, WorkersAreFreeAgainAfterTheLoop) {
  ThreadPool pool(3);
  std::atomic<int> armed{0};
  const auto count = [&](std::int64_t, std::int64_t, int) { armed += step_operation != nullptr; };
  {
    const StepGuard guard("loop");
    pool.parallel_for(64, 1, count);
  }
  EXPECT_EQ(armed, 64);
  armed = 0;
  pool.parallel_for(64, 1, count);
  EXPECT_EQ(armed, 0);
}

TEST(StepGuard, LoopsDoNotAllocate) {
  ThreadPool pool(3);
  std::atomic<std::int64_t> sum{0};
  const StepGuard guard("parallel_for");
  for (int i = 0; i < 100; ++i)
    pool.parallel_for(100, 7,
                      [&](std::int64_t begin, std::int64_t end, int) { sum += end - begin; });
  EXPECT_EQ(sum, 100 * 100);
}

TEST(StepGuard, AnErrorInsideAStepKeepsItsMessage) {
  ThreadPool pool(2);
  const auto message = [&](int n) -> std::string {
    try {
      const StepGuard guard("select");
      pool.parallel_for(n, 1, [&](std::int64_t, std::int64_t, int) {
        QT_CHECK(n < 0, "a message of {} that is too long for any small buffer", n);
      });
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message(1).find("a message of 1 that"), 0u);
  EXPECT_EQ(message(8).find("a message of 8 that"), 0u);
  EXPECT_EQ(step_operation, nullptr);
}

TEST(AllocGuard, ImpossibleSizesThrow) {
  volatile std::size_t huge = SIZE_MAX - 8;  // volatile: the compiler would warn of the size
  EXPECT_THROW((void)::operator new (huge, std::align_val_t{64}), std::bad_alloc);
}

}  // namespace
}  // namespace quatrain
