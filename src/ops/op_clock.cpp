// SPDX-License-Identifier: Apache-2.0
#include "ops/op_clock.h"

#include <chrono>

namespace quatrain {
namespace {

class WallClock final : public OpClock {
 public:
  explicit WallClock(std::int64_t points) { points_.reserve(static_cast<std::size_t>(points)); }

  void mark() override { points_.push_back(std::chrono::steady_clock::now()); }
  void restart() override { points_.clear(); }
  std::vector<double> intervals() override {
    std::vector<double> out;
    for (std::size_t i = 1; i < points_.size(); ++i)
      out.push_back(std::chrono::duration<double, std::micro>(points_[i] - points_[i - 1]).count());
    return out;
  }

 private:
  std::vector<std::chrono::steady_clock::time_point> points_;
};

}  // namespace

std::unique_ptr<OpClock> make_wall_clock(std::int64_t points) {
  return std::make_unique<WallClock>(points);
}

}  // namespace quatrain
