// SPDX-License-Identifier: Apache-2.0
// Which processors are near which memory (NUMA), and where threads go.
#pragma once

#include <string>
#include <vector>

namespace quatrain {

/// A part of the machine's memory and the processors next to it that this process may use.
struct CpuNode {
  int id = 0;
  std::vector<int> cpus;
};

struct CpuTopology {
  std::vector<CpuNode> nodes;  ///< those with processors; at least one
  std::string source;          ///< who says so, or why there is but one node
};

/// Of this machine. libnuma tells, which is opened when this is first called; without it the
/// machine counts as one node.
const CpuTopology& cpu_topology();

struct ThreadPlace {
  std::vector<int> cpus = {};  ///< processors to stay on; none: any
  int group = 0;               ///< threads of a group share a node; groups are numbered from 0
};

/// A place for each thread. Threads go to `cpus` in turn, one processor each, if there are any.
/// Otherwise they are spread over the nodes in proportion to their processors and stay on their
/// node's; on a single node they may go anywhere. `threads` ≤ 0 stands for one per entry of `cpus`,
/// or per processor. Groups follow each other in the order of threads.
std::vector<ThreadPlace> place_threads(const CpuTopology& topology, int threads,
                                       const std::vector<int>& cpus);

}  // namespace quatrain
