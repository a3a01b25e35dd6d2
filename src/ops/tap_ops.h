// SPDX-License-Identifier: Apache-2.0
// TapOps: keeps the residual streams after each layer and the experts that each layer chose.
#pragma once

#include <map>
#include <vector>

#include "core/step_guard.h"
#include "ops/interceptor.h"

namespace quatrain {

class TapOps final : public Interceptor {
 public:
  using Interceptor::Interceptor;

  std::map<std::int64_t, std::vector<float>> streams;         // layer → [tokens, hc, D], appended
  std::map<std::int64_t, std::vector<std::int32_t>> experts;  // layer → [tokens, k], appended

 protected:
  void after(const OpCall& call) override {
    const StepGuardPause pause(nullptr);
    const std::string_view name = call.name;
    if (name == "hc_post" && part() == "ffn") append(call, "streams", streams[layer()]);
    // The next layer's first site brings the streams of this one up to date.
    if (name == "hc_post_pre_norm" && part() == "attn")
      append(call, "streams", streams[layer() - 1]);
    if (name == "route") append(call, "ids", experts[layer()]);
  }

 private:
  template <class T>
  void append(const OpCall& call, std::string_view field, std::vector<T>& out) {
    for (int i = 0; i < call.count; ++i) {
      const auto& f = call.fields[static_cast<std::size_t>(i)];
      if (f.name != field || !f.is_output) continue;
      const std::size_t at = out.size();
      out.resize(at + static_cast<std::size_t>(f.tensor.elements()));
      inner().download(out.data() + at, f.tensor);
    }
  }
};

}  // namespace quatrain
