// SPDX-License-Identifier: Apache-2.0
// Times attend, index_select, compress and kv_store at the sizes of DeepSeek-V4, as graph replays
// over more cache memory than L2 holds, beside what the chip can do at most.
//
// usage: attention_bench [fp16|fp8|bf16] [PART OF A NAME]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "attention_probes.h"
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/probe.h"
#include "core/packed_row.h"

namespace quatrain::bench {
namespace {

constexpr int kRepeats = 20;
constexpr std::int64_t kPoolBytes = std::int64_t{512} << 20;  // of each cache
constexpr std::int64_t kLatent = 512, kIndexKey = 128, kIndexHeads = 64, kWindow = 128;

double g_read_bandwidth = 0;  // bytes per second
double g_f16_peak = 0;        // flops per second
std::string g_wanted;         // a part of the names of what is measured

bool is_wanted(const std::string& name) { return name.find(g_wanted) != std::string::npos; }

// Microseconds of one of the `calls` in `body`: median over replays.
double time_us(CudaOps& ops, int calls, const std::function<void()>& body) {
  body();  // kernels load on first use
  ops.synchronize();
  const auto graph = ops.record(body);
  cudaEvent_t begin, end;
  QT_CUDA(cudaEventCreate(&begin));
  QT_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRepeats + 2; ++i) {
    QT_CUDA(cudaEventRecord(begin, ops.stream()));
    graph->replay();
    QT_CUDA(cudaEventRecord(end, ops.stream()));
    ops.synchronize();
    float ms = 0;
    QT_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return 1e3 * times[times.size() / 2] / calls;
}

void report(const std::string& what, double us, double bytes, double flops) {
  const double limit_us = 1e6 * std::max(bytes / g_read_bandwidth, flops / g_f16_peak);
  std::printf("| %-44s | %9.2f | %9.2f | %8.1f | %8.1f | %5.1f %% |\n", what.c_str(), us, limit_us,
              bytes / us * 1e-3, flops / us * 1e-6, 100 * limit_us / us);
  std::fflush(stdout);
}

class Arrays {
 public:
  explicit Arrays(CudaOps& ops) : ops_(ops) {}

  Tensor floats(std::initializer_list<std::int64_t> shape, float scale = 1) {
    const Tensor t = make(DType::kF32, shape);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<std::size_t>(t.elements()));
    // Every value is drawn for the first part only, which is then repeated.
    const std::size_t drawn = std::min<std::size_t>(values.size(), std::size_t{1} << 20);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = i < drawn ? normal(random_) : values[i - drawn];
    ops_.upload(t, values.data());
    return t;
  }
  Tensor ints(std::initializer_list<std::int64_t> shape, const std::vector<std::int32_t>& values) {
    const Tensor t = make(DType::kI32, shape);
    ops_.upload(t, values.data());
    return t;
  }
  // Cache rows in the backend's format: 4,096 random ones, repeated.
  Tensor rows(std::int64_t count, int width, bool is_latent) {
    const DType type = ops_.cache_dtype();
    const std::int64_t columns = type != DType::kU8 ? width
                                 : is_latent        ? PackedLatent(width).bytes
                                                    : PackedIndexKey(width).bytes;
    const std::int64_t drawn = std::min<std::int64_t>(count, 4096);
    const std::int64_t row_bytes = columns * bytes_of(type);
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(drawn * row_bytes));
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<std::size_t>(width));
    for (std::int64_t r = 0; r < drawn; ++r) {
      for (float& value : x) value = normal(random_);
      std::uint8_t* to = bytes.data() + r * row_bytes;
      if (type == DType::kU8) {
        (is_latent ? pack_latent : pack_index_key)(x.data(), width, to);
        continue;
      }
      for (int c = 0; c < width; ++c) {
        const float value = x[static_cast<std::size_t>(c)];
        const std::uint16_t code = type == DType::kF16 ? f16_encode(value) : bf16_encode(value);
        std::memcpy(to + 2 * c, &code, 2);
      }
    }
    const Tensor t = make(type, {count, columns});
    for (std::int64_t r = 0; r < count; r += drawn) {
      const std::int64_t n = std::min(drawn, count - r);
      ops_.upload(Tensor(static_cast<char*>(t.data()) + r * row_bytes, DType::kU8, {n * row_bytes}),
                  bytes.data());
    }
    return t;
  }
  std::vector<std::int32_t> random_ints(std::int64_t n, std::int64_t below) {
    std::uniform_int_distribution<std::int32_t> uniform(0, static_cast<std::int32_t>(below - 1));
    std::vector<std::int32_t> out(static_cast<std::size_t>(n));
    for (auto& value : out) value = uniform(random_);
    return out;
  }

  Tensor make(DType type, std::initializer_list<std::int64_t> shape) {
    const Tensor shape_only(nullptr, type, shape);
    memory_.push_back(ops_.allocate(shape_only.bytes()));
    return Tensor(memory_.back().data(), type, shape);
  }

 private:
  CudaOps& ops_;
  std::mt19937 random_{1};
  std::vector<Buffer> memory_;
};

