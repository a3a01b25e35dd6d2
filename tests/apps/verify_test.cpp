// SPDX-License-Identifier: Apache-2.0
// Tables of differences and of doctor's findings.
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "apps/compare_report.h"
#include "apps/doctor.h"
#include "model/synthetic.h"

namespace quatrain::apps {
namespace {

OpDifference difference(std::string name, std::string field, std::int64_t layer, double value) {
  return {.name = std::move(name),
          .weight = "",
          .field = std::move(field),
          .part = "attn",
          .layer = layer,
          .difference = value};
}

TEST(CompareReport, NamesTheFirstAboveTheToleranceAndShowsTheLargest) {
  const V4Config config = synthetic_config("storyteller", 3);
  const std::vector<OpDifference> differences = {
      difference("embed", "streams", -1, 0), difference("attend", "out", 1, 1e-4),
      difference("attend", "out", 1, 3e-2), difference("compress", "entries", 2, 0.5)};
  EXPECT_EQ(first_above(differences, 1.0), nullptr);
  EXPECT_EQ(first_above(differences, 1e-2), &differences[2]);
  const std::string text = format_differences(config, differences, 1e-2);
  EXPECT_NE(text.find("1 CSA"), std::string::npos) << text;
  EXPECT_NE(text.find("3.0e-02!"), std::string::npos) << text;
  EXPECT_EQ(text.find("1.0e-04"), std::string::npos) << text;
  EXPECT_NE(text.find("first above 1.0e-02: attend in attn of layer 1, 3.00e-02"),
            std::string::npos)
      << text;
}

TEST(CompareReport, WhatIsNotFiniteIsAboveEveryTolerance) {
  const std::vector<OpDifference> differences = {
      difference("attend", "out", 0, std::numeric_limits<double>::quiet_NaN())};
  EXPECT_NE(first_above(differences, 1e30), nullptr);
}

TEST(Doctor, FindsThisMachine) {
  for (const auto& part : {examine_cpu(), examine_memory(), examine_limits(), examine_gpus()}) {
    ASSERT_FALSE(part.empty());
    for (const Finding& finding : part) {
      EXPECT_FALSE(finding.subject.empty());
      EXPECT_FALSE(finding.found.empty()) << finding.subject;
      const bool is_warning = finding.health == Health::kWarn;
      EXPECT_TRUE(!is_warning || !finding.remedy.empty()) << finding.subject;
    }
  }
  EXPECT_NE(examine_backend().found.find("backend"), std::string::npos);
}

TEST(Doctor, TextAndJsonCountWarnings) {
  const std::vector<Finding> findings = {{.subject = "cores", .found = "2"},
                                         {Health::kWarn, "gpu", "none of \"those\"", "buy one"},
                                         {Health::kFail, "memory", "0", "more"}};
  const std::string text = format_findings(findings, false);
  EXPECT_NE(text.find("OK    cores"), std::string::npos) << text;
  EXPECT_NE(text.find("-> buy one"), std::string::npos) << text;
  EXPECT_NE(text.find("1 warnings, 1 failures"), std::string::npos) << text;
  const auto json = nlohmann::json::parse(format_findings(findings, true));
  EXPECT_EQ(json["findings"].size(), 3u);
  EXPECT_EQ(json["findings"][1]["found"], "none of \"those\"");
  EXPECT_EQ(json["warnings"], 1);
}

}  // namespace
}  // namespace quatrain::apps
