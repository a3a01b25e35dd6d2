// SPDX-License-Identifier: Apache-2.0
// The CPU kernels at the sizes of DeepSeek-V4-Flash, against what the machine can do.
//
// Every measurement of a kernel is paired with a probe just before it (plain reads of memory, or
// multiply-adds in registers), because other work changes what the machine gives from second to
// second. Printed are, by the wall's clock, the best rate of kernel and probe over all pairs and
// the ratio of those two; and the median of the pairs' ratios by processor time, which other work
// does not stretch. Weights are random codes in far more memory than the last-level cache holds,
// and each call reads others.
#include <algorithm>
#include <cstdio>
#include <random>

#include <CLI/CLI.hpp>

#include "backends/cpu/cpu_ops.h"
#include "core/codec.h"
#include "cpu_probes.h"

namespace quatrain::bench {
namespace {

struct Flags {
  std::vector<int> threads = {1, 2};
  std::string isa = "auto";
  std::int64_t megabytes = 1200;
  int pairs = 9;
  std::string only;
};

// A matrix of random codes with scales near one.
struct RandomWeights {
  std::vector<std::byte> values, scales;
  QuantMatrix view;

  RandomWeights(WeightFormat format, DType dtype, DType scale_dtype, std::int64_t rows,
                std::int64_t cols) {
    view = {.name = "random",
            .format = format,
            .rows = rows,
            .cols = cols,
            .dtype = dtype,
            .scale_dtype = scale_dtype};
    std::mt19937_64 engine(7);
    values.resize(static_cast<std::size_t>(rows * view.row_bytes()));
    for (auto& b : values) b = static_cast<std::byte>(engine() >> 32);
    if (dtype == DType::kF8E4M3)  // no NaN codes
      for (auto& b : values)
        if ((b & std::byte{0x7F}) == std::byte{0x7F}) b = std::byte{0x38};
    if (dtype == DType::kBF16)  // finite: exponents near that of one
      for (std::size_t i = 1; i < values.size(); i += 2)
        values[i] = (values[i] & std::byte{0x80}) | std::byte{0x3F};
    const bool e4m3 = scale_dtype == DType::kF8E4M3;
    scales.resize(static_cast<std::size_t>(view.scale_count() * bytes_of(scale_dtype)));
    for (auto& b : scales) b = static_cast<std::byte>((e4m3 ? 0x38 : 127) + engine() % 4);
    view.values = values.data();
    view.scales = scales.data();
  }
};

std::vector<float> random_floats(std::int64_t n) {
  std::mt19937 engine(3);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(n));
  for (float& x : out) x = normal(engine);
  return out;
}

enum class Limit { kRead, kInt8, kFma, kTiles };

class Bench {
 public:
  Bench(const Flags& flags, int threads)
      : flags_(flags), ops_(threads, parse_isa(flags.isa)), probe_bytes_(flags.megabytes << 20) {
    probe_memory_ = map_memory(probe_bytes_);
    ops_.pool().parallel_for(probe_bytes_ >> 22, 1, [&](std::int64_t b, std::int64_t e, int) {
      std::memset(probe_memory_.get() + (b << 22), 1, static_cast<std::size_t>((e - b) << 22));
    });
  }

  CpuOps& ops() { return ops_; }
  const Flags& flags() const { return flags_; }

  Rate probe(Limit limit) {
    switch (limit) {
      case Limit::kRead:
        return read_bytes_per_second(ops_.pool(), probe_memory_.get(), probe_bytes_ / 4);
      case Limit::kInt8:
        return int8_macs_per_second(ops_.pool(), ops_.isa());
      case Limit::kFma:
        return fma_macs_per_second(ops_.pool(), ops_.isa());
      case Limit::kTiles:
        return tile_macs_per_second(ops_.pool());
    }
    return {};
  }

