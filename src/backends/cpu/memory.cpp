// SPDX-License-Identifier: Apache-2.0
// Memory and load-time packing of the CPU backend.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "backends/cpu/cpu_ops.h"
#include "core/fp8_window.h"

namespace quatrain {
namespace {

// A number from a file of the kernel's: the one after `key`, or the first for an empty key.
std::int64_t kernel_number(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  std::int64_t value = -1;
  if (!key.empty())
    while (file >> word && word != key) continue;
  return file >> value ? value : -1;
}

}  // namespace

// What the machine could give without swapping, or the process's control group if that is less.
MemoryInfo CpuOps::memory() {
  MemoryInfo info{.free = kernel_number("/proc/meminfo", "MemAvailable:") * 1024,
                  .total = kernel_number("/proc/meminfo", "MemTotal:") * 1024};
  if (info.free < 0 || info.total < 0) return {};
  const std::int64_t limit = kernel_number("/sys/fs/cgroup/memory.max", "");
  const std::int64_t used = kernel_number("/sys/fs/cgroup/memory.current", "");
  if (limit < 0 || used < 0) return info;
  // Cached files count as used there, but give way.
  const std::int64_t files =
      std::max<std::int64_t>(kernel_number("/sys/fs/cgroup/memory.stat", "inactive_file"), 0);
  info.total = std::min(info.total, limit);
  info.free = std::min(info.free, limit - used + files);
  return info;
}

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

CpuWeight CpuOps::pack(const QuantMatrix& w) {
  CpuWeight packed;
  if (has_panels()) {
    packed.panels.emplace(w);
    const std::int64_t stride = packed.panels->panel_bytes();
    packed.memory = weights_.take(packed.panels->panels() * stride);
    packed.panels->pack(w, packed.memory.get(), stride, pool_);
    return packed;
  }
  const std::int64_t value_bytes = w.rows * w.row_bytes();
  const std::int64_t scale_bytes = w.scale_count() * bytes_of(w.scale_dtype);
  // Scales follow the values at the next multiple of 16, so that wider elements stay aligned.
  const std::int64_t scale_offset = (value_bytes + 15) / 16 * 16;
  packed.memory = weights_.take(scale_offset + scale_bytes);
  std::byte* base = packed.memory.get();
  std::memcpy(base, w.values, static_cast<std::size_t>(value_bytes));
  if (scale_bytes > 0)
    std::memcpy(base + scale_offset, w.scales, static_cast<std::size_t>(scale_bytes));
  packed.stored = w;
  packed.stored.name = {};
  packed.stored.values = base;
  packed.stored.scales = base + scale_offset;
  row_capacity_ = std::max(row_capacity_, w.cols);
  return packed;
}

std::unique_ptr<PackedLinear> CpuOps::pack_linear(const QuantMatrix& w) {
  auto packed = std::make_unique<CpuLinear>();
  packed->name = std::string(w.name);
  packed->format = w.format;
  packed->rows = w.rows;
  packed->cols = w.cols;
  packed->bytes = w.bytes();
  packed->weight = pack(w);
  if (is_fp8(w.format))
    rounded_inputs_.resize(
        std::max(rounded_inputs_.size(), static_cast<std::size_t>(kRoundedGroups * w.cols)));
  if (packed->weight.panels &&
      kernels_.float_tiles[static_cast<int>(packed->weight.panels->format())])
    widest_tile_linear_ = std::max(widest_tile_linear_, w.cols);
  return packed;
}

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
  if (experts.fp8_inputs)
    for (const QuantMatrix* w : {&w1, &w3, &w2}) fp8_row_tops(*w);  // refuses
  if (has_panels()) {
    // Panels of w1 and w3 alternate: the two that one task reads are one stream.
    expert.w1.panels.emplace(w1);
    expert.w3.panels.emplace(w3);
    const std::int64_t first = expert.w1.panels->panel_bytes();
    const std::int64_t stride = first + expert.w3.panels->panel_bytes();
    expert.w1.memory = expert.w3.memory = weights_.take(expert.w1.panels->panels() * stride);
    expert.w1.panels->pack(w1, expert.w1.memory.get(), stride, pool_);
    expert.w3.panels->pack(w3, expert.w1.memory.get() + first, stride, pool_);
  } else {
    expert.w1 = pack(w1);
    expert.w3 = pack(w3);
  }
  expert.w2 = pack(w2);
  expert.input_scale = w1.input_scale;
  expert.hidden_scale = w2.input_scale;
  for (const QuantMatrix* w : {&w1, &w3, &w2}) {
    all.bytes += w->bytes();
    all.has_input_scales = all.has_input_scales && w->input_scale > 0;
  }
}

void Int8Rows::reserve(std::int64_t rows, std::int64_t width) {
  const std::int64_t groups = (width + kInt8Group - 1) / kInt8Group;
  if (rows <= rows_ && groups <= groups_per_row_) return;
  rows_ = std::max(rows_, rows);
  groups_per_row_ = std::max(groups_per_row_, groups);
  groups_ = std::make_unique_for_overwrite<Int8Activations[]>(
      static_cast<std::size_t>(rows_ * groups_per_row_));
}