struct Case {
  std::int64_t rows;     // of the step
  std::int64_t context;  // positions of every sequence after the step
  bool is_prefill;       // one sequence; otherwise one row each
  std::string name() const {
    const std::string size = context >= 1 << 20 ? std::to_string(context >> 20) + "M"
                                                : std::to_string(context >> 10) + "K";
    return (is_prefill ? "prefill " : "decode ") + std::to_string(rows) + " at " + size;
  }
};

// A step whose sequences lie in random blocks of a pool.
Batch make_batch(Arrays& arrays, const Case& c, std::int64_t pool_blocks) {
  std::vector<std::int32_t> positions, slots, first_rows, tokens(static_cast<std::size_t>(c.rows));
  for (std::int64_t r = 0; r < c.rows; ++r) {
    positions.push_back(
        static_cast<std::int32_t>(c.is_prefill ? c.context - c.rows + r : c.context - 1));
    slots.push_back(c.is_prefill ? 0 : static_cast<std::int32_t>(r));
    first_rows.push_back(c.is_prefill ? 0 : static_cast<std::int32_t>(r));
  }
  const std::int64_t sequences = c.is_prefill ? 1 : c.rows;
  const std::int64_t blocks = c.context / kBlockTokens + 1;
  return {.token_ids = arrays.ints({c.rows}, tokens),
          .positions = arrays.ints({c.rows}, positions),
          .slots = arrays.ints({c.rows}, slots),
          .first_rows = arrays.ints({c.rows}, first_rows),
          .block_table = arrays.ints({sequences, blocks},
                                     arrays.random_ints(sequences * blocks, pool_blocks))};
}

double row_bytes(const Tensor& t) { return static_cast<double>(t.dim(1) * bytes_of(t.dtype())); }

// Replays hold several calls on different blocks, so that L2 has none of them.
int copies(double touched) { return static_cast<int>(std::clamp(3e8 / touched, 2.0, 40.0)); }

