// SPDX-License-Identifier: Apache-2.0
// Packed caches: the bytes that kv_store and compress write are those of core/packed_row.h, and
// attend and index_select read the values of these bytes.
#include "core/packed_row.h"

#include "ops/cuda_compare.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kSlots = 3;
using Bytes = std::vector<std::uint8_t>;

class PackedArray {
 public:
  PackedArray(Ops& ops, std::initializer_list<std::int64_t> shape, const Bytes& bytes)
      : ops_(ops),
        buffer_(ops.allocate(static_cast<std::int64_t>(bytes.size()))),
        tensor_(buffer_.data(), DType::kU8, shape) {
    QT_CHECK_EQ(static_cast<std::int64_t>(bytes.size()), tensor_.bytes(), "bytes of an array");
    ops.upload(tensor_, bytes.data());
  }

  operator const Tensor&() const { return tensor_; }
  Bytes bytes() const {
    Bytes out(static_cast<std::size_t>(tensor_.bytes()));
    ops_.download(out.data(), tensor_);
    return out;
  }

 private:
  Ops& ops_;
  Buffer buffer_;
  Tensor tensor_;
};

Bytes poisoned(std::int64_t n) { return Bytes(static_cast<std::size_t>(n), 0xFF); }

std::uint8_t* row_of(Bytes& bytes, std::int64_t row, int row_bytes) {
  return bytes.data() + row * row_bytes;
}

// Rows on the grid of packed latents: blocks of very different magnitude.
std::vector<float> latents_on_grid(std::int64_t rows, int n, unsigned seed) {
  Random random(seed);
  std::vector<float> out;
  Bytes row(static_cast<std::size_t>(PackedLatent(n).bytes));
  std::vector<float> x(static_cast<std::size_t>(n));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < n; ++i)
      x[static_cast<std::size_t>(i)] =
          random.normal(std::ldexp(1.0f, static_cast<int>((r + i / 64) % 5) - 3));
    pack_latent(x.data(), n, row.data());
    unpack_latent(row.data(), n, x.data());
    out.insert(out.end(), x.begin(), x.end());
  }
  return out;
}

std::vector<float> keys_on_grid(std::int64_t rows, int n, unsigned seed) {
  Random random(seed);
  std::vector<float> out;
  Bytes row(static_cast<std::size_t>(PackedIndexKey(n).bytes));
  for (std::int64_t r = 0; r < rows; ++r) {
    std::vector<float> x = random.normals(n);
    pack_index_key(x.data(), n, row.data());
    unpack_index_key(row.data(), n, x.data());
    out.insert(out.end(), x.begin(), x.end());
  }
  return out;
}

class CudaPackedCache : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    packed_ = std::make_unique<CudaOps>(0, DType::kU8);
    StepLimits limits = roomy_limits();
    limits.context = 10240;
    limits.index_topk = 512;
    reserve(limits);
    packed_->reserve(limits);
  }
  CudaOps& packed() { return *packed_; }

 private:
  std::unique_ptr<CudaOps> packed_;
};

TEST_F(CudaPackedCache, StoredLatentsAreTheHostsBytes) {
  for (const int n : {512, 128}) {
    const int bytes = PackedLatent(n).bytes, window = 16;
    const Step step(packed(), {{0, 3, 4}, {-1, 0, 1}, {2, 30, 20}}, kSlots);
    const std::vector<float> x = latents_on_grid(step.rows(), n, 1);
    const Floats latents(packed(), {step.rows(), n}, x);
    Bytes expected = poisoned(kSlots * window * bytes);
    const PackedArray ring(packed(), {kSlots, window, bytes}, expected);
    packed().kv_store({.batch = step.batch(), .latents = latents, .ring = ring});
    for (std::int64_t r = 0; r < step.rows(); ++r) {
      const auto i = static_cast<std::size_t>(r);
      if (step.slot[i] < 0 || (step.slot[i] == 2 && step.position[i] < 34)) continue;
      pack_latent(x.data() + r * n, n,
                  row_of(expected, step.slot[i] * window + step.position[i] % window, bytes));
    }
    EXPECT_EQ(ring.bytes(), expected) << n;
  }
}

// The same windows into FP32 entries and into packed ones.
TEST_F(CudaPackedCache, EntriesAreTheHostsBytes) {
  CudaOps exact(0, DType::kF32);
  for (const CacheGrid grid : {CacheGrid::kLatent, CacheGrid::kIndex}) {
    const bool is_latent = grid == CacheGrid::kLatent;
    const int n = is_latent ? 512 : 128;
    const int bytes = is_latent ? PackedLatent(n).bytes : PackedIndexKey(n).bytes;
    const std::int64_t channels = 2 * n;
    const auto compress = [&](Ops& ops, const Step& step, const Tensor& entries) {
      Random random(3);
      const Floats values(ops, {step.rows(), channels}, random.normals(step.rows() * channels));
      const Floats scores(ops, {step.rows(), channels}, random.normals(step.rows() * channels));
      const Floats bias(ops, {4, channels}, random.normals(4 * channels));
      const Floats norm(ops, {n}, random.normals(n));
      std::vector<float> frequencies(32);
      for (std::size_t i = 0; i < 32; ++i)
        frequencies[i] = std::pow(160000.0f, -static_cast<float>(i) / 32);
      const Floats freq(ops, {32}, frequencies);
      const Floats state_values(ops, {kSlots, 8, channels}),
          state_scores(ops, {kSlots, 8, channels});
      ops.compress({.batch = step.batch(),
                    .values = values,
                    .scores = scores,
                    .bias = bias,
                    .norm_weight = norm,
                    .inv_freq = freq,
                    .eps = 1e-6f,
                    .grid = grid,
                    .state = {.values = state_values, .scores = state_scores},
                    .entries = {.rows = entries, .ratio = 4}});
      (void)scores.values();  // waits, so that the step's arrays may go
    };
    const std::vector<Chunk> chunks = {{1, 0, 60}, {-1, 0, 2}, {0, 0, 4}};
    const Step step(exact, chunks, kSlots);
    const std::int64_t rows = step.pool_blocks * 32;
    const Floats wide(exact, {rows, n});
    compress(exact, step, wide);
    Bytes expected = poisoned(rows * bytes);
    const PackedArray entries(packed(), {rows, bytes}, expected);
    compress(packed(), Step(packed(), chunks, kSlots), entries);
    const std::vector<float> x = wide.values();
    for (std::int64_t r = 0; r < rows; ++r)
      if (!std::isnan(x[static_cast<std::size_t>(r * n)]))
        (is_latent ? pack_latent : pack_index_key)(x.data() + r * n, n, row_of(expected, r, bytes));
    EXPECT_EQ(entries.bytes(), expected) << "width " << n;
  }
}