void Int8Rows::set(const CpuKernels& kernels, std::int64_t row, const float* x, std::int64_t n) {
  kernels.quantise_int8(x, n, groups_.get() + row * groups_per_row_);
}

void TileMemory::reserve(std::int64_t blocks, std::int64_t width, int parts) {
  const std::int64_t groups = (width + kInt8Group - 1) / kInt8Group;
  const std::int64_t scales = blocks * groups * TileInputs::kBlock * 4;
  const std::int64_t values = scales / 4 * kInt8Group * parts * 2;
  if (values > value_bytes_) values_ = map_memory(value_bytes_ = values);
  if (scales > scale_bytes_) scales_ = map_memory(scale_bytes_ = scales);
}

std::int64_t TileMemory::set_width(std::int64_t width, int parts) {
  groups_ = (width + kInt8Group - 1) / kInt8Group;
  parts_ = parts;
  const std::int64_t scales = groups_ * TileInputs::kBlock * 4;
  return std::min(scale_bytes_ / scales, value_bytes_ / (scales / 4 * kInt8Group * parts * 2));
}

TileInputs TileMemory::blocks(std::int64_t first, std::int64_t count) const {
  const std::int64_t scale = first * groups_ * TileInputs::kBlock;
  return {.values = reinterpret_cast<std::uint16_t*>(values_.get()) + scale * kInt8Group * parts_,
          .scales = reinterpret_cast<float*>(scales_.get()) + scale,
          .blocks = count,
          .parts = parts_};
}

void CpuOps::reserve(const StepLimits& limits) {
  const auto room = []<class T>(std::unique_ptr<T[]>& array, std::int64_t n) {
    array = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(n));
  };
  const std::int64_t threads = pool_.threads();
  // The window and every entry a query may attend to, or every index key it may score.
  const std::int64_t csa_entries = limits.context / 4 + 1;
  key_capacity_ = limits.window + std::max(csa_entries, limits.index_topk);
  score_capacity_ = std::max(kHeadsPerTask * key_capacity_, 2 * limits.num_experts);
  room(thread_rows_, threads * 2 * row_capacity_);
  room(thread_scores_, threads * score_capacity_);
  room(thread_order_, threads * key_capacity_);
  room(thread_keys_, threads * key_capacity_);
  room(index_scores_, key_capacity_);
  samplers_.clear();
  if (limits.vocab_size > 0)
    samplers_.assign(static_cast<std::size_t>(threads),
                     SamplerWorkspace(static_cast<std::int32_t>(limits.vocab_size)));

  const std::int64_t slots = limits.rows * limits.experts_per_token;
  expert_begin_.resize(static_cast<std::size_t>(limits.num_experts));
  expert_end_.resize(static_cast<std::size_t>(limits.num_experts));
  sorted_slots_.resize(static_cast<std::size_t>(slots));
  active_.reserve(static_cast<std::size_t>(limits.num_experts));
  // Not zeroed: pages that no step writes are never taken.
  room(expert_inputs_, slots * limits.hidden_size);
  room(expert_hidden_, slots * limits.intermediate_size);
  room(expert_outputs_, slots * limits.hidden_size);
  int8_inputs_.reserve(limits.rows, limits.hidden_size);
  int8_hidden_.reserve(slots, limits.intermediate_size);
  if (kernels_.int8_tile_tokens == 0) return;
  thread_sums_ = map_memory(threads * kTileTokens * kTileRows * 4);
  tile_block_.resize(static_cast<std::size_t>(limits.num_experts));
  // Room for the last rows of each group of a grouped linear, and of each expert.
  const auto blocks = [](std::int64_t rows) { return rows / TileInputs::kBlock + 1; };
  tile_memory_.reserve(blocks(limits.rows) + kMostTileGroups, widest_tile_linear_, 2);
  tile_memory_.reserve(blocks(slots) + slots / kernels_.int8_tile_tokens,
                       std::max(limits.hidden_size, limits.intermediate_size), 1);
}

std::int64_t CpuOps::reserve_bytes(const StepLimits& limits) {
  const std::int64_t scores = limits.window + limits.context / 4 + limits.index_topk + 1;
  const std::int64_t widest = 2 * std::max(limits.hidden_size, limits.intermediate_size) * 4;
  const std::int64_t slots = limits.rows * limits.experts_per_token;
  const std::int64_t tiles =
      kernels_.int8_tile_tokens == 0
          ? 0
          : pool_.threads() * kTileTokens * kTileRows * 4 +
                std::max(slots * 2 * widest / 4,
                         (limits.rows + kMostTileGroups * TileInputs::kBlock) * widest / 2);
  return tiles + pool_.threads() * (scores * 16 + 2 * widest + limits.vocab_size * 12) +
         slots * (2 * limits.hidden_size + limits.intermediate_size + 1) * 4;
}

}  // namespace quatrain
