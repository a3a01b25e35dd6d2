// SPDX-License-Identifier: Apache-2.0
// route: which experts a token takes, and their weights.
#include <algorithm>
#include <cmath>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/scalar.h"

namespace quatrain {
namespace {

// ids = the k largest of choice[0, n), descending; the lowest id wins ties.
void top_k(const float* choice, std::int64_t n, std::int64_t k, std::int32_t* ids) {
  std::int64_t filled = 0;
  for (std::int64_t e = 0; e < n; ++e) {
    std::int64_t at = filled;
    while (at > 0 && choice[ids[at - 1]] < choice[e]) --at;
    if (at == k) continue;
    filled = std::min(k, filled + 1);
    std::copy_backward(ids + at, ids + filled - 1, ids + filled);
    ids[at] = static_cast<std::int32_t>(e);
  }
}

}  // namespace

void CpuOps::route(const op::Route& args) {
  const std::int64_t experts = args.logits.dim(1);
  const std::int64_t k = args.ids.dim(1);
  parallel_for(args.logits.dim(0), 1, 64 * args.logits.elements(),
               [&](std::int64_t begin, std::int64_t end, int thread) {
                 float* score = thread_scores(thread);
                 float* choice = score + experts;
                 for (std::int64_t t = begin; t < end; ++t) {
                   const float* logits = args.logits.f32() + t * experts;
                   std::int32_t* ids = args.ids.i32() + t * k;
                   for (std::int64_t e = 0; e < experts; ++e) score[e] = sqrt_softplus(logits[e]);
                   if (args.hash_table) {
                     const std::int64_t token = args.token_ids.i32()[t];
                     std::copy_n(args.hash_table.i32() + token * k, k, ids);
                   } else {
                     const float* bias = args.bias.f32();
                     for (std::int64_t e = 0; e < experts; ++e) choice[e] = score[e] + bias[e];
                     top_k(choice, experts, k, ids);
                   }
                   // The bias selects only: weights are of the unbiased scores.
                   float total = 0;
                   for (std::int64_t i = 0; i < k; ++i) total += score[ids[i]];
                   for (std::int64_t i = 0; i < k; ++i)
                     args.weights.f32()[t * k + i] = score[ids[i]] / total * args.scale;
                 }
               });
}

}  // namespace quatrain
