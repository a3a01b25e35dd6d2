// SPDX-License-Identifier: Apache-2.0
// Products of FP32 activations with packed weights on BF16 tensor cores.
//
// Weights are decoded to BF16 exactly: E2M1 × E4M3 and E2M1 × power of two need no more than its 8
// bits. Scales that are not part of the decoded value multiply FP32 sums. Inputs of dense products
// are split into two BF16 parts, which keeps 16 bits of them; inputs of experts are rounded to
// BF16. The order of every sum depends on the column count alone, so a row has the same bits in any
// batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/matrix.h"

namespace quatrain::cuda {

struct LinearArgs {
  const float* x = nullptr;  // [tokens, groups, cols]
  float* out = nullptr;      // [tokens, rows]
  int tokens = 0;
  int groups = 1;  // group g of the rows reads group g of the inputs
};

/// out[t, n] = Σ_k x[t, g(n), k] W[n, k]
void linear(const Matrix& w, const LinearArgs& args, cudaStream_t stream);

/// The work of one layer's routed experts. A slot is a (token, choice) pair, t * k + i.
struct ExpertsArgs {
  const int* offsets = nullptr;  // [E + 1] into sorted
  const int* sorted = nullptr;   // [T * k] slots by expert
  int num_experts = 0;
  int k = 0;
  int slots = 0;  // T * k
};

/// One projection of all experts; expert e is `matrix` moved on by e matrices.
struct ExpertMatrix {
  Matrix matrix;
  const float* global_scales = nullptr;  // [E]
};

struct ExpertsL1Args {
  const float* x = nullptr;  // [T, D] by token, or [T * k, D] by slot
  bool by_slot = false;
  bool split = false;                 // x is split into two BF16 parts instead of rounded
  const float* row_scales = nullptr;  // as x: multiplies the products of a row; null for 1
  const float* weights = nullptr;     // [T * k] multiplied in, or null
  float limit = 0;
  float* hidden = nullptr;  // [T * k, I] by slot
};

/// hidden[slot] = swiglu(w1_e x, w3_e x), times the routing weight when given
void experts_l1(const ExpertMatrix& w1, const ExpertMatrix& w3, const ExpertsArgs& work,
                const ExpertsL1Args& args, cudaStream_t stream);

struct ExpertsL2Args {
  const float* hidden = nullptr;  // [T * k, I]
  bool split = false;
  const float* row_scales = nullptr;  // [T * k], or null for 1
  float* out = nullptr;               // [T * k, D]
};

/// out[slot] = w2_e hidden[slot]
void experts_l2(const ExpertMatrix& w2, const ExpertsArgs& work, const ExpertsL2Args& args,
                cudaStream_t stream);

struct SortArgs {
  const int* ids = nullptr;          // [T, k]
  const int* batch_slots = nullptr;  // [T], −1 marks padding
  int tokens = 0;
  int k = 0;
  int num_experts = 0;
  int* offsets = nullptr;  // [E + 1]
  int* sorted = nullptr;   // [T * k]
};

/// Sorts slots by expert, in order of token, leaving out padded rows.
void sort_by_expert(const SortArgs& args, cudaStream_t stream);

/// row_map[s] = s / k and row_scales[s] = scales[ids[s]], for slots of real rows; 0 and 1 for
/// others
void map_slots(const SortArgs& args, const float* scales, int* row_map, float* row_scales,
               cudaStream_t stream);

struct CombineArgs {
  const float* outputs = nullptr;            // [T * k, D], or else
  const std::uint16_t* outputs16 = nullptr;  // the same in BF16
  const float* weights = nullptr;            // [T, k], or null for 1
  const int* batch_slots = nullptr;
  int tokens = 0;
  int k = 0;
  int hidden = 0;        // multiple of 4
  float* out = nullptr;  // [T, D], added to
};

/// out[t] += Σ_i weights[t, i] outputs[t * k + i], in order of i
void combine_experts(const CombineArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda
