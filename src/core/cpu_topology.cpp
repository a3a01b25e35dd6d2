// SPDX-License-Identifier: Apache-2.0
#include "core/cpu_topology.h"

#include <dlfcn.h>
#include <sched.h>

#include <algorithm>
#include <memory>
#include <thread>

namespace quatrain {
namespace {

std::vector<int> usable_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(static_cast<unsigned>(cpu), &set)) cpus.push_back(cpu);
  if (cpus.empty())
    for (unsigned cpu = 0; cpu < std::max(1u, std::thread::hardware_concurrency()); ++cpu)
      cpus.push_back(static_cast<int>(cpu));
  return cpus;
}

// The functions of libnuma that are asked.
class NumaLibrary {
 public:
  NumaLibrary() : library_(::dlopen("libnuma.so.1", RTLD_NOW | RTLD_LOCAL)) {
    find("numa_available", available_);
    find("numa_max_node", max_node_);
    find("numa_node_of_cpu", node_of_cpu_);
  }
  ~NumaLibrary() {
    if (library_ != nullptr) ::dlclose(library_);
  }
  NumaLibrary(const NumaLibrary&) = delete;
  NumaLibrary& operator=(const NumaLibrary&) = delete;

  bool is_open() const { return library_ != nullptr && complete_; }
  bool is_available() const { return available_() >= 0; }
  int nodes() const { return max_node_() + 1; }
  int node_of(int cpu) const { return node_of_cpu_(cpu); }

 private:
  template <class Function>
  void find(const char* name, Function*& function) {
    if (library_ == nullptr) return;
    function = reinterpret_cast<Function*>(::dlsym(library_, name));
    complete_ = complete_ && function != nullptr;
  }

  void* library_;
  bool complete_ = true;
  int (*available_)() = nullptr;
  int (*max_node_)() = nullptr;
  int (*node_of_cpu_)(int cpu) = nullptr;
};

CpuTopology read_topology() {
  const std::vector<int> cpus = usable_cpus();
  const auto one_node = [&](const char* reason) {
    return CpuTopology{.nodes = {{.cpus = cpus}}, .source = reason};
  };
  const NumaLibrary numa;
  if (!numa.is_open()) return one_node("libnuma.so.1 is not there");
  if (!numa.is_available()) return one_node("libnuma finds no nodes");
  CpuTopology out{.nodes = {}, .source = "libnuma"};
  for (int id = 0; id < numa.nodes(); ++id) {
    CpuNode node{.id = id, .cpus = {}};
    std::ranges::copy_if(cpus, std::back_inserter(node.cpus),
                         [&](int cpu) { return numa.node_of(cpu) == id; });
    if (!node.cpus.empty()) out.nodes.push_back(std::move(node));
  }
  return out.nodes.empty() ? one_node("libnuma knows no processor of this process") : out;
}

}  // namespace

const CpuTopology& cpu_topology() {
  static const CpuTopology topology = read_topology();
  return topology;
}

std::vector<ThreadPlace> place_threads(const CpuTopology& topology, int threads,
                                       const std::vector<int>& cpus) {
  const auto& nodes = topology.nodes;
  std::size_t processors = 0;
  for (const CpuNode& node : nodes) processors += node.cpus.size();
  const std::size_t all = std::max<std::size_t>(1, cpus.empty() ? processors : cpus.size());
  const std::size_t count = threads > 0 ? static_cast<std::size_t>(threads) : all;
  std::vector<ThreadPlace> places(count);
  if (cpus.empty() && nodes.size() <= 1) return places;

  for (std::size_t t = 0; t < count; ++t) {
    if (cpus.empty()) {
      // Thread t belongs where processor t · processors / count is when nodes follow each other.
      std::size_t at = t * processors / count % processors, n = 0;
      while (at >= nodes[n].cpus.size()) at -= nodes[n++].cpus.size();
      places[t] = {.cpus = nodes[n].cpus, .group = static_cast<int>(n)};
    } else {
      const int cpu = cpus[t % cpus.size()];
      const auto node = std::ranges::find_if(
          nodes, [&](const CpuNode& n) { return std::ranges::count(n.cpus, cpu) > 0; });
      // A processor that does not exist is refused when a thread is pinned to it.
      places[t] = {.cpus = {cpu},
                   .group = node == nodes.end() ? 0 : static_cast<int>(node - nodes.begin())};
    }
  }
  std::ranges::stable_sort(places, {}, &ThreadPlace::group);
  int group = -1, node = -1;
  for (ThreadPlace& place : places) {  // numbers without gaps
    if (place.group != node) node = place.group, ++group;
    place.group = group;
  }
  return places;
}

}  // namespace quatrain
