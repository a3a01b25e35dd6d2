// SPDX-License-Identifier: Apache-2.0
// A warp's ring of weights: strips of 16 rows that the copy engine brings to shared memory, 128
// bytes of every row at a time.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/tensor_copy.cuh"

namespace quatrain::cuda {

/// 128 bytes of each row of a strip, in the 128-byte swizzle.
inline constexpr int kRingSlotBytes = 128 * kStripRows;

/// The row of a strip that a lane has as row lane / 4 of its products; row + 8 is its other one. In
/// the swizzle those that are read together, of eight lanes in a row, are four apart.
__device__ inline int ring_row() { return lane_id() / 4 % 2 * 4 + lane_id() / 8; }

/// One warp's, of `turns` turns of kSlots slots. It asks for all turns before it waits for the
/// first, then for one after every turn that it has read; next() goes on, also where there is
/// nothing to ask for.
template <int kSlots>
class StripRing {
 public:
  static constexpr int kTurnBytes = kSlots * kRingSlotBytes;

  /// memory: [turns][kTurnBytes] of the warp, aligned to 1024; full: [turns].
  __device__ StripRing(char* memory, Barrier* full, int turns)
      : memory_(memory),
        full_(full),
        turns_(turns),
        lane_((ring_row() * 8 + (lane_id() % 4 ^ ring_row())) * 16) {}

  __device__ void init() const {
    if (lane_id() == 0) {
#pragma unroll
      for (int i = 0; i < turns_; ++i) barrier_init(full_ + i, 1);
      barrier_init_fence();
    }
  }

  /// Asks for the turn of the rows from `row` on that begins at byte `column`; zeros where the
  /// matrix ends.
  __device__ void fetch(const CUtensorMap& w, int row, int column) const {
    __syncwarp();  // all lanes have read what was there
    if (lane_id() != 0) return;
    char* to = memory_ + at_.at * kTurnBytes;
    Barrier* full = full_ + at_.at;
    barrier_expect(full, kTurnBytes);
    const std::uint64_t policy = evict_first_policy();
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      tensor_copy(to + i * kRingSlotBytes, w, column + 128 * i, row, full, policy);
  }
  __device__ void wait() const { barrier_wait(full_ + at_.at, at_.parity ^ 1u); }
  __device__ void next() { at_.next(turns_); }

  /// Of the turn that wait() waited for: a lane's 16 bytes of the nth 64 of its first row, or of
  /// the one 8 further.
  __device__ uint4 read(int nth, int row) const {
    return *reinterpret_cast<const uint4*>(memory_ + at_.at * kTurnBytes +
                                           nth / 2 * kRingSlotBytes + row * kRingSlotBytes / 2 +
                                           (lane_ ^ nth % 2 * 64));
  }

 private:
  char* memory_;
  Barrier* full_;
  int turns_;
  int lane_;         // where the lane's first 16 bytes of a slot are
  RingPosition at_;  // once around when the first turns have been asked for
};

}  // namespace quatrain::cuda