  /// `call()` moves `amount` bytes of weights, or does as many multiply-adds; each call others.
  template <class Call>
  void report(const std::string& name, Limit limit, double amount, Call&& call) {
    if (name.find(flags_.only) == std::string::npos) return;
    call();
    std::vector<double> ratios;
    double best = 0, best_probe = 0;
    for (int i = 0; i < flags_.pairs; ++i) {
      const Rate limit_rate = probe(limit);
      const Stopwatch watch;
      call();
      const double wall = amount / watch.wall_seconds();
      ratios.push_back(amount * ops_.pool().threads() / watch.cpu_seconds() / limit_rate.cpu);
      best = std::max(best, wall);
      best_probe = std::max(best_probe, limit_rate.wall);
    }
    std::sort(ratios.begin(), ratios.end());
    std::printf("%-34s %2d  %8.2f %s  of %8.2f  ratio %4.2f   by processor time %4.2f\n",
                name.c_str(), ops_.pool().threads(), best / 1e9,
                limit == Limit::kRead ? "GB/s  " : "GMAC/s", best_probe / 1e9, best / best_probe,
                ratios[ratios.size() / 2]);
    std::fflush(stdout);
  }

 private:
  const Flags& flags_;
  CpuOps ops_;
  std::int64_t probe_bytes_;
  std::shared_ptr<std::byte> probe_memory_;
};

// Arrays of one step of experts() and of a linear.
struct StepArrays {
  StepArrays(std::int64_t tokens, std::int64_t hidden, std::int64_t outputs, std::int64_t k)
      : x(random_floats(tokens * hidden)),
        out(static_cast<std::size_t>(tokens * outputs)),
        weights(static_cast<std::size_t>(tokens * k), 0.2f),
        ids(static_cast<std::size_t>(tokens * k)),
        slots(static_cast<std::size_t>(tokens)),
        tokens_(tokens),
        hidden_(hidden),
        outputs_(outputs),
        k_(k) {}

  Tensor x_tensor() { return {x.data(), DType::kF32, {tokens_, hidden_}}; }
  Tensor out_tensor() { return {out.data(), DType::kF32, {tokens_, outputs_}}; }

  std::vector<float> x, out, weights;
  std::vector<std::int32_t> ids, slots;
  std::int64_t tokens_, hidden_, outputs_, k_;
};

constexpr std::int64_t kHidden = 4096, kInner = 2048;
// Tokens per expert from which on matrix tiles are the limit.
constexpr std::int64_t kTiledTokens = 32;

void bench_experts(Bench& bench, WeightFormat format, DType scale_dtype, const char* label) {
  const RandomWeights w13(format, DType::kU8, scale_dtype, kInner, kHidden);
  const RandomWeights w2(format, DType::kU8, scale_dtype, kHidden, kInner);
  const std::int64_t bytes = 2 * w13.view.bytes() + w2.view.bytes();
  const std::int64_t count = std::max<std::int64_t>(12, (bench.flags().megabytes << 20) / bytes);
  CpuOps& ops = bench.ops();
  const auto experts = ops.make_experts("experts", count, kHidden, kInner);
  for (std::int64_t e = 0; e < count; ++e)
    ops.pack_expert(*experts, e, w13.view, w13.view, w2.view);
  ops.reserve({.rows = 512,
               .context = 16,
               .slots = 1,
               .experts_per_token = 6,
               .num_experts = count,
               .hidden_size = kHidden,
               .intermediate_size = kInner,
               .window = 16,
               .index_topk = 16});

  const auto run = [&](std::int64_t tokens, std::int64_t k, ExpertActivations mode) {
    StepArrays a(tokens, kHidden, kHidden, k);
    const bool int8 = mode == ExpertActivations::kInt8;
    const std::string name = fmt::format("{} {} M={}", label, int8 ? "int8" : "fp32", tokens);
    const bool few = tokens == 1;
    const int calls = few ? 8 : 1;  // long enough to time
    const Limit limit = few                                                   ? Limit::kRead
                        : !int8                                               ? Limit::kFma
                        : ops.isa() >= CpuIsa::kAmx && tokens >= kTiledTokens ? Limit::kTiles
                                                                              : Limit::kInt8;
    const double amount = few ? static_cast<double>(calls * k * bytes)
                              : static_cast<double>(tokens * k * 3 * kHidden * kInner);
    std::int64_t next = 0;
    bench.report(name, limit, amount, [&] {
      for (int c = 0; c < calls; ++c) {
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t i = 0; i < k; ++i)
            a.ids[static_cast<std::size_t>(t * k + i)] =
                static_cast<std::int32_t>((next + i) % count);
        next += k;
        Batch batch;
        batch.token_ids = batch.slots = Tensor(a.slots.data(), DType::kI32, {tokens});
        ops.experts({.batch = batch,
                     .x = a.x_tensor(),
                     .ids = Tensor(a.ids.data(), DType::kI32, {tokens, k}),
                     .weights = Tensor(a.weights.data(), DType::kF32, {tokens, k}),
                     .w = experts.get(),
                     .limit = 10,
                     .activations = mode,
                     .out = a.out_tensor()});
      }
    });
  };
  for (const std::int64_t tokens : {1, 8, 16, 32, 64, 512})
    run(tokens, tokens <= 8 ? 6 : 1, ExpertActivations::kInt8);
  for (const std::int64_t tokens : {1, 8, 512})
    run(tokens, tokens <= 8 ? 6 : 1, ExpertActivations::kFull);
}

