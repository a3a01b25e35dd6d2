// SPDX-License-Identifier: Apache-2.0
// OpClock: points in the stream of operations and the time between them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace quatrain {

class OpClock {
 public:
  virtual ~OpClock() = default;

  /// The next point: after every operation issued so far. Inside Ops::record() the point becomes
  /// part of the recording, and every replay sets it anew.
  virtual void mark() = 0;
  /// Forgets all points.
  virtual void restart() = 0;
  /// Waits for the last point; microseconds from each point to the next.
  virtual std::vector<double> intervals() = 0;
};

/// For operations that are done when their call returns.
std::unique_ptr<OpClock> make_wall_clock(std::int64_t points);

}  // namespace quatrain
