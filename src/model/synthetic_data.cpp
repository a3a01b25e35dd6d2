// SPDX-License-Identifier: Apache-2.0
#include "model/synthetic_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "core/codec.h"
#include "core/error.h"
#include "core/json.h"
#include "core/quant_matrix.h"
#include "core/random.h"
#include "model/weight_table.h"

namespace quatrain {
namespace {

// ---- pools: what large tensors are cut from ----

// A large tensor is the pool read round and round from a place of its own. The lengths are no
// multiples of any row, so that rows differ, and large enough to defeat caches' tricks.
constexpr std::int64_t kPoolElements = (std::int64_t{1} << 22) + 1237;

constexpr float kE4M3Deviation = 64.0f;
constexpr float kE2M1Deviation = 2.0f;

struct Pools {
  std::vector<std::byte> fp4;         // pairs of E2M1 codes of deviation kE2M1Deviation
  std::vector<std::byte> fp4_scales;  // E4M3 in [32, 448]
  std::vector<std::byte> fp8;         // E4M3 values of deviation kE4M3Deviation
  std::vector<std::uint16_t> bf16;    // deviation 1, none smaller than 2^-8
  float fp4_rms = 0;                  // of a code times its scale
};

Pools make_pools() {
  Pools pools;
  const auto n = static_cast<std::size_t>(kPoolElements);
  pools.fp4.resize(n);
  pools.fp4_scales.resize(n);
  pools.fp8.resize(n);
  pools.bf16.resize(n);
  double codes = 0, scales = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto at = static_cast<std::int64_t>(i);
    const unsigned low = e2m1_encode(kE2M1Deviation * random_normal(random_word(1, at)));
    const unsigned high = e2m1_encode(kE2M1Deviation * random_normal(random_word(2, at)));
    const std::uint64_t word = random_word(3, at);
    const auto scale = static_cast<std::uint8_t>(0x60 + word % 31);  // up to 0x7E, which is 448
    const float x = random_normal(random_word(4, at));
    pools.fp4[i] = std::byte{e2m1_pack(low, high)};
    pools.fp4_scales[i] = std::byte{scale};
    pools.fp8[i] = std::byte{e4m3_encode(kE4M3Deviation * x)};
    pools.bf16[i] = bf16_encode(std::copysign(std::max(std::abs(x), 0x1p-8f), x));
    codes += e2m1_decode(low) * e2m1_decode(low);
    scales += e4m3_decode(scale) * e4m3_decode(scale);
  }
  pools.fp4_rms = static_cast<float>(std::sqrt(codes * scales) / static_cast<double>(n));
  return pools;
}

// ---- one tensor ----

enum class Fill : std::uint8_t {
  kFp4,
  kFp4Scales,
  kFp8,
  kBf16,       // the pool times 2^-shift
  kExponents,  // UE8M0, `shift` or one less
  kConstant,   // F32 `mean`
  kNormalF32,
  kNormalBf16,
  kExperts,  // I64 ids of hash routing, `row` different ones below `count`
};

struct Part {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  Fill fill = Fill::kConstant;
  float mean = 0, deviation = 0;
  int shift = 0;
  std::int64_t row = 0, count = 0;
  std::uint64_t key = 0;
  std::int64_t begin = 0, bytes = 0;
};

template <class T>
void copy_pool(const std::vector<T>& pool, std::uint64_t key, std::int64_t offset,
               std::span<std::byte> out) {
  const auto size = static_cast<std::int64_t>(pool.size() * sizeof(T));
  const auto first = static_cast<std::int64_t>(key % pool.size() * sizeof(T));
  std::int64_t at = (first + offset) % size;
  while (!out.empty()) {
    const std::size_t n = std::min(out.size(), static_cast<std::size_t>(size - at));
    std::memcpy(out.data(), reinterpret_cast<const std::byte*>(pool.data()) + at, n);
    out = out.subspan(n);
    at = 0;
  }
}

// Bytes [offset, offset + |out|) of an array of T whose element i is value(i).
template <class T, class F>
void fill_elements(std::int64_t offset, std::span<std::byte> out, F value) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
  std::int64_t at = offset;
  const std::int64_t end = offset + static_cast<std::int64_t>(out.size());
  while (at < end) {
    const std::int64_t i = at / kSize, skip = at % kSize;
    const std::int64_t n = std::min(kSize - skip, end - at);
    const T element = value(i);
    std::memcpy(out.data() + (at - offset), reinterpret_cast<const std::byte*>(&element) + skip,
                static_cast<std::size_t>(n));
    at += n;
  }
}

