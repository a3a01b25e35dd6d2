// SPDX-License-Identifier: Apache-2.0
// Times the routed NVFP4 experts of one layer at V4 sizes, recorded and replayed, and prints shares
// of the measured read bandwidth and of a given BF16 peak.
//
// usage: experts_bench [BF16 peak in TFLOP/s
//                       [tokens | flash | pro | bf16 | full | fp8 | skewed | one]...]
//
// Words leave the other shapes or inputs out, or choose experts unevenly: "one" is one set of them
// for all tokens of a call.
//
// Every call of a recording routes anew, so that weights come from memory. Experts have weights of
// their own in memory; their bytes repeat after kDistinct experts.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/probe.h"
#include "core/error.h"

namespace quatrain::bench {
namespace {

constexpr std::int64_t kDistinct = 8;
constexpr int kSamples = 20;

struct Shape {
  const char* name;
  std::int64_t experts, k, hidden, inner;
};

enum class Choice { kUniform, kSkewed, kOne };

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Median milliseconds of `body`, which issues work on the stream.
template <class Body>
double time_ms(CudaOps& ops, Body body) {
  cudaEvent_t start, stop;
  QT_CUDA(cudaEventCreate(&start));
  QT_CUDA(cudaEventCreate(&stop));
  std::vector<double> times;
  for (int i = 0; i < kSamples + 2; ++i) {
    QT_CUDA(cudaEventRecord(start, ops.stream()));
    body();
    QT_CUDA(cudaEventRecord(stop, ops.stream()));
    ops.synchronize();
    float ms = 0;
    QT_CUDA(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 2) times.push_back(ms);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return median(times);
}

class Layer {
 public:
  Layer(CudaOps& ops, const Shape& shape, std::int64_t max_tokens, bool fp8)
      : ops_(ops),
        shape_(shape),
        packed_(ops.make_experts("bench", shape.experts, shape.hidden, shape.inner)) {
    packed_->fp8_inputs = fp8;
    std::mt19937 random(1);
    const std::int64_t count = shape.hidden * shape.inner;
    std::vector<std::byte> codes[3], scales[3];
    for (std::int64_t e = 0; e < kDistinct; ++e) {
      QuantMatrix w[3];
      for (int m = 0; m < 3; ++m) {
        codes[m].resize(static_cast<std::size_t>(count / 2));
        scales[m].resize(static_cast<std::size_t>(count / 16));
        for (std::byte& b : codes[m]) b = static_cast<std::byte>(random());
        fill_scales(random, scales[m]);
        w[m] = {.name = "bench",
                .format = WeightFormat::kNvfp4,
                .rows = m == 2 ? shape.hidden : shape.inner,
                .cols = m == 2 ? shape.inner : shape.hidden,
                .dtype = DType::kU8,
                .values = codes[m].data(),
                .scale_dtype = DType::kF8E4M3,
                .scales = scales[m].data(),
                .global_scale = 0.02f};
      }
      ops.pack_expert(*packed_, e, w[0], w[1], w[2]);
    }
    auto& all = static_cast<CudaExperts&>(*packed_);
    for (std::int64_t e = kDistinct; e < shape.experts; ++e) {
      for (Buffer* buffer : {&all.first, &all.second}) {
        const std::int64_t bytes = buffer->bytes() / shape.experts;
        auto* data = static_cast<char*>(buffer->data());
        QT_CUDA(cudaMemcpyAsync(data + e * bytes, data + e % kDistinct * bytes,
                                static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                                ops.stream()));
      }
      for (CudaExperts::Projection* p : {&all.w1, &all.w3, &all.w2}) {
        auto* data = static_cast<float*>(p->global_scales.data());
        QT_CUDA(cudaMemcpyAsync(data + e, data, 4, cudaMemcpyDeviceToDevice, ops.stream()));
      }
    }
    ops.reserve({.rows = max_tokens,
                 .context = 128,
                 .slots = 1,
                 .experts_per_token = shape.k,
                 .num_experts = shape.experts,
                 .hidden_size = shape.hidden,
                 .intermediate_size = shape.inner,
                 .window = 128,
                 .index_topk = 1});
  }

  std::int64_t expert_bytes() const {
    const auto& all = static_cast<const CudaExperts&>(*packed_);
    return (all.first.bytes() + all.second.bytes()) / shape_.experts;
  }
  const Buffer& weights() const { return static_cast<const CudaExperts&>(*packed_).first; }

  void measure(std::int64_t tokens, Choice choice, ExpertActivations mode, double read_rate,
               double peak) {
    const std::int64_t k = shape_.k;
    std::mt19937 random(static_cast<unsigned>(7 + tokens));
    // Calls of a recording: until weights of 400 MB have passed, and eight at least.
    const auto calls = static_cast<std::int64_t>(
        tokens >= 512 ? 2 : std::max<std::int64_t>(8, 64 / (tokens * k) * 4));
    std::vector<float> x(static_cast<std::size_t>(tokens * shape_.hidden));
    std::normal_distribution<float> normal;
    for (float& v : x) v = normal(random);
    std::vector<Buffer> memory;
    const auto device = [&](DType type, std::int64_t rows, std::int64_t cols, const void* data) {
      const Tensor shape_only(nullptr, type, {rows, cols});
      memory.push_back(ops_.allocate(shape_only.bytes()));
      const Tensor t(memory.back().data(), type, {rows, cols});
      ops_.upload(t, data);
      return t;
    };
    const std::vector<std::int32_t> zeros(static_cast<std::size_t>(tokens));
    const Tensor slots = device(DType::kI32, tokens, 1, zeros.data()).reshaped({tokens});
    const Tensor input = device(DType::kF32, tokens, shape_.hidden, x.data());
    const Tensor out = device(DType::kF32, tokens, shape_.hidden, x.data());
    const std::vector<float> weights(static_cast<std::size_t>(tokens * k), 1.0f / 6);
    const Tensor weight = device(DType::kF32, tokens, k, weights.data());
    std::vector<Tensor> ids;
    std::int64_t read = 0;
    for (std::int64_t c = 0; c < calls; ++c) {
      std::vector<std::int32_t> chosen;
      for (std::int64_t t = 0; t < tokens; ++t) choose(random, choice, c, chosen);
      read +=
          static_cast<std::int64_t>(std::set<std::int32_t>(chosen.begin(), chosen.end()).size()) *
          expert_bytes();
      ids.push_back(device(DType::kI32, tokens, k, chosen.data()));
    }
    const auto body = [&] {
      for (const Tensor& choices : ids)
        ops_.experts({.batch = {.token_ids = slots,
                                .positions = slots,
                                .slots = slots,
                                .first_rows = slots,
                                .block_table = slots},
                      .x = input,
                      .ids = choices,
                      .weights = weight,
                      .w = packed_.get(),
                      .limit = 10,
                      .activations = mode,
                      .out = out});
    };
    body();
    const auto recording = ops_.record(body);
    const double us =
        time_ms(ops_, [&] { recording->replay(); }) * 1e3 / static_cast<double>(calls);
    const double rate = static_cast<double>(read / calls) / us * 1e-6;  // TB/s
    const double flops =
        static_cast<double>(6 * tokens * k * shape_.hidden * shape_.inner) / us * 1e-6;  // TFLOP/s
    static const char* const kChoices[] = {"uniform", "skewed", "one"};
    std::printf("%-6s %6lld %-8s %-5s %10.1f us %8.3f TB/s %5.1f %% %8.1f TFLOP/s %5.1f %%\n",
                shape_.name, static_cast<long long>(tokens), kChoices[static_cast<int>(choice)],
                mode == ExpertActivations::kFull  ? "full"
                : mode == ExpertActivations::kFp8 ? "fp8"
                                                  : "bf16",
                us, rate, 100 * rate / read_rate, flops, 100 * flops / peak);
    std::fflush(stdout);
  }

 private:
  // For FP8 inputs powers of two from 2^-4 to 2^3 in pairs.
  void fill_scales(std::mt19937& random, std::vector<std::byte>& scales) const {
    for (std::size_t i = 0; i < scales.size(); ++i)
      scales[i] = !packed_->fp8_inputs ? static_cast<std::byte>(0x20 + random() % 24)
                  : i % 2 == 1         ? scales[i - 1]
                                       : static_cast<std::byte>((3 + random() % 8) * 8);
  }

  // k distinct experts of one token.
  void choose(std::mt19937& random, Choice choice, std::int64_t call,
              std::vector<std::int32_t>& out) const {
    std::set<std::int32_t> mine;
    if (choice == Choice::kOne)  // all tokens of a call on the same k experts
      for (std::int64_t i = 0; i < shape_.k; ++i)
        mine.insert(static_cast<std::int32_t>((call * shape_.k + i) % shape_.experts));
    while (static_cast<std::int64_t>(mine.size()) < shape_.k) {
      const double u = std::uniform_real_distribution<double>()(random);
      const double at = choice == Choice::kSkewed ? u * u * u : u;
      mine.insert(static_cast<std::int32_t>(at * static_cast<double>(shape_.experts)));
    }
    out.insert(out.end(), mine.begin(), mine.end());
  }

  CudaOps& ops_;
  Shape shape_;
  std::unique_ptr<PackedExperts> packed_;
};

// What is measured: everything of which nothing is named.
struct Wanted {
  std::vector<std::int64_t> tokens;
  std::set<std::string> shapes, inputs;
  Choice choice = Choice::kUniform;

  void add(const std::string& word) {
    if (word == "flash" || word == "pro")
      shapes.insert(word);
    else if (word == "bf16" || word == "full" || word == "fp8")
      inputs.insert(word);
    else if (word == "skewed" || word == "one")
      choice = word == "one" ? Choice::kOne : Choice::kSkewed;
    else if (const long long count = std::atoll(word.c_str()); count > 0)
      tokens.push_back(count);
    else
      fail(
          "'{}' is neither a number of tokens nor one of flash, pro, bf16, full, fp8, skewed and "
          "one",
          word);
  }
  static bool has(const std::set<std::string>& named, const char* one) {
    return named.empty() || named.contains(one);
  }
};

int run(double peak, const Wanted& wanted) {
  CudaOps ops;
  double read_rate = 0;
  for (const Shape& shape :
       {Shape{"flash", 256, 6, 4096, 2048}, Shape{"pro", 384, 6, 7168, 3072}}) {
    if (!Wanted::has(wanted.shapes, shape.name)) continue;
    std::vector<std::int64_t> counts{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192};
    if (!wanted.tokens.empty()) counts = wanted.tokens;
    const auto measure_all = [&](Layer& layer, const char* inputs, ExpertActivations mode) {
      if (!Wanted::has(wanted.inputs, inputs)) return;
      for (const std::int64_t tokens : counts)
        layer.measure(tokens, wanted.choice, mode, read_rate, peak);
    };
    Layer layer(ops, shape, 8192, false);
    if (read_rate == 0) {
      const Buffer sink = ops.allocate(4);
      const double ms = time_ms(ops, [&] {
        cuda::probe_read(layer.weights().data(), layer.weights().bytes(),
                         static_cast<unsigned*>(sink.data()), ops.stream());
      });
      read_rate = static_cast<double>(layer.weights().bytes()) / ms * 1e-9;
      std::printf("%s: reads %.3f TB/s; BF16 peak %.0f TFLOP/s\n", ops.properties().name, read_rate,
                  peak);
    }
    measure_all(layer, "bf16", ExpertActivations::kBf16);
    measure_all(layer, "full", ExpertActivations::kFull);
    if (Wanted::has(wanted.inputs, "fp8")) {
      Layer cast(ops, shape, 8192, true);
      measure_all(cast, "fp8", ExpertActivations::kFp8);
    }
    if (!wanted.tokens.empty()) continue;
    for (const std::int64_t tokens : {16, 64, 8192})
      for (const Choice choice : {Choice::kSkewed, Choice::kOne})
        layer.measure(tokens, choice, ExpertActivations::kBf16, read_rate, peak);
  }
  return 0;
}

}  // namespace
}  // namespace quatrain::bench

int main(int argc, char** argv) {
  try {
    quatrain::bench::Wanted wanted;
    for (int i = 2; i < argc; ++i) wanted.add(argv[i]);
    return quatrain::bench::run(argc > 1 ? std::atof(argv[1]) : 790.0, wanted);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "experts_bench: %s\n", error.what());
    return 1;
  }
}
