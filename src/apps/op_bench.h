// SPDX-License-Identifier: Apache-2.0
// Measuring single operations: arrays with random contents, and the time of a list of calls.
#pragma once

#include <functional>
#include <vector>

#include "ops/ops.h"

namespace quatrain::apps {

/// Arrays and timing for one operation at one shape at a time.
class OpBench {
 public:
  using Call = std::function<void()>;

  /// Medians are over `repetitions` passes. `cycle_bytes` must be read before anything is read
  /// again, so that no cache helps.
  OpBench(Ops& ops, int repetitions, std::int64_t cycle_bytes)
      : ops_(ops), repetitions_(repetitions), cycle_bytes_(cycle_bytes) {}

  Ops& ops() { return ops_; }

  /// Copies of something of `bytes` that make up a cycle.
  std::int64_t copies(std::int64_t bytes) const;

  /// An array that lives until clear(). Floats are normal with this deviation, integers zero.
  Tensor make(DType dtype, std::initializer_list<std::int64_t> shape, float deviation = 1);
  Tensor make_ints(std::initializer_list<std::int64_t> shape,
                   const std::function<std::int64_t(std::int64_t)>& value);
  Tensor activations(std::initializer_list<std::int64_t> shape) {
    return make(ops_.activation_dtype(), shape);
  }
  /// `rows` rows of `slots` sequences at the end of `context` tokens, with a table of blocks for
  /// each. One sequence has them all if it is the only one, otherwise each row has a sequence of
  /// its own, beginning with slot `first`.
  Batch batch(std::int64_t rows, std::int64_t slots, std::int64_t context, std::int64_t first = 0);
  void clear() { memory_.clear(); }

  /// Microseconds of one call: the median over passes through the list. Where the backend can
  /// record, a pass is one replay.
  double microseconds(const std::vector<Call>& calls);

 private:
  Ops& ops_;
  int repetitions_;
  std::int64_t cycle_bytes_;
  std::uint64_t seed_ = 1;
  std::vector<Buffer> memory_;
};

}  // namespace quatrain::apps
