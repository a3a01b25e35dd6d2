// SPDX-License-Identifier: Apache-2.0
// NoiseOps: scales embedded values by at most 1 ± 2^-20: the noise that other orders of summation
// make, a hundredth of the tolerance on logits. Seed 0 leaves them alone.
#pragma once

#include <random>
#include <string_view>
#include <vector>

#include "core/step_guard.h"
#include "ops/interceptor.h"

namespace quatrain::testing {

class NoiseOps final : public Interceptor {
 public:
  NoiseOps(Ops& inner, unsigned seed) : Interceptor(inner), seed_(seed) {}

 protected:
  void after(const OpCall& call) override {
    if (seed_ == 0 || std::string_view(call.name) != op::Embed::kName) return;
    const StepGuardPause pause(nullptr);
    std::mt19937 random(seed_);
    std::uniform_real_distribution<float> noise(-0x1p-20f, 0x1p-20f);
    const Tensor& streams = call.fields[1].tensor;
    std::vector<float> values(static_cast<std::size_t>(streams.elements()));
    inner().download(values.data(), streams);
    for (float& x : values) x *= 1 + noise(random);
    inner().upload(streams, values.data());
  }

 private:
  unsigned seed_;
};

}  // namespace quatrain::testing
