// SPDX-License-Identifier: Apache-2.0
#include "ops/compare_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "core/codec.h"
#include "core/packed_row.h"

namespace quatrain {

std::vector<float> floats_of(const std::vector<std::byte>& bytes, const Tensor& t) {
  std::vector<float> out(static_cast<std::size_t>(t.elements()));
  if (t.dtype() == DType::kF32) {
    std::memcpy(out.data(), bytes.data(), bytes.size());
  } else if (t.dtype() == DType::kBF16) {
    const auto* in = reinterpret_cast<const std::uint16_t*>(bytes.data());
    std::transform(in, in + out.size(), out.begin(), bf16_decode);
  } else if (t.dtype() == DType::kF16) {
    const auto* in = reinterpret_cast<const std::uint16_t*>(bytes.data());
    std::transform(in, in + out.size(), out.begin(), f16_decode);
  } else {
    fail("{} has a layout of its own and cannot be compared with another backend's", t.describe());
  }
  return out;
}

std::vector<float> unpacked(const std::vector<std::byte>& bytes, const Tensor& t,
                            std::int64_t columns) {
  const int n = static_cast<int>(columns);
  const bool is_latent = n > kPackedRotary && row_width(t) == PackedLatent(n).bytes;
  QT_CHECK(is_latent || row_width(t) == PackedIndexKey(n).bytes, "packed rows of {} columns: {}",
           columns, t.describe());
  const std::int64_t rows = t.elements() / row_width(t);
  std::vector<float> out(static_cast<std::size_t>(rows * columns));
  const auto* in = reinterpret_cast<const std::uint8_t*>(bytes.data());
  for (std::int64_t r = 0; r < rows; ++r)
    (is_latent ? unpack_latent : unpack_index_key)(in + r * row_width(t), n,
                                                   out.data() + r * columns);
  return out;
}

std::vector<std::int32_t> ints_of(const std::vector<std::byte>& bytes) {
  std::vector<std::int32_t> out(bytes.size() / sizeof(std::int32_t));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

void Distance::add(const float* subject, const float* reference, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    finite_ = finite_ && std::isfinite(subject[i]) && std::isfinite(reference[i]);
    const double d = double{subject[i]} - double{reference[i]};
    error_ += d * d;
    norm_ += double{reference[i]} * double{reference[i]};
  }
}

double Distance::value() const {
  if (!finite_ || (norm_ == 0 && error_ > 0)) return std::numeric_limits<double>::infinity();
  return norm_ == 0 ? 0.0 : std::sqrt(error_ / norm_);
}

double ids_difference(std::vector<std::int32_t> subject, std::vector<std::int32_t> reference,
                      std::int64_t width) {
  std::int64_t wrong = 0, all = 0;
  for (std::size_t begin = 0; begin < subject.size(); begin += static_cast<std::size_t>(width)) {
    const auto row = [&](std::vector<std::int32_t>& ids) {
      const auto first = ids.begin() + static_cast<std::ptrdiff_t>(begin);
      std::sort(first, first + width);
      return std::span(first, static_cast<std::size_t>(width));
    };
    const auto s = row(subject), r = row(reference);
    all += width;
    for (const std::int32_t id : s) wrong += !std::binary_search(r.begin(), r.end(), id);
  }
  return all == 0 ? 0.0 : static_cast<double>(wrong) / static_cast<double>(all);
}

double choice_difference(IdRows subject, IdRows certain, IdRows likely) {
  const auto row = [](IdRows& rows, std::int64_t i) {
    const auto first = rows.ids.begin() + i * rows.width;
    std::sort(first, first + rows.width);
    return std::span(first, static_cast<std::size_t>(rows.width));
  };
  const auto missing = [](std::span<const std::int32_t> ids, std::span<const std::int32_t> from) {
    return std::count_if(ids.begin(), ids.end(), [&](std::int32_t id) {
      return !std::binary_search(from.begin(), from.end(), id);
    });
  };
  std::int64_t wrong = 0;
  const std::int64_t all = std::ssize(subject.ids);
  for (std::int64_t i = 0; i < all / std::max<std::int64_t>(1, subject.width); ++i) {
    const auto s = row(subject, i);
    wrong += std::max(missing(s, row(likely, i)), missing(row(certain, i), s));
  }
  return all == 0 ? 0.0 : static_cast<double>(wrong) / static_cast<double>(all);
}

}  // namespace quatrain
