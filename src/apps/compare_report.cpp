// SPDX-License-Identifier: Apache-2.0
#include "apps/compare_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace quatrain::apps {
namespace {

constexpr std::size_t kColumns = 8;  // layers side by side

std::string title_of(const OpDifference& d) {
  return d.field == "out" ? d.title() : fmt::format("{} {}", d.title(), d.field);
}

std::string column_of(const V4Config& config, std::int64_t layer) {
  if (layer < 0) return "model";
  const std::int64_t ratio = config.ratio(layer);
  return fmt::format("{} {}", layer, ratio == 0 ? "win" : ratio == 4 ? "CSA" : "HCA");
}

std::string cell(double difference, double tolerance) {
  if (difference == 0) return "0";
  return fmt::format("{:.1e}{}", difference, difference > tolerance ? "!" : "");
}

}  // namespace

const OpDifference* first_above(const std::vector<OpDifference>& differences, double tolerance) {
  const auto found = std::ranges::find_if(
      differences, [&](const OpDifference& d) { return !(d.difference <= tolerance); });
  return found == differences.end() ? nullptr : &*found;
}

std::string format_differences(const V4Config& config, const std::vector<OpDifference>& differences,
                               double tolerance) {
  std::vector<std::string> titles;  // in the order of their first appearance
  std::vector<std::int64_t> layers;
  std::map<std::pair<std::string, std::int64_t>, double> largest;
  for (const OpDifference& d : differences) {
    const std::string title = title_of(d);
    if (std::ranges::find(titles, title) == titles.end()) titles.push_back(title);
    if (std::ranges::find(layers, d.layer) == layers.end()) layers.push_back(d.layer);
    double& value = largest[{title, d.layer}];
    value = std::max(value, d.difference);
  }
  std::ranges::sort(layers);
  std::string out;
  for (std::size_t begin = 0; begin < layers.size(); begin += kColumns) {
    const std::size_t end = std::min(layers.size(), begin + kColumns);
    out += fmt::format("{:<38}", "operation");
    for (std::size_t i = begin; i < end; ++i)
      out += fmt::format("{:>10}", column_of(config, layers[i]));
    out += "\n";
    for (const std::string& title : titles) {
      std::string line = fmt::format("{:<38}", title);
      bool any = false;
      for (std::size_t i = begin; i < end; ++i) {
        const auto found = largest.find({title, layers[i]});
        any = any || found != largest.end();
        line += fmt::format("{:>10}", found == largest.end() ? "" : cell(found->second, tolerance));
      }
      if (any) out += line + "\n";
    }
  }
  if (const OpDifference* first = first_above(differences, tolerance))
    out += fmt::format("first above {:.1e}: {} in {} of layer {}, {:.2e}\n", tolerance,
                       title_of(*first), first->part, first->layer, first->difference);
  return out;
}

}  // namespace quatrain::apps
