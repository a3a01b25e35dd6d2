// SPDX-License-Identifier: Apache-2.0
#include "model/kv_layout.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "core/codec.h"
#include "core/packed_row.h"
#include "core/random.h"

namespace quatrain {

KvCache::KvCache(Ops& ops, const V4Config& config, std::int64_t slots, std::int64_t blocks)
    : ops_(ops), config_(config), slots_(slots), blocks_(blocks) {
  if (ops.cache_dtype() == DType::kU8 && config.rope_dim != kPackedRotary)
    fail("qk_rope_head_dim {}: packed caches keep {} rotary columns", config.rope_dim,
         kPackedRotary);
  for (std::int64_t l = 0; l < config.num_layers; ++l)
    layers_.push_back(make_layer(config.ratio(l)));
  for (std::int64_t m = 0; m < config.num_mtp_layers; ++m) mtp_.push_back(make_layer(0));
}

Tensor KvCache::make(DType dtype, std::initializer_list<std::int64_t> shape) {
  const Tensor view(nullptr, dtype, shape);
  memory_.push_back(ops_.allocate(view.bytes()));
  bytes_ += view.bytes();
  tensors_.emplace_back(memory_.back().data(), dtype, shape);
  ops_.zero(tensors_.back());
  return tensors_.back();
}

LayerCache KvCache::make_layer(std::int64_t ratio) {
  const DType type = ops_.cache_dtype();
  const bool is_packed = type == DType::kU8;
  const std::int64_t width = config_.head_dim;
  const std::int64_t latent = is_packed ? PackedLatent(static_cast<int>(width)).bytes : width;
  const std::int64_t index_width = config_.index_head_dim;
  const std::int64_t index_key =
      is_packed ? PackedIndexKey(static_cast<int>(index_width)).bytes : index_width;
  LayerCache cache;
  cache.ring = make(type, {slots_, config_.sliding_window, latent});
  if (ratio == 0) return cache;
  const bool overlaps = ratio == 4;
  const std::int64_t capacity = overlaps ? 2 * ratio : ratio;
  const auto state = [&](std::int64_t w) {
    const std::int64_t channels = overlaps ? 2 * w : w;
    return CompressorState{.values = make(DType::kF32, {slots_, capacity, channels}),
                           .scores = make(DType::kF32, {slots_, capacity, channels})};
  };
  const std::int64_t rows = blocks_ * (kBlockTokens / ratio);
  cache.entries = {.rows = make(type, {rows, latent}), .ratio = ratio};
  cache.compressor = state(width);
  if (ratio == 4) {
    cache.index_keys = {.rows = make(type, {rows, index_key}), .ratio = ratio};
    cache.index_compressor = state(index_width);
  }
  return cache;
}

std::vector<Tensor> KvCache::border_state(std::int64_t slot) const {
  std::vector<Tensor> state;
  // Windows of ratio r overlap: the next one reads the r tokens before it, the ring's upper half.
  const auto add_last_window = [&](const CompressorState& compressor, std::int64_t ratio) {
    state.push_back(compressor.values[slot].rows(ratio, ratio));
    state.push_back(compressor.scores[slot].rows(ratio, ratio));
  };
  for (const LayerCache& layer : layers_) {
    state.push_back(layer.ring[slot]);
    if (!layer.index_keys.rows) continue;
    add_last_window(layer.compressor, layer.entries.ratio);
    add_last_window(layer.index_compressor, layer.index_keys.ratio);
  }
  for (const LayerCache& mtp : mtp_) state.push_back(mtp.ring[slot]);
  return state;
}

void KvCache::zero_block(std::int64_t block) const {
  QT_CHECK(block >= 0 && block < blocks_, "block {} is outside [0, {})", block, blocks_);
  for (const LayerCache& layer : layers_)
    for (const RowPool* pool : {&layer.entries, &layer.index_keys}) {
      if (!pool->rows) continue;
      const std::int64_t per_block = kBlockTokens / pool->ratio;
      ops_.zero(pool->rows.rows(block * per_block, per_block));
    }
}

void KvCache::poison(Ops& ops) const {
  for (const Tensor& tensor : tensors_) {
    const std::vector<unsigned char> ones(static_cast<std::size_t>(tensor.bytes()), 0xFF);
    ops.upload(tensor, ones.data());
  }
}

namespace {

// Random numbers of deviation 1 in the type of a cache.
std::vector<std::byte> random_values(DType dtype, std::int64_t count, std::uint64_t seed) {
  std::vector<std::byte> out(static_cast<std::size_t>(count * bytes_of(dtype)));
  const auto fill = [&](auto* values, auto make) {
    for (std::int64_t i = 0; i < count; ++i) values[i] = make(random_word(seed, i));
  };
  if (dtype == DType::kF32)
    fill(reinterpret_cast<float*>(out.data()), random_normal);
  else if (dtype == DType::kBF16)
    fill(reinterpret_cast<std::uint16_t*>(out.data()),
         [](std::uint64_t word) { return bf16_encode(random_normal(word)); });
  else if (dtype == DType::kF16)
    fill(reinterpret_cast<std::uint16_t*>(out.data()),
         [](std::uint64_t word) { return f16_encode(random_normal(word)); });
  else
    fail("a cache of {} cannot be filled with random numbers", name_of(dtype));
  return out;
}

// `count` packed rows of `columns` such numbers each; `pack` is pack_latent or pack_index_key.
std::vector<std::byte> random_rows(std::int64_t count, std::int64_t row_bytes, int columns,
                                   void (*pack)(const float*, int, std::uint8_t*),
                                   std::uint64_t seed) {
  std::vector<std::byte> out(static_cast<std::size_t>(count * row_bytes));
  std::vector<float> row(static_cast<std::size_t>(columns));
  for (std::int64_t r = 0; r < count; ++r) {
    for (int i = 0; i < columns; ++i)
      row[static_cast<std::size_t>(i)] = random_normal(random_word(seed, r * columns + i));
    pack(row.data(), columns, reinterpret_cast<std::uint8_t*>(out.data() + r * row_bytes));
  }
  return out;
}

}  // namespace

void KvCache::randomise(Ops& ops, std::uint64_t seed) const {
  // One list of numbers per kind of row, read from a place that moves: no two rows need be alike.
  struct List {
    std::vector<std::byte> bytes;
    std::int64_t unit = 1;  // bytes that stay together
  };
  constexpr std::int64_t kElements = (std::int64_t{1} << 20) + 311;
  const auto make_list = [&](DType dtype, std::int64_t width) -> List {
    if (dtype != DType::kU8)
      return {.bytes = random_values(dtype, kElements, seed), .unit = bytes_of(dtype)};
    const auto latent = static_cast<int>(config_.head_dim);
    const auto key = static_cast<int>(config_.index_head_dim);
    const bool is_latent = width == PackedLatent(latent).bytes;
    return {.bytes = random_rows(kElements / width, width, is_latent ? latent : key,
                                 is_latent ? pack_latent : pack_index_key, seed),
            .unit = width};
  };
  std::map<std::pair<DType, std::int64_t>, List> lists;
  std::int64_t piece = 0;
  for (const Tensor& tensor : tensors_) {
    const std::int64_t width = tensor.dtype() == DType::kU8 ? tensor.dim(tensor.rank() - 1) : 1;
    List& list = lists[{tensor.dtype(), width}];
    if (list.bytes.empty()) list = make_list(tensor.dtype(), width);
    const std::int64_t units = std::ssize(list.bytes) / list.unit;
    const std::int64_t per_unit = list.unit / bytes_of(tensor.dtype());  // elements
    const Tensor flat = tensor.reshaped({tensor.elements()});
    for (std::int64_t at = 0; at < flat.dim(0);) {
      const auto begin = static_cast<std::int64_t>(random_word(~seed, piece++) %
                                                   static_cast<std::uint64_t>(units / 2));
      const std::int64_t n = std::min(flat.dim(0) - at, (units - begin) * per_unit);
      ops.upload(flat.rows(at, n), list.bytes.data() + begin * list.unit);
      at += n;
    }
  }
}

}  // namespace quatrain
