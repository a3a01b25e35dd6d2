// SPDX-License-Identifier: Apache-2.0
// The DeepSeek-V4 forward pass, written once for prefill and decode, every backend and mode.
//
// It reads like the paper: one function per block, symbols as in docs/paper_map.md. It issues
// operations and never looks at a value; scratch comes from the arena it is given.
#pragma once

#include "core/arena.h"
#include "model/config.h"
#include "model/kv_layout.h"
#include "model/weights.h"

namespace quatrain {

struct Numerics {
  /// Round cached latents and index keys to the grid of the packed caches (official numerics).
  bool sim = false;
  ExpertActivations expert_activations = ExpertActivations::kFull;
  /// kFp8 needs all linears in FP8 blocks that the official model has in FP8.
  LinearActivations linear_activations = LinearActivations::kFull;
};

class DeepseekV4 {
 public:
  DeepseekV4(const V4Config& config, const ModelWeights& weights, Numerics numerics);

  /// Runs one step. Writes F32 logits [n, V] of the batch rows `logit_rows` (I32 [n]); skips the
  /// head when n is 0. `streams` [T, hc, D] receives the residual streams before hc_head, which
  /// the MTP block starts from.
  void forward(Ops& ops, Arena& arena, const Batch& batch, const KvCache& cache, Tensor streams,
               Tensor logit_rows, Tensor logits) const;

  /// Runs MTP block m. `next` is the batch with each row's *following* token id and the row's own
  /// position; `streams` [T, hc, D] are forward()'s for the same rows and become the block's own.
  void forward_mtp(Ops& ops, Arena& arena, const Batch& next, const KvCache& cache, std::int64_t m,
                   Tensor streams, Tensor logit_rows, Tensor logits) const;

  const V4Config& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const Numerics& numerics() const { return numerics_; }

 private:
  struct Step;  // what every block of one step shares
  struct Residual;
  struct CompressorInputs {
    Tensor values, scores;  // F32 [T, c·W]
  };

  /// The residual of a step on `streams`, with nothing to be mixed in yet.
  Residual make_residual(const Step& step, Tensor streams) const;
  /// Mixes in what the sub-layer before has put out, and gives the input of the next one.
  void enter(const Step& step, const HcWeights& weights, Tensor norm_weight, Residual& residual,
             Tensor out) const;
  /// Mixes in what the last sub-layer has put out.
  void leave(const Step& step, const Residual& residual) const;
  void block(const Step& step, std::int64_t layer, const LayerWeights& w, const LayerCache& cache,
             Residual& residual) const;
  void attention(const Step& step, const LayerWeights& w, const LayerCache& cache, Tensor x,
                 Tensor out) const;
  Tensor select_entries(const Step& step, const LayerCache& cache, Tensor q,
                        Tensor head_weights) const;
  /// Adds a compressor's two projections to those of x.
  CompressorInputs add_compressor(const Step& step, const CompressorWeights& w,
                                  op::Linears& of_x) const;
  op::Compress compress(const Step& step, const CompressorWeights& w, const CompressorState& state,
                        const RowPool& entries, CacheGrid grid,
                        const CompressorInputs& inputs) const;
  void moe(const Step& step, const FfnWeights& w, Tensor x, Tensor out) const;
  void head(const Step& step, const HcWeights& hc_head, Tensor norm, Tensor streams,
            Tensor logit_rows, Tensor logits) const;
  Tensor norm(const Step& step, Tensor x, Tensor weight) const;
  Tensor linear(const Step& step, Tensor x, const PackedLinear& w) const;
  Tensor frequencies(std::int64_t ratio) const;

  const V4Config& config_;
  const ModelWeights& weights_;
  Numerics numerics_;
};

}  // namespace quatrain
