// SPDX-License-Identifier: Apache-2.0
// linear_bench [CASE…] [TOKENS…] [fp16]: microseconds and share of the measured read bandwidth of
// the GPU's dense products at DeepSeek-V4-Flash shapes, as replays of recorded steps. Without
// numbers of tokens those of decoding, or with `prefill` those of long prompts; with `fp16` inputs
// of FP8 weights are rounded to F16.
//
// Every case cycles through copies of its weights, 256 MB or more, so that nothing comes from the
// L2. Weights and inputs are random. A figure is the median of 20 replays of one recording.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/probe.h"
#include "core/codec.h"

namespace quatrain::bench {
namespace {

constexpr std::int64_t kCycledBytes = std::int64_t{256} << 20;
constexpr int kReplays = 20;

struct Weight {
  WeightFormat format;
  std::int64_t rows, cols;
};

struct Case {
  const char* name;
  std::vector<Weight> weights;  // of one input
  std::int64_t groups = 1;
};

constexpr WeightFormat kFp8 = WeightFormat::kFp8Block;
constexpr WeightFormat kBf16 = WeightFormat::kDense;

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"wq_b", {{kFp8, 32768, 1024}}},
      {"wo_a", {{kFp8, 8192, 4096}}, 8},
      {"wo_b", {{kFp8, 4096, 8192}}},
      {"wq_a", {{kFp8, 1024, 4096}}},
      {"wkv", {{kFp8, 512, 4096}}},
      {"index_wq_b", {{kFp8, 8192, 1024}}},
      {"shared_w1", {{kFp8, 2048, 4096}}},
      {"shared_w2", {{kFp8, 4096, 2048}}},
      {"compressor", {{kBf16, 1024, 4096}}},
      {"router", {{kBf16, 256, 4096}}},
      {"weights_proj", {{kBf16, 64, 4096}}},
      {"head", {{kBf16, 129280, 4096}}},
      {"of_x window", {{kFp8, 1024, 4096}, {kFp8, 512, 4096}}},
      {"of_x HCA", {{kFp8, 1024, 4096}, {kFp8, 512, 4096}, {kBf16, 512, 4096}, {kBf16, 512, 4096}}},
      {"of_x CSA",
       {{kFp8, 1024, 4096},
        {kFp8, 512, 4096},
        {kBf16, 1024, 4096},
        {kBf16, 1024, 4096},
        {kBf16, 256, 4096},
        {kBf16, 256, 4096},
        {kBf16, 64, 4096}}},
      {"of_qr CSA", {{kFp8, 32768, 1024}, {kFp8, 8192, 1024}}},
      {"ffn of_x", {{kBf16, 256, 4096}, {kFp8, 2048, 4096}, {kFp8, 2048, 4096}}},
      {"nvfp4 4096", {{WeightFormat::kNvfp4, 8192, 4096}}},
      {"mxfp4 4096", {{WeightFormat::kMxfp4, 8192, 4096}}}};
  return all;
}

/// Random bytes that are finite values of every format.
std::vector<std::byte> random_values(const Weight& w, std::int64_t bytes, std::uint64_t seed) {
  std::vector<std::byte> out(static_cast<std::size_t>(bytes));
  auto* words = reinterpret_cast<std::uint64_t*>(out.data());
  for (std::size_t i = 0; i < out.size() / 8; ++i) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    // E4M3 up to 30; BF16 of exponents 2^-9 to 2^0; E2M1 as it comes.
    words[i] = w.format == kFp8    ? seed & 0xDFDFDFDFDFDFDFDFull
               : w.format == kBf16 ? (seed & 0x83FF83FF83FF83FFull) | 0x3B803B803B803B80ull
                                   : seed;
  }
  return out;
}

std::unique_ptr<PackedLinear> random_linear(CudaOps& ops, const Weight& w, std::uint64_t seed) {
  QuantMatrix m{.name = "random", .format = w.format, .rows = w.rows, .cols = w.cols};
  m.dtype = w.format == kFp8 ? DType::kF8E4M3 : w.format == kBf16 ? DType::kBF16 : DType::kU8;
  const auto values = random_values(w, w.rows * m.row_bytes(), seed);
  m.values = values.data();
  std::vector<std::byte> scales;
  m.scale_dtype = w.format == WeightFormat::kNvfp4 ? DType::kF8E4M3 : DType::kF8E8M0;
  scales.assign(
      static_cast<std::size_t>(m.scale_count()),
      std::byte{w.format == WeightFormat::kNvfp4 ? std::uint8_t{0x38} : std::uint8_t{118}});
  m.scales = scales.data();
  return ops.pack_linear(m);
}

/// Median microseconds of one of the `per_replay` parts of a recording.
double time_recording(CudaOps& ops, Ops::Recording& recording, int per_replay) {
  std::vector<double> times;
  for (int i = 0; i < kReplays + 2; ++i) {
    ops.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    recording.replay();
    ops.synchronize();
    const std::chrono::duration<double, std::micro> taken =
        std::chrono::steady_clock::now() - begin;
    if (i >= 2) times.push_back(taken.count() / per_replay);
  }
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return times[kReplays / 2];
}

