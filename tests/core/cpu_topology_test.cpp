// SPDX-License-Identifier: Apache-2.0
// Where threads go on machines with one node and, made up, with several; and loops that give each
// node its own.
#include "core/cpu_topology.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "core/thread_pool.h"

namespace quatrain {
namespace {

CpuTopology machine(const std::vector<std::vector<int>>& nodes) {
  CpuTopology out;
  for (const auto& cpus : nodes)
    out.nodes.push_back({.id = static_cast<int>(out.nodes.size()), .cpus = cpus});
  return out;
}

std::vector<int> groups_of(const std::vector<ThreadPlace>& places) {
  std::vector<int> out;
  for (const ThreadPlace& place : places) out.push_back(place.group);
  return out;
}

// As place_threads() would on a machine with one thread on each of `groups`, without pinning.
std::vector<ThreadPlace> unpinned(const std::vector<int>& groups) {
  std::vector<ThreadPlace> out;
  for (const int group : groups) out.push_back({.cpus = {}, .group = group});
  return out;
}

TEST(CpuTopology, OfThisMachine) {
  const CpuTopology& topology = cpu_topology();
  ASSERT_FALSE(topology.nodes.empty());
  EXPECT_FALSE(topology.source.empty());
  for (const CpuNode& node : topology.nodes) EXPECT_FALSE(node.cpus.empty());
}

TEST(PlaceThreads, OneNodePinsNothing) {
  const CpuTopology topology = machine({{0, 1, 2, 3}});
  for (const int threads : {0, 3, 9}) {
    const auto places = place_threads(topology, threads, {});
    EXPECT_EQ(std::ssize(places), threads == 0 ? 4 : threads);
    for (const ThreadPlace& place : places) {
      EXPECT_TRUE(place.cpus.empty());
      EXPECT_EQ(place.group, 0);
    }
  }
}

TEST(PlaceThreads, NodesGetThreadsByTheirProcessors) {
  const CpuTopology topology = machine({{0, 1}, {2, 3, 4, 5}});
  const auto all = place_threads(topology, 0, {});
  EXPECT_EQ(groups_of(all), (std::vector<int>{0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(all[1].cpus, topology.nodes[0].cpus);
  EXPECT_EQ(all[2].cpus, topology.nodes[1].cpus);
  EXPECT_EQ(groups_of(place_threads(topology, 3, {})), (std::vector<int>{0, 1, 1}));
  EXPECT_EQ(groups_of(place_threads(topology, 1, {})), (std::vector<int>{0}));
  EXPECT_EQ(place_threads(topology, 13, {}).size(), 13u) << "more threads than processors";
}

TEST(PlaceThreads, AMaskGivesEachThreadAProcessor) {
  const CpuTopology topology = machine({{0, 1}, {2, 3}, {4, 5}});
  const auto places = place_threads(topology, 0, {5, 0, 4});
  EXPECT_EQ(groups_of(places), (std::vector<int>{0, 1, 1})) << "node 1 is not used";
  EXPECT_EQ(places[0].cpus, std::vector<int>{0});
  EXPECT_EQ(places[1].cpus, std::vector<int>{5});
  EXPECT_EQ(places[2].cpus, std::vector<int>{4});
  EXPECT_EQ(place_threads(topology, 4, {5, 0}).size(), 4u);
}

TEST(ThreadPoolGroups, SharesCoverAllAndFollowTheThreads) {
  ThreadPool pool(unpinned({0, 0, 1, 2, 2}));
  ASSERT_EQ(pool.groups(), 3);
  for (const std::int64_t n : {0, 1, 4, 5, 64, 1001}) {
    EXPECT_EQ(pool.share_begin(n, 0), 0);
    EXPECT_EQ(pool.share_begin(n, 1), n * 2 / 5);
    EXPECT_EQ(pool.share_begin(n, 2), n * 3 / 5);
    EXPECT_EQ(pool.share_begin(n, 3), n);
  }
}

TEST(ThreadPoolGroups, OwnersRunTheirShareAndNobodyElse) {
  const std::vector<int> groups{0, 0, 1, 2, 2};
  ThreadPool pool(unpinned(groups));
  for (const std::int64_t n : {1, 2, 7, 64, 1001}) {
    std::vector<std::atomic<int>> group(static_cast<std::size_t>(n));
    for (auto& g : group) g = -1;
    pool.parallel_for_owners(n, 3, [&](std::int64_t begin, std::int64_t end, int thread) {
      for (std::int64_t i = begin; i < end; ++i)
        group[static_cast<std::size_t>(i)] = groups[static_cast<std::size_t>(thread)];
    });
    for (int g = 0; g < 3; ++g)
      for (std::int64_t i = pool.share_begin(n, g); i < pool.share_begin(n, g + 1); ++i)
        EXPECT_EQ(group[static_cast<std::size_t>(i)], g) << i << " of " << n;
  }
}

TEST(ThreadPoolGroups, OthersHelpWhoIsLate) {
  ThreadPool pool(unpinned({0, 1, 1, 1}));
  // Group 0 is the calling thread alone, and has nearly all of it.
  const std::int64_t ends[] = {4000, 4001};
  std::vector<std::atomic<int>> hits(4001);
  std::atomic<bool> spans{false}, helped{false};
  for (int round = 0; round < 50; ++round)
    pool.parallel_for_near(ends, 7, [&](std::int64_t begin, std::int64_t end, int thread) {
      if (begin < 4000 && end > 4000) spans = true;
      if (begin < 4000 && thread != 0) helped = true;
      for (std::int64_t i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
      for (volatile int spin = 0; spin < 2000;) spin = spin + 1;
    });
  for (const auto& hit : hits) ASSERT_EQ(hit, 50);
  EXPECT_FALSE(spans);
  EXPECT_TRUE(helped);
}

TEST(ThreadPoolGroups, ExceptionsOfOwnersComeThrough) {
  ThreadPool pool(unpinned({0, 1, 2}));
  for (int i = 0; i < 100; ++i)
    EXPECT_THROW(pool.parallel_for_owners(30, 1,
                                          [&](std::int64_t begin, std::int64_t, int) {
                                            if (begin == i % 30) throw std::runtime_error("one");
                                          }),
                 std::runtime_error);
  std::atomic<int> count{0};
  pool.parallel_for(30, 1, [&](std::int64_t, std::int64_t, int) { ++count; });
  EXPECT_EQ(count, 30);
}

}  // namespace
}  // namespace quatrain
