// SPDX-License-Identifier: Apache-2.0
// What `quatrain doctor` finds out about a machine, as data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quatrain::apps {

enum class Health : std::uint8_t { kOk, kInfo, kWarn, kFail };

/// One line: what was looked at, what was found, and what to do about it if it is not well.
struct Finding {
  Health health = Health::kOk;
  std::string subject;
  std::string found;
  std::string remedy = {};
};

std::vector<Finding> examine_cpu();
std::vector<Finding> examine_memory();
std::vector<Finding> examine_limits();
std::vector<Finding> examine_gpus();
/// What --backend auto takes here, and why.
Finding examine_backend();

/// "OK    gpu 0   NVIDIA H200 …" lines, or one JSON object with a list and the counts.
std::string format_findings(const std::vector<Finding>& findings, bool json);

}  // namespace quatrain::apps