void bench_attend(CudaOps& ops, const Case& c, const char* model, std::int64_t heads,
                  std::int64_t ratio, std::int64_t topk) {
  const std::string name = std::string("attend ") + model +
                           (ratio == 0 ? " window "
                            : topk > 0 ? " CSA "
                                       : " HCA ") +
                           c.name();
  if (!is_wanted(name)) return;
  Arrays arrays(ops);
  ops.reserve({.rows = c.rows, .context = c.context, .slots = c.rows});
  const double entry = ops.cache_dtype() == DType::kU8 ? 584 : 1024;
  const std::int64_t per_block = ratio > 0 ? kBlockTokens / ratio : 1;
  const std::int64_t blocks = static_cast<std::int64_t>(kPoolBytes / entry) / per_block;
  const Tensor pool = arrays.rows(ratio > 0 ? blocks * per_block : 1, kLatent, true);
  const std::int64_t complete = ratio > 0 ? c.context / ratio : 0;
  const std::int64_t chosen = topk > 0 ? std::min(topk, complete) : complete;
  const auto keys = static_cast<double>(kWindow + chosen);
  const std::int64_t sequences = c.is_prefill ? 1 : c.rows;
  const int calls = c.is_prefill ? 2 : copies(keys * entry * static_cast<double>(c.rows));
  const Tensor sinks = arrays.floats({heads});
  const Tensor q = arrays.floats({c.rows, heads, kLatent}),
               out = arrays.floats({c.rows, heads, kLatent});
  const Tensor latents = arrays.floats({c.rows, kLatent});
  std::vector<op::Attend> args;
  for (int i = 0; i < calls; ++i) {
    Tensor selected;
    if (topk > 0) {
      std::vector<std::int32_t> ids;
      for (std::int64_t r = 0; r < c.rows; ++r) {
        // Ascending, one of every stretch of the context.
        const std::int64_t visible = std::max<std::int64_t>(
            (c.is_prefill ? c.context - c.rows + r + 1 : c.context) / ratio, 1);
        const std::int64_t n = std::min(topk, visible);
        const auto jitter = arrays.random_ints(n, std::max<std::int64_t>(visible / n, 1));
        for (std::int64_t k = 0; k < topk; ++k)
          ids.push_back(
              k < n ? static_cast<std::int32_t>(k * visible / n) +
                          jitter[static_cast<std::size_t>(k)] %
                              std::max<std::int32_t>(1, static_cast<std::int32_t>(visible / n))
                    : -1);
      }
      selected = arrays.ints({c.rows, topk}, ids);
    }
    const Tensor ring_rows = arrays.rows(sequences * kWindow, kLatent, true);
    args.push_back({.batch = make_batch(arrays, c, blocks),
                    .q = q,
                    .latents = latents,
                    .ring = ring_rows.reshaped({sequences, kWindow, ring_rows.dim(1)}),
                    .entries = {.rows = ratio > 0 ? pool : Tensor(), .ratio = ratio},
                    .selected = selected,
                    .sinks = sinks,
                    .inv_freq = {},
                    .out = out});
  }
  const double us = time_us(ops, calls, [&] {
    for (const op::Attend& a : args) ops.attend(a);
  });
  // A prefill reads what its rows share once: at most every entry.
  const double read = c.is_prefill ? static_cast<double>(complete + kWindow) * entry
                                   : keys * entry * static_cast<double>(c.rows);
  const double io = 2.0 * static_cast<double>(q.bytes());
  report(name, us, read + io, 4.0 * static_cast<double>(c.rows * heads * kLatent) * keys);
}

void bench_select(CudaOps& ops, const Case& c, std::int64_t topk) {
  const std::string name = "index_select top " + std::to_string(topk) + " " + c.name();
  if (!is_wanted(name)) return;
  Arrays arrays(ops);
  ops.reserve({.rows = c.rows, .context = c.context, .slots = c.rows, .index_topk = topk});
  const double key = ops.cache_dtype() == DType::kU8 ? 68 : 256;
  const std::int64_t blocks = static_cast<std::int64_t>(kPoolBytes / key) / 32;
  const Tensor pool = arrays.rows(blocks * 32, kIndexKey, false);
  const Tensor q = arrays.floats({c.rows, kIndexHeads, kIndexKey});
  const Tensor weights = arrays.floats({c.rows, kIndexHeads});
  const Tensor selected = arrays.make(DType::kI32, {c.rows, topk});
  const auto keys = static_cast<double>(c.context / 4);
  const double touched = keys * key * static_cast<double>(c.is_prefill ? 1 : c.rows);
  const int calls = c.is_prefill ? 2 : copies(touched);
  std::vector<op::IndexSelect> args;
  for (int i = 0; i < calls; ++i)
    args.push_back({.batch = make_batch(arrays, c, blocks),
                    .q = q,
                    .weights = weights,
                    .keys = {.rows = pool, .ratio = 4},
                    .selected = selected});
  const double us = time_us(ops, calls, [&] {
    for (const op::IndexSelect& a : args) ops.index_select(a);
  });
  report(name, us, touched + static_cast<double>(q.bytes()),
         2.0 * static_cast<double>(c.rows * kIndexHeads * kIndexKey) * keys);
}

void bench_compress(CudaOps& ops, const Case& c, std::int64_t ratio, int width, CacheGrid grid) {
  const std::string name =
      "compress " + std::to_string(ratio) + " x " + std::to_string(width) + " " + c.name();
  if (!is_wanted(name)) return;
  Arrays arrays(ops);
  const std::int64_t channels = ratio == 4 ? 2 * width : width, capacity = ratio == 4 ? 8 : ratio;
  const std::int64_t blocks = 4096, sequences = c.is_prefill ? 1 : c.rows;
  const Tensor pool =
      arrays.rows(blocks * (kBlockTokens / ratio), width, grid != CacheGrid::kIndex);
  const Tensor values = arrays.floats({c.rows, channels}),
               scores = arrays.floats({c.rows, channels});
  op::Compress args{.batch = make_batch(arrays, c, blocks),
                    .values = values,
                    .scores = scores,
                    .bias = arrays.floats({ratio, channels}, 0.01f),
                    .norm_weight = arrays.floats({width}),
                    .inv_freq = arrays.floats({32}, 0.01f),
                    .eps = 1e-6f,
                    .grid = ops.cache_dtype() == DType::kU8 ? grid : CacheGrid::kNone,
                    .state = {.values = arrays.floats({sequences, capacity, channels}),
                              .scores = arrays.floats({sequences, capacity, channels})},
                    .entries = {.rows = pool, .ratio = ratio}};
  const int calls = 8;
  const double us = time_us(ops, calls, [&] {
    for (int i = 0; i < calls; ++i) ops.compress(args);
  });
  report(name, us,
         2.0 * static_cast<double>(values.bytes()) +
             row_bytes(pool) * static_cast<double>(c.rows / ratio),
         0);
}

