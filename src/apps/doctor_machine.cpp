// SPDX-License-Identifier: Apache-2.0
// doctor: cores, memory and limits of the machine, as Linux tells them.
#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "apps/doctor.h"
#include "core/cpu_topology.h"

namespace quatrain::apps {
namespace {

constexpr double kGiB = 0x1p30;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "Key:  value" lines of /proc files; the first of each key.
std::map<std::string, std::string> read_pairs(const std::string& path) {
  std::map<std::string, std::string> out;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(':');
    if (colon == line.npos) continue;
    const std::size_t key_end = line.find_last_not_of(" \t", colon - 1);
    const std::size_t value = line.find_first_not_of(" \t", colon + 1);
    out.emplace(line.substr(0, key_end + 1), value == line.npos ? "" : line.substr(value));
  }
  return out;
}

double kilobytes(const std::map<std::string, std::string>& pairs, const std::string& key) {
  const auto found = pairs.find(key);
  return found == pairs.end() ? 0.0 : std::strtod(found->second.c_str(), nullptr) * 1024;
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0)
    return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  return CPU_COUNT(&set);
}

Finding vector_units(const std::string& flags) {
  const auto has = [&](const std::string& flag) {
    return (" " + flags + " ").find(" " + flag + " ") != std::string::npos;
  };
  std::string found;
  for (const auto& [flag, name] : {std::pair{"avx2", "AVX2"},
                                   {"fma", "FMA"},
                                   {"avx512f", "AVX-512"},
                                   {"avx512_vnni", "VNNI"},
                                   {"avx_vnni", "AVX-VNNI"},
                                   {"avx512_bf16", "BF16"},
                                   {"amx_tile", "AMX"}})
    if (has(flag)) found += found.empty() ? name : fmt::format(" {}", name);
  if (!found.empty()) return {.subject = "vector units", .found = found};
  return {Health::kWarn, "vector units", "none beyond the baseline",
          "the CPU backend will be slow; a machine with AVX2 or AVX-512 is many times faster"};
}

// What the kernel knows of nodes, and what libnuma makes of them for the CPU backend.
Finding memory_nodes() {
  const CpuTopology& topology = cpu_topology();
  std::string found;
  for (const CpuNode& node : topology.nodes)
    found += fmt::format("{}{} cores", found.empty() ? "" : ", ", node.cpus.size());
  Finding out{.subject = "memory nodes",
              .found = fmt::format("{}: {} ({})", topology.nodes.size(), found, topology.source)};
  const std::string online = first_line("/sys/devices/system/node/online");
  if (topology.nodes.size() == 1 && topology.source != "libnuma" && !online.empty() &&
      online != "0") {
    out.health = Health::kWarn;
    out.remedy = fmt::format(
        "the system has nodes {}; with libnuma (package libnuma1) weights lie next to the threads "
        "that read them",
        online);
  }
  return out;
}

std::string limit_text(rlim_t value) {
  if (value == RLIM_INFINITY) return "unlimited";
  return fmt::format("{}", value);
}

// Memory that the control group allows; nothing where there is no limit.
std::optional<double> group_limit() {
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const std::string text = first_line(path);
    if (text.empty() || text == "max") continue;
    const double bytes = std::strtod(text.c_str(), nullptr);
    if (bytes > 0 && bytes < 0x1p60) return bytes;
  }
  return std::nullopt;
}

}  // namespace

std::vector<Finding> examine_cpu() {
  const auto pairs = read_pairs("/proc/cpuinfo");
  const auto text = [&](const std::string& key) {
    const auto found = pairs.find(key);
    return found == pairs.end() ? std::string() : found->second;
  };
  const int cores = usable_cores();
  std::vector<Finding> out = {
      {Health::kInfo, "processor", text("model name").empty() ? "unknown" : text("model name")},
      {.subject = "cores", .found = fmt::format("{} usable", cores)},
      vector_units(text("flags"))};
  if (cores < 2) {
    out[1].health = Health::kWarn;
    out[1].remedy = "one core reads, packs and computes; give the process more";
  }
  return out;
}

std::vector<Finding> examine_memory() {
  const auto pairs = read_pairs("/proc/meminfo");
  const double total = kilobytes(pairs, "MemTotal");
  const double available = kilobytes(pairs, "MemAvailable");
  std::vector<Finding> out = {
      {.subject = "memory",
       .found = fmt::format("{:.1f} GiB, {:.1f} available", total / kGiB, available / kGiB)}};
  if (available < total / 10) {
    out[0].health = Health::kWarn;
    out[0].remedy = "less than a tenth is available; loading may push other programs out";
  }
  if (const auto limit = group_limit(); limit && *limit < total)
    out.push_back({Health::kInfo, "memory limit",
                   fmt::format("{:.1f} GiB by the control group", *limit / kGiB)});
  const std::string huge = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  const std::size_t open = huge.find('['), close = huge.find(']');
  const std::string chosen =
      open == huge.npos || close == huge.npos ? "unknown" : huge.substr(open + 1, close - open - 1);
  Finding pages{.subject = "huge pages",
                .found = fmt::format("transparent: {}; {:.0f} MiB reserved", chosen,
                                     kilobytes(pairs, "Hugetlb") / 0x1p20)};
  if (chosen == "never") {
    pages.health = Health::kWarn;
    pages.remedy =
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled saves address translation on "
        "the CPU";
  }
  out.push_back(std::move(pages));
  out.push_back(memory_nodes());
  return out;
}

std::vector<Finding> examine_limits() {
  std::vector<Finding> out;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    Finding files{.subject = "open files", .found = limit_text(limit.rlim_cur)};
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < 4096) {
      files.health = Health::kWarn;
      files.remedy = "ulimit -n 65536; shards and connections each take one";
    }
    out.push_back(std::move(files));
  }
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
    Finding locked{.subject = "locked memory", .found = limit_text(limit.rlim_cur) + " bytes"};
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < (rlim_t{64} << 20)) {
      locked.health = Health::kInfo;
      locked.remedy = "ulimit -l unlimited lets buffers be registered with network cards";
    }
    out.push_back(std::move(locked));
  }
  return out;
}

}  // namespace quatrain::apps
