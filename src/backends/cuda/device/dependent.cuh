// SPDX-License-Identifier: Apache-2.0
// The device side of programmatic dependent launch; launch/launch.h has the host side and the rule.
#pragma once

namespace quatrain::cuda {

/// Lets the next kernel on the stream take up room that this one leaves free, and run as far as its
/// own wait_for_previous(). It orders no memory. The next kernel asks for weights at once, which
/// then stand in the way of what this one asks for: where this one has little to read and much to
/// do, call it once that has come, otherwise first thing. The first thread of a block counts.
__device__ inline void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

/// Waits until everything enqueued before this kernel has ended and its writes are visible. Only
/// reads of weights and of the batch's arrays, which no kernel of a step writes, may come before.
__device__ inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace quatrain::cuda
