// SPDX-License-Identifier: Apache-2.0
// Synthetic models: the true dimensions of a published DeepSeek-V4 model, random weights, any
// number of layers. They say nothing sensible; they cost what the real ones cost, without a
// download.
//
// The weights are a safetensors file that is computed as it is read, so they load like any other:
// NVFP4 experts, FP8-block attention and shared experts, BF16 elsewhere, as published. Every byte
// is a function of its tensor's name and its place, the same on every machine and backend. Scales
// keep activations of order one.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/model_source.h"

namespace quatrain {

/// "flash", "pro" (V4-Flash, V4-Pro) or "storyteller" (the small model in models/). `layers` 0
/// takes the published number; fewer are chosen so that every kind of layer the model has is there
/// as early as possible.
ModelSource synthetic_model(std::string_view preset, std::int64_t layers);

/// The architecture alone of such a model.
V4Config synthetic_config(std::string_view preset, std::int64_t layers);

/// The compress ratios of such a model; `full` are the published ones.
std::vector<std::int64_t> synthetic_ratios(const std::vector<std::int64_t>& full,
                                           std::int64_t layers);

}  // namespace quatrain
