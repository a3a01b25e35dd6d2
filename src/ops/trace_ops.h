// SPDX-License-Identifier: Apache-2.0
// TraceOps: writes every intermediate of the chosen operations to a folder.
//
// One file per tensor: "s0002.l03.attn.017-attend.out.f32" holds the raw elements of step 2 (the
// third), layer 3; index.jsonl lists name, type and shape of each, in order.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "ops/interceptor.h"

namespace quatrain {

class TraceOps final : public Interceptor {
 public:
  /// Creates `folder`. Only operations whose name contains `filter` are written.
  TraceOps(Ops& inner, std::filesystem::path folder, std::string filter = "");

  /// A step begins with its embedding; file names count steps.
  void scope(std::string_view part, std::int64_t layer) override;

 protected:
  void after(const OpCall& call) override;

 private:
  std::filesystem::path folder_;
  std::string filter_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> index_;
  std::int64_t step_ = -1;
  std::int64_t call_ = 0;
};

}  // namespace quatrain
