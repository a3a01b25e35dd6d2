// SPDX-License-Identifier: Apache-2.0
// Which format a linear has, decided from the tensors that exist under its name.
//
// config.json is never asked: published files name formats wrongly, and mix several in one model.
#pragma once

#include <cstdint>
#include <string_view>

#include "checkpoint/checkpoint.h"

namespace quatrain {

/// Finds the tensors of linear `base` and checks them against each other and rows x cols. Reads
/// nothing. See Checkpoint::linear.
LinearSource detect_linear(const Checkpoint& checkpoint, std::string_view base, std::int64_t rows,
                           std::int64_t cols);

/// The value of a global or input scale of `source`, as a multiplier: a finite number above 0.
float read_scalar(const Checkpoint& checkpoint, const LinearSource& source,
                  const TensorInfo& tensor);

/// The shape of a linear [rows, cols] as its tensors tell it, for tools that have no config.
/// Throws when there is no weight of rank 2.
struct LinearShape {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};
LinearShape stored_shape(const Checkpoint& checkpoint, std::string_view base);

/// Refuses scales that are NaN, infinite or negative, naming the first; `where` names the tensor.
void check_scales(const QuantMatrix& matrix, std::string_view where);

}  // namespace quatrain
