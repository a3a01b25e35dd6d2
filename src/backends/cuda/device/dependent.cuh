// SPDX-License-Identifier: Apache-2.0
// The device side of programmatic dependent launch; launch/launch.h has the host side and the rule.
#pragma once

namespace quatrain::cuda {

/// Lets the next kernel on the stream take up room that this one leaves free, and run as far as its
/// own wait_for_previous(). Call it first thing: it orders no memory, so there is no reason to
/// wait.
__device__ inline void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }

/// Waits until everything enqueued before this kernel has ended and its writes are visible. Only
/// reads of weights and of the batch's arrays, which no kernel of a step writes, may come before.
__device__ inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace quatrain::cuda
