// SPDX-License-Identifier: Apache-2.0
// ThreadPool: persistent workers for data-parallel loops inside a step.
//
// Plain std::jthread workers, so that the engine can live in a process with an OpenMP runtime
// (PyTorch). A loop allocates nothing. Which thread runs an index is not defined: bodies must give
// the same result on any thread, which is how results stay equal for every thread count.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace quatrain {

class ThreadPool {
 public:
  /// `threads` counts the calling thread; 0 means one per entry of `cpus`, or per available core.
  /// Thread i, the calling one included, is pinned to cpus[i mod size]; no `cpus`, no pinning.
  /// Throws when a CPU does not exist or may not be used.
  explicit ThreadPool(int threads = 0, std::vector<int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(begin, end, thread) over disjoint ranges that cover [0, n), each at most `grain`
  /// long; `thread` is in [0, threads()). Returns when all are done; rethrows the first exception.
  /// Loops do not nest.
  template <class Body>
  void parallel_for(std::int64_t n, std::int64_t grain, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(
        n, grain,
        [](void* context, std::int64_t begin, std::int64_t end, int thread) {
          (*static_cast<Plain*>(context))(begin, end, thread);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Call = void (*)(void* context, std::int64_t begin, std::int64_t end, int thread);

  void run(std::int64_t n, std::int64_t grain, Call call, void* context);
  void work(int thread);
  void stop();
  void take_ranges(int thread);

  // The job: written by run() before generation_ advances, read by workers while it is open.
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::int64_t n_ = 0;
  std::int64_t grain_ = 1;
  const char* operation_ = nullptr;
  std::atomic<std::int64_t> next_{0};

  std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> open_{false};  // workers may take ranges of the job
  std::atomic<int> inside_{0};     // workers that look at the job
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::vector<std::jthread> workers_;
};

}  // namespace quatrain
