// SPDX-License-Identifier: Apache-2.0
// Memory and load-time packing of the CPU backend.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backends/cpu/cpu_ops.h"

namespace quatrain {

Buffer CpuOps::allocate(std::int64_t bytes) {
  constexpr std::int64_t kAlignment = 256;
  const std::int64_t rounded =
      std::max<std::int64_t>(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  void* data = std::aligned_alloc(kAlignment, static_cast<std::size_t>(rounded));
  if (data == nullptr) fail("cannot allocate {} bytes of memory", rounded);
  return Buffer(data, rounded, [](void* p) { std::free(p); });
}

void CpuOps::upload(const Tensor& device, const void* host) {
  QT_CHECK(device.contiguous(), "upload to the strided view {}", device.describe());
  std::memcpy(device.data(), host, static_cast<std::size_t>(device.bytes()));
}

void CpuOps::download(void* host, const Tensor& device) {
  QT_CHECK(device.contiguous(), "download from the strided view {}", device.describe());
  std::memcpy(host, device.data(), static_cast<std::size_t>(device.bytes()));
}

void CpuOps::zero(const Tensor& device) {
  QT_CHECK(device.contiguous(), "zeroing the strided view {}", device.describe());
  std::memset(device.data(), 0, static_cast<std::size_t>(device.bytes()));
}

void CpuOps::copy(const Tensor& to, const Tensor& from) {
  QT_CHECK(to.contiguous() && from.contiguous() && to.bytes() == from.bytes(), "copying {} to {}",
           from.describe(), to.describe());
  std::memcpy(to.data(), from.data(), static_cast<std::size_t>(to.bytes()));
}

std::unique_ptr<CpuLinear> CpuOps::pack(const QuantMatrix& w) {
  auto packed = std::make_unique<CpuLinear>();
  packed->name = std::string(w.name);
  packed->format = w.format;
  packed->rows = w.rows;
  packed->cols = w.cols;
  packed->bytes = w.bytes();
  const std::int64_t value_bytes = w.rows * w.row_bytes();
  const std::int64_t scale_bytes = w.scale_count() * bytes_of(w.scale_dtype);
  // Scales follow the values at the next multiple of 16, so that wider elements stay aligned.
  const std::int64_t scale_offset = (value_bytes + 15) / 16 * 16;
  packed->storage.resize(static_cast<std::size_t>(scale_offset + scale_bytes));
  std::byte* base = packed->storage.data();
  std::memcpy(base, w.values, static_cast<std::size_t>(value_bytes));
  if (scale_bytes > 0)
    std::memcpy(base + scale_offset, w.scales, static_cast<std::size_t>(scale_bytes));
  packed->matrix = w;
  packed->matrix.name = packed->name;
  packed->matrix.values = base;
  packed->matrix.scales = base + scale_offset;
  row_capacity_ = std::max(row_capacity_, w.cols);
  return packed;
}

std::unique_ptr<PackedLinear> CpuOps::pack_linear(const QuantMatrix& w) { return pack(w); }

std::unique_ptr<PackedExperts> CpuOps::make_experts(std::string name, std::int64_t count,
                                                    std::int64_t hidden,
                                                    std::int64_t intermediate) {
  auto experts = std::make_unique<CpuExperts>();
  experts->name = std::move(name);
  experts->count = count;
  experts->hidden = hidden;
  experts->intermediate = intermediate;
  experts->experts.resize(static_cast<std::size_t>(count));
  return experts;
}

void CpuOps::pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                         const QuantMatrix& w3, const QuantMatrix& w2) {
  auto& all = static_cast<CpuExperts&>(experts);
  auto& expert = all.experts[static_cast<std::size_t>(e)];
  expert.w1 = pack(w1);
  expert.w3 = pack(w3);
  expert.w2 = pack(w2);
  for (const QuantMatrix* w : {&w1, &w3, &w2}) {
    all.bytes += w->bytes();
    all.has_input_scales = all.has_input_scales && w->input_scale > 0;
  }
}

void CpuOps::reserve(const StepLimits& limits) {
  const auto threads = static_cast<std::size_t>(pool_.threads());
  // Scores: the window and every entry a query may attend to, every index key it may score, or two
  // values per expert.
  const std::int64_t csa_entries = limits.context / 4 + 1;
  score_capacity_ =
      std::max(limits.window + std::max(csa_entries, limits.index_topk), 2 * limits.num_experts);
  thread_rows_.resize(threads * static_cast<std::size_t>(2 * row_capacity_));
  thread_scores_.resize(threads * static_cast<std::size_t>(score_capacity_));
  thread_order_.resize(threads * static_cast<std::size_t>(score_capacity_));
  thread_keys_.resize(threads * static_cast<std::size_t>(score_capacity_));

  samplers_.clear();
  if (limits.vocab_size > 0)
    samplers_.assign(threads, SamplerWorkspace(static_cast<std::int32_t>(limits.vocab_size)));

  const auto slots = static_cast<std::size_t>(limits.rows * limits.experts_per_token);
  expert_begin_.resize(static_cast<std::size_t>(limits.num_experts));
  expert_end_.resize(static_cast<std::size_t>(limits.num_experts));
  sorted_slots_.resize(slots);
  active_.reserve(static_cast<std::size_t>(limits.num_experts));
  expert_inputs_.resize(slots * static_cast<std::size_t>(limits.hidden_size));
  expert_hidden_.resize(slots * static_cast<std::size_t>(limits.intermediate_size));
  expert_outputs_.resize(slots * static_cast<std::size_t>(limits.hidden_size));
}

}  // namespace quatrain
