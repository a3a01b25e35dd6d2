// SPDX-License-Identifier: Apache-2.0
// Arguments of the operations of the seam, with the formula and the shapes of each.
//
// Symbols: T rows of the step, D hidden size, hc residual streams, H heads, n head_dim (latent
// width, K = V), I expert width, E experts, k experts per token, r compress ratio. Every activation
// has the backend's activation_dtype() unless a type is given. Inputs and outputs never alias
// unless a comment allows it. Section numbers refer to docs/paper_map.md.
//
// `fields` lists the tensors of an operation for decorators that treat all operations alike.
#pragma once

#include <cstdint>

#include "ops/weights.h"

namespace quatrain {

/// The rows of one step. Rows of one sequence are consecutive and in order of position. A padded
/// row has slot −1 and a valid token id; its other entries are arbitrary and it neither reads nor
/// writes any state.
struct Batch {
  Tensor token_ids;    // I32 [T]
  Tensor positions;    // I32 [T] absolute position t of each row
  Tensor slots;        // I32 [T] sequence slot, −1 for padding
  Tensor first_rows;   // I32 [T] the first row of the same sequence in this step
  Tensor block_table;  // I32 [slots, blocks]: block b of a sequence → block of the pools
  /// No sequence has more than one row: what only longer chunks need may be left out.
  bool is_decode = false;

