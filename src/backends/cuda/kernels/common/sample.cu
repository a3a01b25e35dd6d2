// SPDX-License-Identifier: Apache-2.0
// sample: one token from each row of logits, the same bits as ops/sampling.cpp.
//
// A cluster of blocks works on a row and keeps it in shared memory as sortable integers. The prefix
// that top-k or top-p keeps, and the token drawn, are all "the first token in order at which a
// cumulative count or mass satisfies a condition". find() searches for it by histograms: first over
// distance from the largest logit, then, inside one bin, over the digits of (logit, id). Masses are
// integer sums, so the order in which threads add does not matter.
#include <cooperative_groups.h>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/sample.h"

namespace quatrain::cuda {
namespace {

namespace cg = cooperative_groups;
using u64 = unsigned long long;

constexpr int kCluster = 8;  // blocks that share a row: the most that every device allows
constexpr int kThreads = 1024;
constexpr int kBins = 256;
constexpr int kIdBits = 24;  // of a token's key, below the 32 bits of its logit
constexpr int kDigits = (32 + kIdBits) / 8;
static_assert(kMaxVocab <= kCluster * (1 << 16));
constexpr u64 kNoKey = ~u64{0};

// A mass is added up in three parts, because shared memory adds 32-bit words only: weights are at
// most 2^44 and a block has at most 2^16 of them.
constexpr int kLimbBits = 15;

struct Histogram {
  unsigned counts[kBins];
  unsigned limbs[3][kBins];
};

// Counts and masses of the whole row by bin.
struct Totals {
  unsigned counts[kBins];
  u64 masses[kBins];
};

// A bin, and what lies before and in it.
struct Choice {
  int bin;
  unsigned count_before, count;
  u64 mass_before, mass;
};

struct Shared {
  Histogram histograms[2];  // of this block; used in turn, so that others can still read the last
  u64 partials[2];          // of this block; in turn too
  u64 warps[kThreads / kWarp];
  Totals coarse;
  Totals fine;
  Choice choice;
};

// The row as one block sees it.
struct Row {
  Shared& s;
  std::uint32_t* keys;  // [count] descending_bits of this block's tokens
  int begin;            // id of keys[0]
  int count;
  int turn = 0;  // which of the two histograms and partial results is next
  float largest = 0;
  double inverse_temperature = 1;

