// SPDX-License-Identifier: Apache-2.0
// Tensor names: every spelling in use to the official DeepSeek-V4 one.
//
// Pure string and shape work, no file access. Names that no table knows pass through unchanged.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace quatrain {

/// The official name of a stored tensor: drops a "model." prefix and maps transformers' modules
/// ("model.layers.0.self_attn.q_a_proj.weight" → "layers.0.attn.wq_a.weight").
std::string official_name(std::string_view stored);

/// Appends the official tensors that `stored` holds: itself, or its slices when it fuses experts
/// (gate_up_proj [E, 2I, …] and down_proj [E, D, …]; per-expert scalars are [E]) or the shared
/// expert's gate and up ([2I, …]). `file` is copied; `where` names the file in messages.
void append_official(const StoredTensor& stored, int file, std::string_view where,
                     std::vector<TensorInfo>& out);

}  // namespace quatrain