  std::int64_t rows() const { return token_ids.dim(0); }
};

/// Tokens that one block of the paged pools covers: the least common multiple of the ratios.
inline constexpr std::int64_t kBlockTokens = 128;

/// A paged list of rows per sequence, one row per `ratio` tokens. Row w of a sequence is
/// rows[table[slot][w / per_block] * per_block + w % per_block], per_block = kBlockTokens / ratio.
struct RowPool {
  Tensor rows;             // [blocks * per_block, width]
  std::int64_t ratio = 0;  // 4 or 128
};

/// The last tokens' compressor inputs, so that windows can close across steps. Token p is kept at
/// ring row p mod capacity; capacity is r for HCA and 2r for CSA (whose windows overlap).
struct CompressorState {
  Tensor values;  // F32 [slots, capacity, c*W] K_t
  Tensor scores;  // F32 [slots, capacity, c*W] S_t with the position bias added
};

/// Mixing weights of one hyper-connection site (mHC).
struct HcWeights {
  Tensor fn;     // F32 [(2 + hc) * hc, hc * D]; [hc, hc * D] for the head
  Tensor base;   // F32 [(2 + hc) * hc]; [hc] for the head
  Tensor scale;  // F32 [3]; [1] for the head
};

enum class CacheGrid : std::uint8_t {
  kNone,    ///< values stay as computed
  kLatent,  ///< FP8 with a power-of-two scale per 64, on all but the trailing rotary dims
  kIndex,   ///< Hadamard transform, then FP4 with a power-of-two scale per 32, on all dims
};

enum class ExpertActivations : std::uint8_t {
  kFull,    ///< FP32, or as much of it as a backend's products take
  kBf16,    ///< rounded to BF16
  kNvfp4,   ///< E2M1 with E4M3 scales per 16 and one FP32 global scale per row, max|row| / 2688
  kStatic,  ///< as kNvfp4 with the checkpoint's calibrated input_scale as the global scale
  kInt8,    ///< int8 with one FP32 scale per 128, for 4-bit weights; others take FP32 (CPU only)
  kFp8,     ///< E4M3 with a power of two per 128, for PackedExperts made with fp8_inputs
};

/// What products with FP8 weights take of their inputs; others, and precise ones, are not
/// concerned.
enum class LinearActivations : std::uint8_t {
  kFull,  ///< FP32, or as much of it as a backend's products take
  kF16,   ///< rounded to the grid of core/f16_activations.h, 11 bits; a backend may keep more
  kFp8,   ///< of weights in FP8 blocks: rounded to the grid of core/fp8_activations.h
};

namespace op {

// streams[t, s, :] = table[ids[t], :] for every stream s
struct Embed {
  static constexpr const char* kName = "embed";
  Tensor ids;      // I32 [T]
  Tensor table;    // [V, D] BF16 or F32
  Tensor streams;  // [T, hc, D]
  template <class F>
  void fields(F&& f) const {
    f.in("ids", ids);
    f.out("streams", streams);
  }
};

// Mixes, Sinkhorn and collapse of a site (2.2): v = flattened streams, m = (fn v) / rms(v);
// pre = sigmoid(m·scale0 + base) + eps, post = 2 sigmoid(…), comb = Sinkhorn(softmax(…));
// out = Σ_s pre_s streams_s
struct HcPre {
  static constexpr const char* kName = "hc_pre";
  Tensor streams;  // [T, hc, D]
  HcWeights weights;
  int sinkhorn_iters = 0;
  float hc_eps = 0;
  float norm_eps = 0;
  Tensor out;   // [T, D]
  Tensor post;  // F32 [T, hc]
  Tensor comb;  // F32 [T, hc, hc]: row = source stream, column = destination
  template <class F>
  void fields(F&& f) const {
    f.in("streams", streams);
    f.out("out", out);
    f.out("post", post);
    f.out("comb", comb);
  }
};

// streams'[k] = post_k f + Σ_j comb[j, k] streams[j]; in place
struct HcPost {
  static constexpr const char* kName = "hc_post";
  Tensor f;        // [T, D] output of the sub-layer
  Tensor post;     // F32 [T, hc]
  Tensor comb;     // F32 [T, hc, hc]
  Tensor streams;  // [T, hc, D] updated
  template <class F>
  void fields(F&& v) const {
    v.in("f", f);
    v.in("post", post);
    v.in("comb", comb);
    v.out("streams", streams);
  }
};

// out = Σ_s (sigmoid(m_s·scale + base_s) + eps) streams_s
struct HcHead {
  static constexpr const char* kName = "hc_head";
  Tensor streams;  // [T, hc, D]
  HcWeights weights;
  float hc_eps = 0;
  float norm_eps = 0;
  Tensor out;  // [T, D]
  template <class F>
  void fields(F&& f) const {
    f.in("streams", streams);
    f.out("out", out);
  }
};

// out = x / sqrt(mean(x²) + eps) · weight over the innermost dimension; out may be x
struct RmsNorm {
  static constexpr const char* kName = "rms_norm";
  Tensor x;       // [T, …, m]
  Tensor weight;  // F32 [m], or empty for none
  float eps = 0;
  Tensor out;  // as x
  template <class F>
  void fields(F&& f) const {
    f.in("x", x);
    f.out("out", out);
  }
};

// out = x Wᵀ. `precise` products keep FP32 accuracy of x where others may round it to F16 or FP8:
// router logits and compressor inputs, which the official model computes in FP32 (2.10).
struct Linear {
  static constexpr const char* kName = "linear";
  Tensor x;  // [T, cols]
  const PackedLinear* w = nullptr;
  Tensor out;  // [T, rows]; activation type or F32
  bool precise = false;
  LinearActivations activations = LinearActivations::kFull;
  template <class F>
  void fields(F&& f) const {
    f.in("x", x);
    f.out("out", out);
  }
};

// out[t, g] = W[g·rows/G … ] x[t, g]: each group of inputs has rows/G outputs of its own (2.5)
struct GroupedLinear {
  static constexpr const char* kName = "grouped_linear";
  Tensor x;  // [T, G, cols]
  const PackedLinear* w = nullptr;
  Tensor out;  // [T, G, rows / G]
  LinearActivations activations = LinearActivations::kFull;
  template <class F>
  void fields(F&& f) const {
    f.in("x", x);
    f.out("out", out);
  }
};

// Rotates the interleaved pairs of the trailing 2·|inv_freq| dims by ±position·inv_freq; in place
struct Rope {
  static constexpr const char* kName = "rope";
  Tensor x;          // [T, m] or [T, H, m]
  Tensor positions;  // I32 [T]
  Tensor inv_freq;   // F32 [rope_dim / 2]
  bool inverse = false;
  template <class F>
  void fields(F&& f) const {
    f.in("positions", positions);
    f.out("x", x);
  }
};

// Rounds to the grid that the packed caches hold (sim on); in place
struct RoundToGrid {
  static constexpr const char* kName = "round_to_grid";
  Tensor x;  // [T, m] or [T, H, m]
  CacheGrid grid = CacheGrid::kNone;
  std::int64_t rope_dim = 0;
  template <class F>
  void fields(F&& f) const {
    f.out("x", x);
  }
};

// Pools windows of r tokens into entries (2.6) and keeps the open window for later steps:
// S = scores + bias[t mod r]; an entry closes at every t with (t + 1) mod r = 0 and is
// rope(rms_norm(Σ_i softmax_i(S)·K), first token of the window), rounded to `grid`.
struct Compress {
  static constexpr const char* kName = "compress";
  Batch batch;
  Tensor values;       // F32 [T, c·W]; c = 2 for r = 4 (overlapping windows), 1 for r = 128
  Tensor scores;       // F32 [T, c·W]
  Tensor bias;         // F32 [r, c·W]
  Tensor norm_weight;  // F32 [W]
  Tensor inv_freq;     // F32 [rope_dim / 2]
  float eps = 0;
  CacheGrid grid = CacheGrid::kNone;
  CompressorState state;
  RowPool entries;  // written
  template <class F>
  void fields(F&& f) const {
    f.in("values", values);
    f.in("scores", scores);
  }
};

// score[w] = Σ_h weights[t,h]·(n_i^-½ H_i^-½)·ReLU(q[t,h]·key_w) for w < ⌊(t+1)/r⌋ (2.7);
// selected = the top-k by score (lowest index first among equals), ascending, then −1. With
// inv_freq the queries are rotated first, and may be overwritten.
struct IndexSelect {
  static constexpr const char* kName = "index_select";
  Batch batch;
  Tensor q;              // [T, H_i, n_i]
  Tensor weights;        // [T, H_i]
  RowPool keys;          // [.., n_i]
  Tensor selected;       // I32 [T, topk]
  Tensor inv_freq = {};  // F32 [rope_dim / 2], or empty for queries that are rotated
  template <class F>
  void fields(F&& f) const {
    f.in("q", q);
    f.in("weights", weights);
    f.out("selected", selected);
  }
};

// One softmax over window ∪ entries with a per-head sink in the denominator (2.4). Window keys of
// this step come from `latents`, earlier ones from `ring`. Entries: none (ratio 0), the selected
// ones, or, when `selected` is empty, all ⌊(t+1)/r⌋ that are complete. Values carry their rotation
// into the output; with inv_freq it is undone there, at the query's position (2.4).
struct Attend {
  static constexpr const char* kName = "attend";
  Batch batch;
  Tensor q;         // [T, H, n]
  Tensor latents;   // [T, n] keys = values of this step's rows
  Tensor ring;      // [slots, window, n] position p at row p mod window
  RowPool entries;  // rows empty for ratio 0
  Tensor selected;  // I32 [T, topk] or empty
  Tensor sinks;     // F32 [H]
  Tensor inv_freq;  // F32 [rope_dim / 2], or empty to leave `out` rotated
  Tensor out;       // [T, H, n]
  template <class F>
  void fields(F&& f) const {
    f.in("q", q);
    f.in("latents", latents);
    f.out("out", out);
  }
};

// ring[slot, t mod window] = latents[t] for the last `window` rows of each sequence
struct KvStore {
  static constexpr const char* kName = "kv_store";
  Batch batch;
  Tensor latents;  // [T, n]
  Tensor ring;     // [slots, window, n] written
  template <class F>
  void fields(F&& f) const {
    f.in("latents", latents);
  }
};

// s = sqrt(softplus(logits)); ids = top-k of s + bias, or the row of the hash table of the token;
// weights = s[ids] / Σ s[ids] · scale (2.8). Ids descend by s + bias; the lowest id wins ties.
struct Route {
  static constexpr const char* kName = "route";
  Tensor logits;      // F32 [T, E]
  Tensor bias;        // F32 [E], or empty for hash routing
  Tensor hash_table;  // I32 [V, k], or empty for learned routing
  Tensor token_ids;   // I32 [T]
  float scale = 1;
  Tensor ids;      // I32 [T, k]
  Tensor weights;  // F32 [T, k]
  template <class F>
  void fields(F&& f) const {
    f.in("logits", logits);
    f.out("ids", ids);
    f.out("weights", weights);
  }
};

// out = silu(min(gate, limit)) · clamp(up, ±limit); limit 0 means no clamp
struct SwiGlu {
  static constexpr const char* kName = "swiglu";
  Tensor gate;  // [T, I]
  Tensor up;    // [T, I]
  float limit = 0;
  Tensor out;  // [T, I], may be gate
  template <class F>
  void fields(F&& f) const {
    f.in("gate", gate);
    f.in("up", up);
    f.out("out", out);
  }
};

// out += Σ_k weights[t,k]·w2_e swiglu(w1_e x, w3_e x), e = ids[t,k] (2.9). With static input scales
// the routing weight is applied before w2, which is what they were calibrated on.
struct Experts {
  static constexpr const char* kName = "experts";
  Batch batch;
  Tensor x;        // [T, D]
  Tensor ids;      // I32 [T, k]
  Tensor weights;  // F32 [T, k]
  const PackedExperts* w = nullptr;
  float limit = 0;
  ExpertActivations activations = ExpertActivations::kFull;
  Tensor out;  // [T, D] accumulated
  template <class F>
  void fields(F&& f) const {
    f.in("x", x);
    f.in("ids", ids);
    f.in("weights", weights);
    f.out("out", out);
  }
};

// out[i] = x[rows[i]]
struct GatherRows {
  static constexpr const char* kName = "gather_rows";
  Tensor x;     // [T, …]
  Tensor rows;  // I32 [n]
  Tensor out;   // [n, …]
  template <class F>
  void fields(F&& f) const {
    f.in("x", x);
    f.out("out", out);
  }
};

// streams[t, s] += e[t] for every stream (the MTP block's input, 2.12)
struct AddToStreams {
  static constexpr const char* kName = "add_to_streams";
  Tensor e;        // [T, D]
  Tensor streams;  // [T, hc, D]
  template <class F>
  void fields(F&& f) const {
    f.in("e", e);
    f.out("streams", streams);
  }
};

// Draws a token from each row of logits as sampling.h defines it, with the parameters of the row's
// slot, and counts it for the penalties. Everything but `logits` is plain bytes or integers.
struct Sample {
  static constexpr const char* kName = "sample";
  Tensor logits;     // F32 [n, V]
  Tensor slots;      // I32 [n] distinct, or −1: nothing is drawn, and the result is left alone
  Tensor positions;  // I32 [n] of the new token in its sequence
  Tensor params;     // U8 [slots, sizeof(SlotSampling)]
  Tensor counts;     // I32 [slots, V] of TokenCounts
  Tensor results;    // U8 [n, sizeof(SampledRow)]
  template <class F>
  void fields(F&& f) const {
    f.in("logits", logits);
    f.out("results", results);
  }
};

}  // namespace op
}  // namespace quatrain