// F16 holds these grid values too, so both formats give the same bits.
TEST_F(CudaPackedCache, AttentionReadsTheSameValues) {
  struct Shape {
    int heads, width;
  };
  for (const Shape s : {Shape{64, 512}, Shape{5, 128}}) {
    const int n = s.width, bytes = PackedLatent(n).bytes, window = 128;
    const std::int64_t heads = s.heads;
    const std::vector<float> ring_values = latents_on_grid(kSlots * window, n, 5);
    const auto run = [&](CudaOps& ops, bool is_packed) {
      const Step step(ops, {{0, 1500, 1}, {-1, 0, 1}, {1, 60, 9}, {2, 200, 1}}, kSlots, 16);
      const std::int64_t rows = step.rows(), pool_rows = step.pool_blocks * 32;
      const std::vector<float> pool_values = latents_on_grid(pool_rows, n, 6);
      const auto pack = [&](const std::vector<float>& x) {
        Bytes out(x.size() / static_cast<std::size_t>(n) * static_cast<std::size_t>(bytes));
        for (std::size_t r = 0; r < x.size() / static_cast<std::size_t>(n); ++r)
          pack_latent(x.data() + r * static_cast<std::size_t>(n), n,
                      row_of(out, static_cast<std::int64_t>(r), bytes));
        return out;
      };
      std::vector<std::int32_t> chosen;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int32_t i = 0; i < 100; ++i) {
          const auto at = static_cast<std::size_t>(r);
          const bool visible = step.slot[at] >= 0 && i < (step.position[at] + 1) / 4;
          chosen.push_back(visible ? i : -1);
        }
      const Ints selected(ops, {rows, 100}, chosen);
      const Floats q(ops, {rows, heads, n}, Random(7).normals(rows * heads * n));
      const Floats latents(ops, {rows, n}, latents_on_grid(rows, n, 8));
      const Floats sinks(ops, {heads}, Random(9).normals(heads)), out(ops, {rows, heads, n});
      const auto attend = [&](const Tensor& ring, const Tensor& pool) {
        ops.attend({.batch = step.batch(),
                    .q = q,
                    .latents = latents,
                    .ring = ring,
                    .entries = {.rows = pool, .ratio = 4},
                    .selected = selected,
                    .sinks = sinks,
                    .inv_freq = {},
                    .out = out});
        return out.values();
      };
      if (is_packed)
        return attend(PackedArray(ops, {kSlots, window, bytes}, pack(ring_values)),
                      PackedArray(ops, {pool_rows, bytes}, pack(pool_values)));
      return attend(CacheArray(ops, {kSlots, window, n}, ring_values),
                    CacheArray(ops, {pool_rows, n}, pool_values));
    };
    expect_same(run(packed(), true), run(gpu(), false));
  }
}

TEST_F(CudaPackedCache, SelectionReadsTheSameValues) {
  for (const std::int64_t heads : {64, 5}) {
    const int n = 128, bytes = PackedIndexKey(n).bytes;
    const auto run = [&](CudaOps& ops, bool is_packed) {
      const Step step(ops, {{0, 9000, 3}, {-1, 0, 1}, {1, 60, 2}}, kSlots, 80);
      const std::int64_t rows = step.rows(), pool_rows = step.pool_blocks * 32;
      const std::vector<float> values = keys_on_grid(pool_rows, n, 6);
      const Floats q(ops, {rows, heads, n}, keys_on_grid(rows * heads, n, 7));
      const Floats weights(ops, {rows, heads}, Random(9).normals(rows * heads));
      const Ints selected(ops, {rows, 64});
      const auto select = [&](const Tensor& pool) {
        ops.index_select({.batch = step.batch(),
                          .q = q,
                          .weights = weights,
                          .keys = {.rows = pool, .ratio = 4},
                          .selected = selected});
        return selected.values();
      };
      if (!is_packed) return select(CacheArray(ops, {pool_rows, n}, values));
      Bytes packed_keys(static_cast<std::size_t>(pool_rows * bytes));
      for (std::int64_t r = 0; r < pool_rows; ++r)
        pack_index_key(values.data() + r * n, n, row_of(packed_keys, r, bytes));
      return select(PackedArray(ops, {pool_rows, bytes}, packed_keys));
    };
    EXPECT_EQ(run(packed(), true), run(gpu(), false)) << heads << " heads";
  }
}

}  // namespace
}  // namespace quatrain::testing