  __device__ u64 full_key(int i) const {
    return static_cast<u64>(keys[i]) << kIdBits | static_cast<u64>(begin + i);
  }
  // (logit − largest) / T, the same operations as on the host.
  __device__ double exponent(std::uint32_t key) const {
    return (static_cast<double>(logit_from_descending(key)) - static_cast<double>(largest)) *
           inverse_temperature;
  }
  // Never decreases along the order; an eighth of a nat, and all of negligible weight in the last.
  __device__ int coarse_bin(double exponent) const {
    const double bin = exponent * -8.0;
    return bin < kBins - 1 ? static_cast<int>(bin) : kBins - 1;
  }
};

struct Sum {
  __device__ u64 operator()(u64 a, u64 b) const { return a + b; }
};
struct Min {
  __device__ u64 operator()(u64 a, u64 b) const { return a < b ? a : b; }
};

// Over all threads of the cluster; every one of them gets the result.
template <class Op>
__device__ u64 cluster_reduce(Row& row, u64 value, Op op, u64 identity) {
  Shared& s = row.s;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  if (lane_id() == 0) s.warps[warp_id()] = value;
  __syncthreads();
  if (warp_id() == 0) {
    value = lane_id() < kThreads / kWarp ? s.warps[lane_id()] : identity;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
    if (lane_id() == 0) s.partials[row.turn] = value;
  }
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  value = identity;
  for (int block = 0; block < kCluster; ++block)
    value = op(value, *cluster.map_shared_rank(&s.partials[row.turn], block));
  row.turn ^= 1;
  return value;
}

__device__ void add_to_histogram(Histogram& h, int bin, u64 weight) {
  constexpr unsigned kMask = (1u << kLimbBits) - 1;
  atomicAdd(&h.counts[bin], 1u);
  if (weight == 0) return;
  atomicAdd(&h.limbs[0][bin], static_cast<unsigned>(weight) & kMask);
  atomicAdd(&h.limbs[1][bin], static_cast<unsigned>(weight >> kLimbBits) & kMask);
  atomicAdd(&h.limbs[2][bin], static_cast<unsigned>(weight >> (2 * kLimbBits)));
}

// Counts and masses by bin of the tokens for which bin_of(i, exponent) is not negative.
template <class BinOf>
__device__ void histogram(Row& row, Totals& totals, BinOf bin_of) {
  Shared& s = row.s;
  Histogram& own = s.histograms[row.turn];
  auto* words = reinterpret_cast<unsigned*>(&own);
  for (int i = static_cast<int>(threadIdx.x); i < 4 * kBins; i += kThreads) words[i] = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < row.count; i += kThreads) {
    const double exponent = row.exponent(row.keys[i]);
    const int bin = bin_of(i, exponent);
    if (bin >= 0) add_to_histogram(own, bin, softmax_weight(exponent));
  }
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  const int bin = static_cast<int>(threadIdx.x);
  if (bin < kBins) {
    unsigned count = 0;
    u64 mass = 0;
    for (int block = 0; block < kCluster; ++block) {
      const Histogram& h = *cluster.map_shared_rank(&own, block);
      count += h.counts[bin];
      mass += h.limbs[0][bin] + (static_cast<u64>(h.limbs[1][bin]) << kLimbBits) +
              (static_cast<u64>(h.limbs[2][bin]) << (2 * kLimbBits));
    }
    totals.counts[bin] = count;
    totals.masses[bin] = mass;
  }
  row.turn ^= 1;
  __syncthreads();
}

// The first bin at whose end `reached` holds, given what lies before the histogram; the last one
// when it holds nowhere.
template <class Reached>
__device__ Choice choose_bin(Row& row, const Totals& totals, unsigned count_before, u64 mass_before,
                             Reached reached) {
  constexpr int kPerLane = kBins / kWarp;
  if (warp_id() == 0) {
    const int first = lane_id() * kPerLane;
    unsigned count = 0;
    u64 mass = 0;
    for (int b = first; b < first + kPerLane; ++b) {
      count += totals.counts[b];
      mass += totals.masses[b];
    }
    unsigned count_end = count;
    u64 mass_end = mass;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const unsigned c = __shfl_up_sync(kAllLanes, count_end, offset);
      const u64 m = __shfl_up_sync(kAllLanes, mass_end, offset);
      if (lane_id() < offset) continue;
      count_end += c;
      mass_end += m;
    }
    const unsigned hits =
        __ballot_sync(kAllLanes, reached(count_before + count_end, mass_before + mass_end));
    const int lane = hits == 0 ? kWarp - 1 : __ffs(static_cast<int>(hits)) - 1;
    if (lane_id() == lane) {
      unsigned c = count_before + count_end - count;
      u64 m = mass_before + mass_end - mass;
      int b = first;
      for (; b + 1 < first + kPerLane; ++b) {
        if (reached(c + totals.counts[b], m + totals.masses[b])) break;
        c += totals.counts[b];
        m += totals.masses[b];
      }
      row.s.choice = {b, c, totals.counts[b], m, totals.masses[b]};
    }
  }
  __syncthreads();
  const Choice choice = row.s.choice;
  __syncthreads();
  return choice;
}

// A token, and the mass of the prefix that ends with it.
struct Found {
  u64 key;
  u64 mass;
};

// The first token in order at which `reached`(count, mass of the prefix) holds.
template <class Reached>
__device__ Found find(Row& row, Reached reached) {
  Choice choice = choose_bin(row, row.s.coarse, 0, 0, reached);
  const int coarse = choice.bin;
  u64 prefix = 0;
  int digit = kDigits;
  while (digit > 0 && choice.count > 1) {
    --digit;
    const int shift = 8 * digit;
    histogram(row, row.s.fine, [&](int i, double exponent) {
      const u64 key = row.full_key(i);
      // All digits above the first are zero, and a shift by 64 bits has no meaning.
      const bool inside = key >> shift >> 8 == prefix && row.coarse_bin(exponent) == coarse;
      return inside ? static_cast<int>(key >> shift & (kBins - 1)) : -1;
    });
    choice = choose_bin(row, row.s.fine, choice.count_before, choice.mass_before, reached);
    prefix = prefix << 8 | static_cast<u64>(choice.bin);
  }
  u64 key = kNoKey;
  for (int i = static_cast<int>(threadIdx.x); i < row.count; i += kThreads) {
    const u64 candidate = row.full_key(i);
    if (candidate >> (8 * digit) == prefix && candidate < key &&
        row.coarse_bin(row.exponent(row.keys[i])) == coarse)
      key = candidate;
  }
  return {cluster_reduce(row, key, Min(), kNoKey), choice.mass_before + choice.mass};
}

// The mass of tokens before `end`.
__device__ u64 mass_before(Row& row, u64 end) {
  u64 mass = 0;
  for (int i = static_cast<int>(threadIdx.x); i < row.count; i += kThreads)
    if (row.full_key(i) < end) mass += softmax_weight(row.exponent(row.keys[i]));
  return cluster_reduce(row, mass, Sum(), 0);
}