double read_bandwidth(CudaOps& ops) {  // GB/s
  const std::int64_t bytes = std::int64_t{2} << 30;
  const Buffer memory = ops.allocate(bytes), out = ops.allocate(4);
  const auto body = [&] {
    for (int i = 0; i < 4; ++i)
      cuda::probe_read(memory.data(), bytes, static_cast<unsigned*>(out.data()), ops.stream());
  };
  body();
  return static_cast<double>(bytes) / time_recording(ops, *ops.record(body), 4) / 1e3;
}

Tensor device_tensor(const Buffer& buffer, std::initializer_list<std::int64_t> shape) {
  return {buffer.data(), DType::kF32, shape};
}

void run(CudaOps& ops, const Case& c, const std::vector<std::int64_t>& token_counts,
         LinearActivations activations, double bandwidth) {
  std::int64_t bytes = 0, outputs = 0;
  const std::int64_t cols = c.weights[0].cols,
                     most = *std::max_element(token_counts.begin(), token_counts.end());
  std::vector<std::vector<std::unique_ptr<PackedLinear>>> copies;
  do {
    copies.emplace_back();
    for (const Weight& w : c.weights)
      copies.back().push_back(random_linear(ops, w, 77 + copies.size()));
    if (bytes == 0)
      for (const auto& w : copies.back()) {
        bytes += w->bytes;
        outputs += w->rows;
      }
  } while (static_cast<std::int64_t>(copies.size()) * bytes < kCycledBytes);

  const Buffer x = ops.allocate(most * c.groups * cols * 4), out = ops.allocate(most * outputs * 4);
  std::vector<float> values(static_cast<std::size_t>(most * c.groups * cols));
  std::uint32_t state = 1;
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
  }
  ops.upload(device_tensor(x, {most * c.groups * cols}), values.data());
  const int rounds = copies.size() < 16 ? static_cast<int>(16 / copies.size()) + 1 : 1;
  for (const std::int64_t tokens : token_counts) {
    const auto body = [&] {
      for (int round = 0; round < rounds; ++round)
        for (const auto& copy : copies) {
          op::Linears all{.x = device_tensor(x, {tokens, cols}), .activations = activations};
          float* at = static_cast<float*>(out.data());
          for (const auto& w : copy) {
            all.add(*w, Tensor(at, DType::kF32, {tokens, w->rows}));
            at += tokens * w->rows;
          }
          if (c.groups == 1)
            ops.linears(all);
          else
            ops.grouped_linear({.x = device_tensor(x, {tokens, c.groups, cols}),
                                .w = copy[0].get(),
                                .out = device_tensor(out, {tokens, c.groups, outputs / c.groups}),
                                .activations = activations});
        }
    };
    body();
    const double us =
        time_recording(ops, *ops.record(body), rounds * static_cast<int>(copies.size()));
    const double rate = static_cast<double>(bytes) / us / 1e3;
    const double flops = 2.0 * static_cast<double>(tokens * cols * outputs);
    fmt::print("| {:12} | {:5} | {:7.2f} | {:8.2f} | {:6.0f} | {:5.1f} % | {:6.1f} |\n", c.name,
               tokens, static_cast<double>(bytes) / 1e6, us, rate, 100 * rate / bandwidth,
               flops / us / 1e6);
  }
  std::fflush(stdout);
}

int main_of(int argc, char** argv) {
  CudaOps ops;
  const double bandwidth = read_bandwidth(ops);
  fmt::print("{}: {:.0f} GB/s read\n\n", ops.properties().name, bandwidth);
  fmt::print("| weights      | tokens |   MB   |    us    |  GB/s  | of read | TFLOP/s |\n");
  fmt::print("|---|---:|---:|---:|---:|---:|---:|\n");
  std::vector<std::int64_t> tokens{1, 4, 16, 32, 64}, numbers;
  std::vector<std::string_view> wanted;
  auto activations = LinearActivations::kFull;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "prefill")
      tokens = {256, 2048, 8192};
    else if (word == "fp16")
      activations = LinearActivations::kF16;
    else if (word.find_first_not_of("0123456789") == std::string_view::npos)
      numbers.push_back(std::stoll(std::string(word)));
    else
      wanted.push_back(word);
  }
  if (!numbers.empty()) tokens = numbers;
  ops.reserve({.rows = *std::max_element(tokens.begin(), tokens.end())});
  for (const Case& c : cases())
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), c.name) != wanted.end())
      run(ops, c, tokens, activations, bandwidth);
  return 0;
}

}  // namespace
}  // namespace quatrain::bench

int main(int argc, char** argv) {
  try {
    return quatrain::bench::main_of(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
}
