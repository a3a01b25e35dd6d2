// SPDX-License-Identifier: Apache-2.0
// The loss of a model on given tokens.
#pragma once

#include <span>
#include <vector>

#include "runtime/model_runner.h"

namespace quatrain::apps {

/// −log softmax(logits)[target], in nats.
double negative_log_likelihood(std::span<const float> logits, std::int32_t target);

/// Losses of targets[i] given input[0 … i], for i ≥ skip, in slot 0 from position 0.
std::vector<double> window_losses(ModelRunner& runner, std::span<const std::int32_t> input,
                                  std::span<const std::int32_t> targets, std::size_t skip = 0);

}  // namespace quatrain::apps