void probe(CudaOps& ops) {
  Arrays arrays(ops);
  const Tensor data = arrays.rows(std::int64_t{1} << 20, kLatent, true);
  const Tensor sink = arrays.floats({1});
  const auto bytes = static_cast<double>(data.bytes() / 16 * 16);
  g_read_bandwidth = bytes * 1e6 / time_us(ops, 1, [&] {
                       cuda::probe_read(data.data(), data.bytes() / 16 * 16,
                                        static_cast<unsigned*>(sink.data()), ops.stream());
                     });
  double flops = 0;
  const int processors = ops.properties().multiProcessorCount;
  g_f16_peak =
      1e6 / time_us(ops, 1, [&] { flops = multiply(processors, sink.f32(), ops.stream()); });
  g_f16_peak *= flops;
  std::printf("%s: reads %.0f GB/s, F16 products %.0f TFLOP/s\n\n", ops.properties().name,
              g_read_bandwidth * 1e-9, g_f16_peak * 1e-12);
}

void run(CudaOps& ops) {
  std::printf("| %-44s | %9s | %9s | %8s | %8s | %7s |\n|%s|---:|---:|---:|---:|---:|\n", "what",
              "us", "limit us", "GB/s", "TFLOP/s", "share", std::string(46, '-').c_str());
  for (const std::int64_t context : {4096, 32768, 262144})
    for (const std::int64_t rows : {1, 16, 64})
      bench_attend(ops, {rows, context, false}, "Flash", 64, 4, 512);
  for (const std::int64_t context : {4096, 32768, 262144})
    for (const std::int64_t rows : {1, 16, 64})
      bench_attend(ops, {rows, context, false}, "Flash", 64, 128, 0);
  for (const std::int64_t rows : {1, 64}) bench_attend(ops, {rows, 4096, false}, "Flash", 64, 0, 0);
  for (const std::int64_t rows : {1, 64})
    bench_attend(ops, {rows, 32768, false}, "Pro", 128, 4, 1024);
  for (const std::int64_t ratio : {4, 128, 0})
    bench_attend(ops, {4096, 32768, true}, "Flash", 64, ratio, ratio == 4 ? 512 : 0);
  bench_attend(ops, {4096, 262144, true}, "Flash", 64, 128, 0);
  bench_attend(ops, {2048, 32768, true}, "Pro", 128, 4, 1024);
  for (const std::int64_t context : {4096, 32768, 262144, 1048576})
    for (const std::int64_t rows : {1, 16, 64}) bench_select(ops, {rows, context, false}, 512);
  bench_select(ops, {1, 262144, false}, 1024);
  bench_select(ops, {2048, 32768, true}, 512);
  bench_select(ops, {1024, 262144, true}, 512);
  for (const Case& c : {Case{1, 4096, false}, Case{64, 4096, false}, Case{4096, 8192, true}}) {
    bench_compress(ops, c, 4, 512, CacheGrid::kLatent);
    bench_compress(ops, c, 4, 128, CacheGrid::kIndex);
    bench_compress(ops, c, 128, 512, CacheGrid::kLatent);
  }
}

}  // namespace
}  // namespace quatrain::bench

int main(int argc, char** argv) {
  using namespace quatrain;
  const std::string type = argc > 1 ? argv[1] : "fp16";
  try {
    CudaOps ops(0, type == "fp8" ? DType::kU8 : type == "bf16" ? DType::kBF16 : DType::kF16);
    bench::probe(ops);
    if (argc > 2) bench::g_wanted = argv[2];
    bench::run(ops);
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