// The mass of the prefix that top-k, top-p and min-p keep.
__device__ u64 kept_mass(Row& row, const SlotSampling& p, int vocab) {
  u64 end = kNoKey, total = 0;
  if (p.top_k > 0 && p.top_k < vocab) {
    const auto k = static_cast<unsigned>(p.top_k);
    const Found last = find(row, [k](unsigned count, u64) { return count >= k; });
    end = last.key + 1;
    total = last.mass;
  } else {
    const Choice last = choose_bin(row, row.s.coarse, 0, 0, [](unsigned, u64) { return false; });
    total = last.mass_before + last.mass;
  }
  if (p.top_p == 1.0f && p.min_p == 0.0f) return total;

  const double enough = static_cast<double>(p.top_p) * static_cast<double>(total);
  const Found nucleus =
      find(row, [enough](unsigned, u64 mass) { return static_cast<double>(mass) >= enough; });
  if (p.min_p == 0.0f) return nucleus.mass;

  // min-p ends the prefix before the first token that is too light.
  const double least = static_cast<double>(p.min_p) * static_cast<double>(kUnitWeight);
  u64 light = end;
  for (int i = static_cast<int>(threadIdx.x); i < row.count; i += kThreads) {
    const u64 key = row.full_key(i);
    if (key < light && static_cast<double>(softmax_weight(row.exponent(row.keys[i]))) < least)
      light = key;
  }
  light = cluster_reduce(row, light, Min(), kNoKey);
  return light <= nucleus.key ? mass_before(row, light) : nucleus.mass;
}

// Steps 5 to 9 of the definition: the key of the token drawn.
__device__ u64 draw(Row& row, const SlotSampling& p, int vocab, int position) {
  histogram(row, row.s.coarse, [&](int, double exponent) { return row.coarse_bin(exponent); });
  const u64 mass = kept_mass(row, p, vocab);
  const u64 target = __umul64hi(random_bits(p.seed, static_cast<std::uint64_t>(position)), mass);
  return find(row, [target](unsigned, u64 below) { return below > target; }).key;
}

__device__ float adjusted_by_counts(float logit, std::uint32_t seen, const SlotSampling& p) {
  if (seen == 0) return logit;
  logit = logit > 0.0f ? logit / p.repetition_penalty : logit * p.repetition_penalty;
  const std::uint32_t count = seen & TokenCounts::kOutputCount;
  if (count > 0)
    logit = (logit - p.frequency_penalty * static_cast<float>(count)) - p.presence_penalty;
  return logit;
}

// Steps 1 to 4, in place in `logits`, this block's part of the row.
__device__ void adjust(Row& row, float* logits, const SlotSampling& p, const std::uint32_t* counts,
                       bool suppress) {
  const auto thread = static_cast<int>(threadIdx.x);
  const auto inside = [&](int id) { return id >= row.begin && id < row.begin + row.count; };
  __syncthreads();
  // One thread adds all biases of an id, in their order.
  for (int e = thread; e < p.bias_count; e += kThreads) {
    const int id = p.biases[e].id;
    if (!inside(id) || (e > 0 && p.biases[e - 1].id == id)) continue;
    for (int next = e; next < p.bias_count && p.biases[next].id == id; ++next)
      logits[id - row.begin] += p.biases[next].bias;
  }
  __syncthreads();
  if (p.uses_counts != 0)
    for (int i = thread; i < row.count; i += kThreads)
      logits[i] = adjusted_by_counts(logits[i], counts[row.begin + i], p);
  __syncthreads();
  if (suppress)
    for (int e = thread; e < p.suppressed_count; e += kThreads)
      if (inside(p.suppressed[e])) logits[p.suppressed[e] - row.begin] = -INFINITY;
  __syncthreads();
}

// Fills the keys; returns the first key in order, or 0 when a logit of the row is unusable.
__device__ u64 load_keys(Row& row, const float* logits, const SlotSampling& p,
                         const std::uint32_t* counts, bool adjusted, bool suppress) {
  auto* values = reinterpret_cast<float*>(row.keys);
  u64 first = kNoKey;
  constexpr int kAtOnce = 8;  // of a thread, on their way
  for (int begin = static_cast<int>(threadIdx.x); begin < row.count; begin += kAtOnce * kThreads) {
    float x[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = begin + j * kThreads;
      x[j] = i < row.count ? logits[row.begin + i] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = begin + j * kThreads;
      if (i < row.count) values[i] = x[j];
      if (is_unusable_logit(x[j])) first = 0;
    }
  }
  if (adjusted) adjust(row, values, p, counts, suppress);
  for (int i = static_cast<int>(threadIdx.x); i < row.count; i += kThreads) {
    row.keys[i] = descending_bits(values[i]);
    first = Min()(first, row.full_key(i));
  }
  return cluster_reduce(row, first, Min(), kNoKey);  // synchronises: keys are there for all threads
}