void bench_linear(Bench& bench, WeightFormat format, DType dtype, DType scale_dtype,
                  const char* label) {
  const RandomWeights w(format, dtype, scale_dtype, 8192, 4096);
  CpuOps& ops = bench.ops();
  const std::int64_t count =
      std::max<std::int64_t>(2, (bench.flags().megabytes << 20) / w.view.bytes());
  std::vector<std::unique_ptr<PackedLinear>> all;
  for (std::int64_t i = 0; i < count; ++i) all.push_back(ops.pack_linear(w.view));
  ops.reserve({.rows = 512, .context = 16, .slots = 1, .window = 16, .index_topk = 16});
  std::size_t next = 0;
  for (const std::int64_t tokens : {1, 8, 64, 512}) {
    StepArrays a(tokens, w.view.cols, w.view.rows, 1);
    const bool few = tokens == 1;
    const int calls = few ? 8 : 1;
    const Limit limit = few                                ? Limit::kRead
                        : ops.isa() == CpuIsa::kAmxLinears ? Limit::kTiles
                                                           : Limit::kFma;
    const double amount = few ? static_cast<double>(calls * w.view.bytes())
                              : static_cast<double>(tokens * w.view.rows * w.view.cols);
    bench.report(fmt::format("{} M={}", label, tokens), limit, amount, [&] {
      for (int c = 0; c < calls; ++c)
        ops.linear({.x = a.x_tensor(), .w = all[next++ % all.size()].get(), .out = a.out_tensor()});
    });
  }
}

void run(const Flags& flags) {
  for (const int threads : flags.threads) {
    {
      Bench bench(flags, threads);
      std::printf("# %s, %d threads\n", std::string(name_of(bench.ops().isa())).c_str(), threads);
      bench_experts(bench, WeightFormat::kNvfp4, DType::kF8E4M3, "experts nvfp4");
      bench_experts(bench, WeightFormat::kMxfp4, DType::kF8E8M0, "experts mxfp4");
    }
    Bench bench(flags, threads);
    bench_linear(bench, WeightFormat::kFp8Block, DType::kF8E4M3, DType::kF8E8M0,
                 "linear fp8 8192x4096");
    bench_linear(bench, WeightFormat::kDense, DType::kBF16, DType::kF32, "linear bf16 8192x4096");
  }
}

}  // namespace
}  // namespace quatrain::bench

int main(int argc, char** argv) {
  quatrain::bench::Flags flags;
  CLI::App app("Measures the CPU kernels against the machine's limits");
  app.add_option("-t,--threads", flags.threads, "Thread counts, separated by commas")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--cpu-isa", flags.isa, "avx2, avx512, vbmi, amx, amx-linears or auto")
      ->capture_default_str();
  app.add_option("--megabytes", flags.megabytes, "Weights per format")
      ->check(CLI::Range(256, 1 << 20))
      ->capture_default_str();
  app.add_option("--pairs", flags.pairs, "Measurements per case")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--only", flags.only, "Only cases whose name contains this");
  CLI11_PARSE(app, argc, argv);
  try {
    quatrain::bench::run(flags);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cpu_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
