// SPDX-License-Identifier: Apache-2.0
// quatrain doctor: what this machine has, what stands in the way, and what to do about it.
#include "apps/doctor.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "apps/backend.h"
#include "apps/commands.h"
#include "core/json.h"
#if defined(QUATRAIN_HAS_CUDA)
#include "backends/cuda/device_info.h"
#endif

namespace quatrain::apps {
namespace {

std::string_view name_of(Health health) {
  switch (health) {
    case Health::kOk:
      return "OK";
    case Health::kInfo:
      return "INFO";
    case Health::kWarn:
      return "WARN";
    case Health::kFail:
      break;
  }
  return "FAIL";
}

#if defined(QUATRAIN_HAS_CUDA)
std::string version_text(int version) {
  return version == 0 ? "none" : fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

Finding examine_device(std::size_t number, const CudaDeviceInfo& device) {
  constexpr double kGiB = 0x1p30;
  Finding out{.subject = fmt::format("gpu {}", number),
              .found = fmt::format(
                  "{}, compute capability {}.{}, {} multiprocessors up to {} MHz, {:.1f} GiB of "
                  "memory up to {} MHz, {:.1f} free, L2 {} MiB, ECC {}",
                  device.name, device.major, device.minor, device.multiprocessors, device.clock_mhz,
                  static_cast<double>(device.total_bytes) / kGiB, device.memory_clock_mhz,
                  static_cast<double>(device.free_bytes) / kGiB, device.l2_bytes >> 20,
                  device.ecc ? "on" : "off")};
  if (device.major != 9) {
    out.health = Health::kWarn;
    out.remedy = "this build has kernels for compute capability 9.0 (H100, H200) only";
  } else if (device.free_bytes < device.total_bytes / 2) {
    out.health = Health::kWarn;
    out.remedy = "more than half of its memory is taken by other programs (see nvidia-smi)";
  }
  return out;
}
#endif

void doctor(bool json) {
  std::vector<Finding> findings;
  for (const auto& part : {examine_cpu(), examine_memory(), examine_limits(), examine_gpus()})
    findings.insert(findings.end(), part.begin(), part.end());
  findings.push_back(examine_backend());
  fmt::print("{}", format_findings(findings, json));
  const auto failed = std::ranges::count(findings, Health::kFail, &Finding::health);
  if (failed > 0) fail("{} of {} findings keep models from running", failed, findings.size());
}

}  // namespace

std::vector<Finding> examine_gpus() {
#if defined(QUATRAIN_HAS_CUDA)
  const CudaSystemInfo info = cuda_system_info();
  std::vector<Finding> out = {{.subject = "cuda",
                               .found = fmt::format("driver serves CUDA {}, this build uses {}",
                                                    version_text(info.driver_version),
                                                    version_text(info.runtime_version))}};
  if (info.driver_version < info.runtime_version / 1000 * 1000) {
    out[0].health = Health::kWarn;
    out[0].remedy = info.driver_version == 0 ? "install NVIDIA's driver, or use the CPU backend"
                                             : "update NVIDIA's driver";
  }
  if (!info.problem.empty())
    out.push_back({Health::kWarn, "gpu", info.problem, "models will run on the CPU"});
  for (std::size_t i = 0; i < info.devices.size(); ++i)
    out.push_back(examine_device(i, info.devices[i]));
  return out;
#else
  return {{Health::kInfo, "cuda", "this build has no CUDA backend"}};
#endif
}

Finding examine_backend() {
  try {
    const Backend backend = make_backend("auto", {}, "auto");
    return {.subject = "--backend auto", .found = backend.description};
  } catch (const Error& error) {
    return {Health::kFail, "--backend auto", error.what()};
  }
}

std::string format_findings(const std::vector<Finding>& findings, bool json) {
  std::string out = json ? "{\"findings\": [" : "";
  for (const Finding& f : findings) {
    if (json)
      out += fmt::format("{}\n  {{\"health\": {}, \"subject\": {}, \"found\": {}, \"remedy\": {}}}",
                         &f == findings.data() ? "" : ",", json_quote(name_of(f.health)),
                         json_quote(f.subject), json_quote(f.found), json_quote(f.remedy));
    else
      out += fmt::format("{:<5} {:<15} {}\n{}", name_of(f.health), f.subject, f.found,
                         f.remedy.empty() ? "" : fmt::format("{:>23}{}\n", "-> ", f.remedy));
  }
  const auto count = [&](Health health) {
    return std::ranges::count(findings, health, &Finding::health);
  };
  if (json)
    return out + fmt::format("],\n \"warnings\": {}, \"failures\": {}}}\n", count(Health::kWarn),
                             count(Health::kFail));
  return out +
         fmt::format("{} warnings, {} failures\n", count(Health::kWarn), count(Health::kFail));
}

void add_doctor(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  CLI::App* verb = app.add_subcommand("doctor", "Examine this machine: GPU, CPU, memory, limits");
  verb->footer("Lines say OK, INFO, WARN or FAIL, and what to do. The exit status is 1 on FAIL.");
  verb->add_flag("--json", *json, "Print JSON");
  verb->callback([json] { doctor(*json); });
}

}  // namespace quatrain::apps
