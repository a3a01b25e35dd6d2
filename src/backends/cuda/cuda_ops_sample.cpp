// SPDX-License-Identifier: Apache-2.0
// sample: from tensors to the launch.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/sample.h"
#include "backends/cuda/tensor_args.h"

namespace quatrain {

void CudaOps::sample(const op::Sample& args) {
  cuda::sample({.logits = f32(args.logits),
                .slots = i32(args.slots),
                .positions = i32(args.positions),
                .params = static_cast<const SlotSampling*>(contiguous(args.params).data()),
                .counts = reinterpret_cast<std::uint32_t*>(i32(args.counts)),
                .rows = extent(args.logits, 0),
                .vocab = extent(args.logits, 1),
                .results = static_cast<SampledRow*>(contiguous(args.results).data())},
               stream_);
}

}  // namespace quatrain
