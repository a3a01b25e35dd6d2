// SPDX-License-Identifier: Apache-2.0
// What the tests of the CUDA operations share: a device or a skipped test, arrays in the cache's
// type, and comparisons of the device's results with the CPU backend's.
#pragma once

#include <memory>

#include "backends/cuda/cuda_ops.h"
#include "core/codec.h"
#include "support/op_harness.h"

namespace quatrain::testing {

/// Both backends; every test is skipped, with the reason, where there is no Hopper device.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0)
      GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(status);
    cudaDeviceProp properties;
    ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    if (properties.major != 9)
      GTEST_SKIP() << "kernels are built for compute capability 9.0, " << properties.name << " has "
                   << properties.major << "." << properties.minor;
    gpu_ = std::make_unique<CudaOps>();
  }

  /// Sizes the scratch of both backends.
  void reserve(const StepLimits& limits) {
    cpu_.reserve(limits);
    gpu_->reserve(limits);
  }
  CpuOps& cpu() { return cpu_; }
  CudaOps& gpu() { return *gpu_; }

 private:
  CpuOps cpu_{2};
  std::unique_ptr<CudaOps> gpu_;
};

inline std::vector<float> bf16_rounded(std::vector<float> values) {
  for (float& x : values) x = bf16_round(x);
  return values;
}

inline std::vector<float> f16_rounded(std::vector<float> values) {
  for (float& x : values) x = f16_decode(f16_encode(x));
  return values;
}

/// A cache in the type of the backend, F16 or F32. Both are given the same F16 values.
class CacheArray {
 public:
  CacheArray(Ops& ops, std::initializer_list<std::int64_t> shape, const std::vector<float>& values)
      : ops_(ops), is_f16_(ops.cache_dtype() == DType::kF16) {
    const Tensor shape_only(nullptr, ops.cache_dtype(), shape);
    QT_CHECK_EQ(static_cast<std::int64_t>(values.size()), shape_only.elements(), "cache values");
    buffer_ = ops.allocate(shape_only.bytes());
    tensor_ = Tensor(buffer_.data(), ops.cache_dtype(), shape);
    if (!is_f16_) {
      ops.upload(tensor_, f16_rounded(values).data());
      return;
    }
    std::vector<std::uint16_t> codes;
    for (const float x : values) codes.push_back(f16_encode(x));
    ops.upload(tensor_, codes.data());
  }
  /// Poisoned with NaN.
  CacheArray(Ops& ops, std::initializer_list<std::int64_t> shape)
      : CacheArray(
            ops, shape,
            std::vector<float>(
                static_cast<std::size_t>(Tensor(nullptr, DType::kF32, shape).elements()), kNaN)) {}

  operator const Tensor&() const { return tensor_; }
  std::vector<float> values() const {
    std::vector<float> out(static_cast<std::size_t>(tensor_.elements()));
    if (!is_f16_) {
      ops_.download(out.data(), tensor_);
      return out;
    }
    std::vector<std::uint16_t> codes(out.size());
    ops_.download(codes.data(), tensor_);
    std::transform(codes.begin(), codes.end(), out.begin(), f16_decode);
    return out;
  }

 private:
  Ops& ops_;
  bool is_f16_;
  Buffer buffer_;
  Tensor tensor_;
};

/// |found − expected| ≤ tolerance · max|expected|; everything must be finite.
inline void expect_near(const std::vector<float>& found, const std::vector<float>& expected,
                        double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  double largest = 0;
  for (const float x : expected) {
    ASSERT_TRUE(std::isfinite(x));
    largest = std::max(largest, static_cast<double>(std::abs(x)));
  }
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_LE(std::abs(static_cast<double>(found[i]) - expected[i]), tolerance * largest)
        << "element " << i << ": found " << found[i] << ", expected " << expected[i];
}

/// `found` holds F16 roundings of numbers that differ from `expected` by FP32 noise; NaN where
/// `expected` has it. At most the share `may_differ` of the numbers may be elsewhere, because the
/// noise put them on the other side of a rounding boundary of a coarser grid.
inline void expect_rounded(const std::vector<float>& found, const std::vector<float>& expected,
                           double may_differ) {
  ASSERT_EQ(found.size(), expected.size());
  std::size_t finite = 0, differ = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(std::isnan(found[i]), std::isnan(expected[i])) << "element " << i;
    if (std::isnan(expected[i])) continue;
    ++finite;
    const double allowed = std::abs(expected[i]) / 2048 + 2e-6;
    if (std::abs(static_cast<double>(found[i]) - expected[i]) <= allowed) continue;
    ++differ;
    ASSERT_GT(may_differ, 0) << "element " << i << ": found " << found[i] << ", expected "
                             << expected[i];
  }
  ASSERT_GT(finite, 0u);
  EXPECT_LE(static_cast<double>(differ), may_differ * static_cast<double>(finite));
}

/// The bits of `found`, with any NaN where `expected` has a NaN.
inline void expect_same(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(found[i])) continue;
    ASSERT_EQ(bits_from_float(found[i]), bits_from_float(expected[i]))
        << "element " << i << ": found " << found[i] << ", expected " << expected[i];
  }
}

}  // namespace quatrain::testing
