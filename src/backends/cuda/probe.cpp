// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/probe.h"

#include <algorithm>

#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/probe.h"

namespace quatrain {
namespace {

constexpr int kRepetitions = 10;
constexpr std::int64_t kReadBytes = std::int64_t{1} << 30;
constexpr int kProductRounds = 20000;

/// Least microseconds of one launch.
template <class Launch>
double best_microseconds(CudaOps& ops, Launch&& launch) {
  const auto clock = ops.make_clock(kRepetitions + 2);
  launch();
  for (int r = 0; r <= kRepetitions; ++r) {
    clock->mark();
    launch();
  }
  clock->mark();
  const std::vector<double> times = clock->intervals();
  return *std::min_element(times.begin(), times.end());
}

}  // namespace

DeviceLimits measure_cuda_limits(CudaOps& ops) {
  const Buffer data = ops.allocate(kReadBytes);
  const int sms = ops.properties().multiProcessorCount;
  const Buffer sink = ops.allocate(static_cast<std::int64_t>(sms) * 256 * 4);
  cuda::fill_random(data.data(), kReadBytes, ops.stream());
  const double read = best_microseconds(ops, [&] {
    cuda::probe_read(data.data(), kReadBytes, static_cast<unsigned*>(sink.data()), ops.stream());
  });
  const auto products = [&](cuda::ProbeType type) {
    double operations = 0;
    const double time = best_microseconds(ops, [&] {
      operations = cuda::probe_products(type, sms, kProductRounds, static_cast<float*>(sink.data()),
                                        ops.stream());
    });
    return operations / time * 1e6;
  };
  DeviceLimits limits{.read_bytes = static_cast<double>(kReadBytes) / read * 1e6};
  limits.flops = products(cuda::ProbeType::kBf16);
  limits.fp8_flops = products(cuda::ProbeType::kFp8);
  return limits;
}

}  // namespace quatrain
