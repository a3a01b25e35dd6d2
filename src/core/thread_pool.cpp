// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/step_guard.h"

namespace quatrain {
namespace {

// Spins this often before sleeping: a decode step is hundreds of loops a few µs apart, and a futex
// wake costs more than that.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

template <class T>
void wait_while_equal(std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

void pin(pthread_t thread, int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool fits = cpu >= 0 && cpu < CPU_SETSIZE;
  if (fits) CPU_SET(static_cast<unsigned>(cpu), &set);
  if (!fits || pthread_setaffinity_np(thread, sizeof(set), &set) != 0)
    fail("CPU {} cannot be used: it does not exist, or the process may not run on it", cpu);
#else
  (void)thread;
  fail("CPU {}: threads cannot be pinned on this system", cpu);
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, std::vector<int> cpus) {
  if (threads <= 0)
    threads = cpus.empty() ? std::max(1, static_cast<int>(std::thread::hardware_concurrency()))
                           : static_cast<int>(cpus.size());
  const auto cpu_of = [&](int t) { return cpus[static_cast<std::size_t>(t) % cpus.size()]; };
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int t = 1; t < threads; ++t) {
      workers_.emplace_back([this, t] { work(t); });
      if (!cpus.empty()) pin(workers_.back().native_handle(), cpu_of(t));
    }
    if (!cpus.empty()) pin(pthread_self(), cpu_of(0));
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

void ThreadPool::run(std::int64_t n, std::int64_t grain, Call call, void* context) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(1, grain);
  if (workers_.empty() || n <= grain) {
    for (std::int64_t begin = 0; begin < n; begin += grain)
      call(context, begin, std::min(n, begin + grain), 0);
    return;
  }
  call_ = call;
  context_ = context;
  n_ = n;
  grain_ = grain;
  operation_ = step_operation;
  next_.store(0, std::memory_order_relaxed);
  open_.store(true);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  take_ranges(0);
  // All ranges are taken: wait for the workers that took some, not for those that never woke. The
  // order of open_ and inside_ is total, so a worker either is counted here or sees the job closed.
  open_.store(false);
  for (int inside; (inside = inside_.load()) != 0;) wait_while_equal(inside_, inside);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::take_ranges(int thread) {
  try {
    for (;;) {
      const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= n_) return;
      call_(context_, begin, std::min(n_, begin + grain_), thread);
    }
  } catch (...) {
    next_.store(n_, std::memory_order_relaxed);
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
