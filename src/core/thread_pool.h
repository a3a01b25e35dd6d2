// SPDX-License-Identifier: Apache-2.0
// ThreadPool: persistent workers for data-parallel loops inside a step.
//
// Plain std::jthread workers, so that the engine can live in a process with an OpenMP runtime
// (PyTorch). A loop allocates nothing. Which thread runs an index is not defined: bodies must give
// the same result on any thread, which is how results stay equal for every thread count.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/cpu_topology.h"

namespace quatrain {

class ThreadPool {
 public:
  /// Nodes that loops tell apart; threads of further ones count as of the last.
  static constexpr int kMostGroups = 16;

  /// `threads` counts the calling thread; 0 means one per entry of `cpus`, or per available core.
  /// Threads, the calling one included, are pinned as place_threads() says. Throws when a CPU does
  /// not exist or may not be used.
  explicit ThreadPool(int threads = 0, const std::vector<int>& cpus = {})
      : ThreadPool(place_threads(cpu_topology(), threads, cpus)) {}
  explicit ThreadPool(std::vector<ThreadPlace> places);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(places_.size()); }

  /// Groups of threads that are next to the same memory.
  int groups() const { return groups_; }
  /// Where the share of a group in n things begins; groups have shares by their threads, so that
  /// what they own is the same whenever n is.
  std::int64_t share_begin(std::int64_t n, int group) const {
    return n * first_thread_[static_cast<std::size_t>(group)] / threads();
  }

  /// Calls body(begin, end, thread) over disjoint ranges that cover [0, n), each at most `grain`
  /// long; `thread` is in [0, threads()). Returns when all are done; rethrows the first exception.
  /// Loops do not nest.
  template <class Body>
  void parallel_for(std::int64_t n, std::int64_t grain, Body&& body) {
    run(std::span(&n, 1), grain, false, call_of<Body>(), context_of(body));
  }

  /// The same over [0, ends.back()), where indices below ends[g] that are not below ends[g − 1]
  /// belong to group g: its threads take those first, and help others then. No range spans two
  /// groups.
  template <class Body>
  void parallel_for_near(std::span<const std::int64_t> ends, std::int64_t grain, Body&& body) {
    run(ends, grain, false, call_of<Body>(), context_of(body));
  }

  /// The same over [0, n), where each group owns the share that share_begin() says and nobody else
  /// touches it: for what first writes memory, which then lies next to the group.
  template <class Body>
  void parallel_for_owners(std::int64_t n, std::int64_t grain, Body&& body) {
    std::array<std::int64_t, kMostGroups> ends;
    for (int g = 0; g < groups_; ++g) ends[static_cast<std::size_t>(g)] = share_begin(n, g + 1);
    run(std::span(ends.data(), static_cast<std::size_t>(groups_)), grain, true, call_of<Body>(),
        context_of(body));
  }

 private:
  using Call = void (*)(void* context, std::int64_t begin, std::int64_t end, int thread);

  template <class Body>
  static Call call_of() {
    return [](void* context, std::int64_t begin, std::int64_t end, int thread) {
      (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end, thread);
    };
  }
  template <class Body>
  static void* context_of(Body& body) {
    return const_cast<void*>(static_cast<const void*>(&body));
  }

  // The next index of a part.
  struct alignas(64) Ranges {
    std::atomic<std::int64_t> next{0};
  };
  std::atomic<std::int64_t>& next(std::size_t part) {
    return part == 0 ? next_ : more_ranges_[part].next;
  }

  void run(std::span<const std::int64_t> ends, std::int64_t grain, bool owners, Call call,
           void* context);
  void work(int thread);
  void stop();
  void take_ranges(int thread);
  void wait_for_owners();

  std::vector<ThreadPlace> places_;
  int groups_ = 1;
  std::array<std::int64_t, kMostGroups + 1> first_thread_{};  // of each group, then of none

  // What a loop without groups reads and writes is one cache line: moving a line between cores
  // takes longer than everything else about a short loop.
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<int> inside_{0};     // workers that look at the job
  std::atomic<bool> open_{false};  // workers may take ranges of the job
  std::atomic<bool> stop_{false};
  // The job: written by run() before generation_ advances, read by workers while it is open.
  bool owners_ = false;
  std::uint8_t parts_ = 1;             // of the job's indices
  std::atomic<std::int64_t> next_{0};  // of the first part
  std::int64_t grain_ = 1;
  Call call_ = nullptr;
  void* context_ = nullptr;
  const char* operation_ = nullptr;
  std::array<std::int64_t, kMostGroups> ends_{};
  std::array<Ranges, kMostGroups> more_ranges_;  // of further parts

  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::vector<std::jthread> workers_;
};

}  // namespace quatrain
