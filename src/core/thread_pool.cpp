// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/error.h"
#include "core/step_guard.h"

namespace quatrain {
namespace {

// Spins this long before sleeping: a step is hundreds of loops a few µs apart, with some work of
// one thread between them, and waking costs ten times a loop's start or more.
constexpr std::chrono::microseconds kSpinTime(200);
constexpr int kSpinsPerLook = 32;  // at the clock
// Most threads that have a share of their own in each loop.
constexpr int kMostShares = 8;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

template <class T>
void wait_while_equal(std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpinsPerLook; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  const auto until = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  value.wait(old, std::memory_order_acquire);
}

// To some of these processors.
void pin(pthread_t thread, const std::vector<int>& cpus) {
  if (cpus.empty()) return;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  bool fits = true;
  for (const int cpu : cpus) {
    fits = fits && cpu >= 0 && cpu < CPU_SETSIZE;
    if (fits) CPU_SET(static_cast<unsigned>(cpu), &set);
  }
  if (!fits || pthread_setaffinity_np(thread, sizeof(set), &set) != 0)
    fail("CPU {} cannot be used: it does not exist, or the process may not run on it",
         cpus.front());
#else
  (void)thread;
  fail("CPU {}: threads cannot be pinned on this system", cpus.front());
#endif
}

}  // namespace

ThreadPool::ThreadPool(std::vector<ThreadPlace> places) : places_(std::move(places)) {
  for (ThreadPlace& place : places_) place.group = std::min(place.group, kMostGroups - 1);
  groups_ = places_.back().group + 1;
  first_thread_.fill(threads());
  for (int t = threads() - 1; t >= 0; --t)
    first_thread_[static_cast<std::size_t>(places_[static_cast<std::size_t>(t)].group)] = t;
  workers_.reserve(places_.size() - 1);
  try {
    for (int t = 1; t < threads(); ++t) {
      workers_.emplace_back([this, t] { work(t); });
      pin(workers_.back().native_handle(), places_[static_cast<std::size_t>(t)].cpus);
    }
    pin(pthread_self(), places_.front().cpus);
  } catch (...) {  // the machine refuses more threads: those that started must end
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
}

void ThreadPool::run(std::span<const std::int64_t> ends, std::int64_t grain, bool owners, Call call,
                     void* context) {
  const std::int64_t n = ends.back();
  if (n <= 0) return;
  grain = std::max<std::int64_t>(1, grain);
  if (workers_.empty() || (n <= grain && ends.size() == 1)) {
    for (std::int64_t begin = 0; begin < n; begin += grain)
      call(context, begin, std::min(n, begin + grain), 0);
    return;
  }
  call_ = call;
  context_ = context;
  grain_ = grain;
  owners_ = owners && ends.size() > 1;  // one group may do all, whoever of it is awake
  operation_ = step_operation;
  // Each of a few threads begins with a share of its own, the same whenever n is: what it wrote in
  // one loop is still in its cache in the next. Of many threads each would look at the shares of
  // all others when it is done with its own.
  const bool by_thread = ends.size() == 1 && threads() <= kMostShares;
  parts_ = static_cast<std::uint8_t>(by_thread ? threads() : std::ssize(ends));
  std::int64_t begin = 0;
  for (int g = 0; g < parts_; ++g) {
    const auto part = static_cast<std::size_t>(g);
    next(part).store(begin, std::memory_order_relaxed);
    begin = ends_[part] = by_thread ? n * (g + 1) / threads() : ends[part];
  }
  open_.store(true);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  take_ranges(0);
  if (owners_) wait_for_owners();
  // All ranges are taken: wait for the workers that took some, not for those that never woke. The
  // order of open_ and inside_ is total, so a worker either is counted here or sees the job closed.
  open_.store(false);
  for (int inside; (inside = inside_.load()) != 0;) wait_while_equal(inside_, inside);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

// Until other groups have taken what is theirs.
void ThreadPool::wait_for_owners() {
  for (std::size_t g = 0; g < static_cast<std::size_t>(parts_); ++g)
    while (next(g).load(std::memory_order_relaxed) < ends_[g]) std::this_thread::yield();
}

void ThreadPool::take_ranges(int thread) {
  // Parts are of threads or of groups; where these are as many, they are the same.
  const int own = parts_ == threads() ? thread
                  : parts_ == 1       ? 0
                                      : places_[static_cast<std::size_t>(thread)].group;
  const std::int64_t grain = grain_;
  try {
    for (int i = 0; i < (owners_ ? 1 : parts_); ++i) {
      const auto part = static_cast<std::size_t>((own + i) % parts_);
      const std::int64_t end = ends_[part];
      for (;;) {
        const std::int64_t begin = next(part).fetch_add(grain, std::memory_order_relaxed);
        if (begin >= end) break;
        call_(context_, begin, std::min(end, begin + grain), thread);
      }
    }
  } catch (...) {
    for (std::size_t g = 0; g < static_cast<std::size_t>(parts_); ++g)
      next(g).store(ends_[g], std::memory_order_relaxed);
    const std::scoped_lock lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::work(int thread) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_while_equal(generation_, seen);
    const std::uint32_t now = generation_.load(std::memory_order_acquire);
    if (now == seen) continue;
    seen = now;
    if (stop_.load(std::memory_order_acquire)) return;
    inside_.fetch_add(1);
    if (open_.load()) {
      const StepGuard guard(operation_);
      take_ranges(thread);
    }
    if (inside_.fetch_sub(1) == 1) inside_.notify_one();
  }
}

}  // namespace quatrain