void fill_bf16(const Pools& pools, const Part& part, std::int64_t offset,
               std::span<std::byte> out) {
  if (part.shift == 0) return copy_pool(pools.bf16, part.key, offset, out);
  const std::int64_t first = static_cast<std::int64_t>(part.key % pools.bf16.size());
  // No element is below 2^-8, so that the exponent has room.
  const auto less = static_cast<std::uint16_t>(part.shift << 7);
  std::int64_t at = (first + offset / 2) % kPoolElements;
  fill_elements<std::uint16_t>(offset, out, [&](std::int64_t) {
    const auto value = static_cast<std::uint16_t>(pools.bf16[static_cast<std::size_t>(at)] - less);
    if (++at == kPoolElements) at = 0;
    return value;
  });
}

void fill_part(const Pools& pools, const Part& part, std::int64_t offset,
               std::span<std::byte> out) {
  const auto normal = [&](std::int64_t i) {
    return part.mean + part.deviation * random_normal(random_word(part.key, i));
  };
  switch (part.fill) {
    case Fill::kFp4:
      return copy_pool(pools.fp4, part.key, offset, out);
    case Fill::kFp4Scales:
      return copy_pool(pools.fp4_scales, part.key, offset, out);
    case Fill::kFp8:
      return copy_pool(pools.fp8, part.key, offset, out);
    case Fill::kBf16:
      return fill_bf16(pools, part, offset, out);
    case Fill::kExponents:
      return fill_elements<std::uint8_t>(offset, out, [&](std::int64_t i) {
        return static_cast<std::uint8_t>(part.shift -
                                         static_cast<int>(random_word(part.key, i) & 1));
      });
    case Fill::kConstant:
      return fill_elements<float>(offset, out, [&](std::int64_t) { return part.mean; });
    case Fill::kNormalF32:
      return fill_elements<float>(offset, out, normal);
    case Fill::kNormalBf16:
      return fill_elements<std::uint16_t>(offset, out,
                                          [&](std::int64_t i) { return bf16_encode(normal(i)); });
    case Fill::kExperts:
      return fill_elements<std::int64_t>(offset, out, [&](std::int64_t i) {
        // First id and step of the token's row; k steps stay below `count`, so none repeats.
        const std::uint64_t word = random_word(part.key, i / part.row);
        const auto count = static_cast<std::uint64_t>(part.count);
        const auto most = static_cast<std::uint64_t>((part.count - 1) / part.row);
        const std::uint64_t step = most == 0 ? 1 : 1 + (word >> 32) % most;
        return static_cast<std::int64_t>(
            (word % count + static_cast<std::uint64_t>(i % part.row) * step) % count);
      });
  }
}

// ---- the file ----

class Content {
 public:
  explicit Content(const V4Config& config)
      : num_experts_(config.num_experts), pools_(make_pools()) {
    for_each_weight(config, false, [&](const WeightEntry& entry) { add(entry); });
    finish();
  }

  std::int64_t size() const { return size_; }

  void read(std::int64_t offset, std::span<std::byte> out) const {
    const auto header = static_cast<std::int64_t>(header_.size());
    if (offset < header) {
      const std::size_t n = std::min(out.size(), static_cast<std::size_t>(header - offset));
      std::memcpy(out.data(), header_.data() + offset, n);
      out = out.subspan(n);
      offset += static_cast<std::int64_t>(n);
    }
    auto part = std::ranges::upper_bound(parts_, offset, {}, &Part::begin);
    for (--part; !out.empty(); ++part) {
      const std::int64_t inside = offset - part->begin;
      const std::size_t n = std::min(out.size(), static_cast<std::size_t>(part->bytes - inside));
      fill_part(pools_, *part, inside, out.first(n));
      out = out.subspan(n);
      offset += static_cast<std::int64_t>(n);
    }
  }

 private:
  void put(Part part) {
    part.key = random_key(part.name);
    part.bytes = bytes_of(part.dtype);
    for (const std::int64_t extent : part.shape) part.bytes *= extent;
    parts_.push_back(std::move(part));
  }