__device__ float logit_of(u64 key) {
  return logit_from_descending(static_cast<std::uint32_t>(key >> kIdBits));
}
__device__ int id_of(u64 key) { return static_cast<int>(key & ((u64{1} << kIdBits) - 1)); }

// What log-probabilities are made of, from the row as given. `first` is its first key.
__device__ void add_ranks(Row& row, u64 first, u64 chosen, const SlotSampling& p, int vocab,
                          SampledRow& result) {
  row.largest = logit_of(first);
  row.inverse_temperature = 1;
  u64 ahead = 0;
  for (int i = static_cast<int>(threadIdx.x); i < row.count; i += kThreads)
    ahead += row.full_key(i) < chosen;
  result.total = mass_before(row, kNoKey);
  result.largest = row.largest;
  result.logit = logit_of(chosen);
  result.rank = 1 + static_cast<int>(cluster_reduce(row, ahead, Sum(), 0));
  result.top_count = p.logprobs < vocab ? p.logprobs : vocab;
  u64 next = first;
  for (int rank = 0; rank < result.top_count; ++rank) {
    result.top_ids[rank] = id_of(next);
    result.top_logits[rank] = logit_of(next);
    const u64 last = next;
    next = kNoKey;
    for (int i = static_cast<int>(threadIdx.x); i < row.count; i += kThreads) {
      const u64 key = row.full_key(i);
      if (key > last && key < next) next = key;
    }
    next = cluster_reduce(row, next, Min(), kNoKey);
  }
}

__device__ SampleStatus status_of(u64 first) {
  if (first == 0 || logit_of(first) == INFINITY) return SampleStatus::kNonFinite;
  return logit_of(first) == -INFINITY ? SampleStatus::kNoCandidate : SampleStatus::kOk;
}

// Blocks in clusters of kCluster.
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(SampleArgs args) {
  extern __shared__ std::uint32_t keys[];  // [per_block]
  __shared__ Shared shared;
  const int r = static_cast<int>(blockIdx.x) / kCluster;
  let_next_start();
  const int slot = args.slots[r];
  wait_for_previous();
  if (slot < 0) return;  // the whole cluster
  const int rank = static_cast<int>(blockIdx.x) % kCluster;
  const int per_block = (args.vocab + kCluster - 1) / kCluster;
  const int begin = min(rank * per_block, args.vocab);
  Row row{shared, keys, begin, min(per_block, args.vocab - begin)};
  const SlotSampling& p = args.params[slot];
  const float* logits = args.logits + static_cast<long long>(r) * args.vocab;
  std::uint32_t* counts = args.counts + static_cast<long long>(slot) * args.vocab;
  const int position = args.positions[r];

  SampledRow result;
  const bool suppress = position - p.prompt_length < p.min_tokens && p.suppressed_count > 0;
  const bool adjusted = p.bias_count > 0 || p.uses_counts != 0 || suppress;
  u64 first = load_keys(row, logits, p, counts, adjusted, suppress);
  result.status = status_of(first);
  if (result.status == SampleStatus::kOk) {
    row.largest = logit_of(first);
    u64 chosen = first;
    if (p.temperature != 0.0f) {
      row.inverse_temperature = 1.0 / static_cast<double>(p.temperature);
      chosen = draw(row, p, args.vocab, position);
    }
    result.token = id_of(chosen);
    if (p.logprobs >= 0) {
      if (adjusted) {
        first = load_keys(row, logits, p, counts, false, false);
        chosen = static_cast<u64>(descending_bits(logits[result.token])) << kIdBits |
                 static_cast<u64>(result.token);
      }
      add_ranks(row, first, chosen, p, args.vocab, result);
    }
  }
  cg::this_cluster().sync();  // nobody leaves while others may read its shared memory
  if (rank != 0 || threadIdx.x != 0) return;
  args.results[r] = result;
  if (p.uses_counts != 0 && result.status == SampleStatus::kOk) ++counts[result.token];
}

std::size_t key_bytes(std::int64_t vocab) {
  return static_cast<std::size_t>((vocab + kCluster - 1) / kCluster) * sizeof(std::uint32_t);
}

}  // namespace

void prepare_sampling(std::int64_t vocab) {
  if (vocab == 0) return;
  QT_CUDA(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(key_bytes(vocab))));
}

void sample(const SampleArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  launch(sample_kernel,
         {.grid = static_cast<unsigned>(args.rows * kCluster),
          .block = kThreads,
          .shared = key_bytes(args.vocab),
          .cluster_x = kCluster},
         stream, args);
}

}  // namespace quatrain::cuda
