// SPDX-License-Identifier: Apache-2.0
// What each layer keeps between steps: window ring, compressed entries, indexer keys, open windows.
// Rows have the backend's cache_dtype(); packed ones (core/packed_row.h) are U8, as wide as their
// bytes.
#pragma once

#include <vector>

#include "model/config.h"
#include "ops/ops.h"

namespace quatrain {

struct LayerCache {
  Tensor ring;      // [slots, window, n]
  RowPool entries;  // [blocks · 128/r, n]; empty for ratio 0
  CompressorState compressor;
  RowPool index_keys;  // CSA: [blocks · 32, n_i]
  CompressorState index_compressor;
};

/// The caches of all layers for `slots` sequences over `blocks` blocks of 128 tokens.
class KvCache {
 public:
  KvCache(Ops& ops, const V4Config& config, std::int64_t slots, std::int64_t blocks);

  const LayerCache& layer(std::int64_t l) const { return layers_[static_cast<std::size_t>(l)]; }
  const LayerCache& mtp(std::int64_t m) const { return mtp_[static_cast<std::size_t>(m)]; }
  std::int64_t bytes() const { return bytes_; }

  /// Views of what `slot` keeps besides its blocks where a sequence's length is a multiple of
  /// kBlockTokens: rings and the last full CSA windows; every other window is closed there (3.4).
  std::vector<Tensor> border_state(std::int64_t slot) const;

  /// Fills the rows of one block with zeros in every pool.
  void zero_block(std::int64_t block) const;

  /// Fills everything with NaN, so that a test sees any read of what was never written.
  void poison(Ops& ops) const;

  /// Fills everything with random numbers of deviation 1, as if long sequences had run: a step at
  /// any position then costs what it costs, without the prompt. The same bytes for the same seed.
  void randomise(Ops& ops, std::uint64_t seed) const;

 private:
  LayerCache make_layer(std::int64_t ratio);
  Tensor make(DType dtype, std::initializer_list<std::int64_t> shape);

  Ops& ops_;
  const V4Config& config_;
  std::int64_t slots_;
  std::int64_t blocks_;
  std::int64_t bytes_ = 0;
  std::vector<Buffer> memory_;
  std::vector<Tensor> tensors_;
  std::vector<LayerCache> layers_;
  std::vector<LayerCache> mtp_;
};

}  // namespace quatrain