  // y = W x keeps the size of x: deviation of a weight 1/√columns.
  void linear(const WeightEntry& entry) {
    const std::int64_t rows = entry.shape[0], cols = entry.shape[1];
    const float wanted = 1.0f / std::sqrt(static_cast<float>(cols));
    const std::string weight = entry.name + ".weight";
    switch (entry.kind) {
      case WeightKind::kExpert: {
        // Experts differ in their global scale by up to a fifth, as calibrated ones do; w1 and w3
        // of one share it, because gate and up read the same rounded input.
        const std::string expert = entry.name.substr(0, entry.name.rfind('.'));
        const bool down = entry.name.ends_with("w2");
        const std::uint64_t word = mix_bits(random_key(expert) + (down ? 1 : 0));
        const float spread = 1.0f + 0.06f * random_normal(word);
        put({.name = weight, .dtype = DType::kU8, .shape = {rows, cols / 2}, .fill = Fill::kFp4});
        put({.name = entry.name + ".weight_scale",
             .dtype = DType::kF8E4M3,
             .shape = {rows, cols / kNvfp4Block},
             .fill = Fill::kFp4Scales});
        put({.name = entry.name + ".weight_scale_2",
             .shape = {},
             .mean = spread * wanted / pools_.fp4_rms});
        // Largest inputs of about 5: amax / (6·448).
        put({.name = entry.name + ".input_scale",
             .shape = {},
             .mean = spread * 5.0f / (6.0f * 448.0f)});
        return;
      }
      case WeightKind::kProjection: {
        const int exponent = std::ilogb(wanted / kE4M3Deviation) + 1;
        put({.name = weight, .dtype = DType::kF8E4M3, .shape = {rows, cols}, .fill = Fill::kFp8});
        put({.name = entry.name + ".scale",
             .dtype = DType::kF8E8M0,
             .shape = {(rows + kFp8Block - 1) / kFp8Block, (cols + kFp8Block - 1) / kFp8Block},
             .fill = Fill::kExponents,
             .shift = 127 + exponent});
        return;
      }
      default: {
        const bool embedding = entry.kind == WeightKind::kEmbedding;
        put({.name = weight,
             .dtype = DType::kBF16,
             .shape = {rows, cols},
             .fill = Fill::kBf16,
             .shift = embedding ? 0 : -std::ilogb(wanted)});
        return;
      }
    }
  }

  void add(const WeightEntry& entry) {
    if (entry.is_linear()) return linear(entry);
    Part part{.name = entry.name, .shape = entry.shape, .fill = Fill::kNormalF32};
    switch (entry.kind) {
      case WeightKind::kNorm:
        part.dtype = DType::kBF16;
        part.fill = Fill::kNormalBf16;
        part.mean = 1.0f;
        part.deviation = 0.1f;
        break;
      case WeightKind::kMix:
        part.deviation = 1.0f / std::sqrt(static_cast<float>(entry.shape[1]));
        break;
      case WeightKind::kMixScale:
        part.mean = 0.7f;
        part.deviation = 0.05f;
        break;
      case WeightKind::kHashTable:
        part.dtype = DType::kI64;
        part.fill = Fill::kExperts;
        part.row = entry.shape[1];
        part.count = num_experts_;
        break;
      default:
        part.deviation = 0.2f;
        break;
    }
    put(std::move(part));
  }

  // Places the parts and writes the header that a safetensors file begins with.
  void finish() {
    std::string json = "{";
    std::int64_t offset = 0;
    for (Part& part : parts_) {
      json += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          json.size() > 1 ? "," : "", json_quote(part.name), name_of(part.dtype),
                          fmt::join(part.shape, ","), offset, offset + part.bytes);
      part.begin = offset;
      offset += part.bytes;
    }
    json += "}";
    json.resize((json.size() + 7) / 8 * 8, ' ');  // data begins on a multiple of 8
    const std::uint64_t length = json.size();
    static_assert(std::endian::native == std::endian::little);
    header_.assign(reinterpret_cast<const char*>(&length), sizeof(length));
    header_ += json;
    const auto header = static_cast<std::int64_t>(header_.size());
    for (Part& part : parts_) part.begin += header;
    size_ = header + offset;
  }

  std::int64_t num_experts_;
  Pools pools_;
  std::vector<Part> parts_;
  std::string header_;
  std::int64_t size_ = 0;
};

}  // namespace

File synthetic_file(const V4Config& config, const std::string& name) {
  const auto content = std::make_shared<const Content>(config);
  return File::computed(
      name, content->size(),
      [content](std::int64_t offset, std::span<std::byte> out) { content->read(offset, out); });
}

}  // namespace quatrain
