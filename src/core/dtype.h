// SPDX-License-Identifier: Apache-2.0
// Element types that tensors and checkpoint files hold.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace quatrain {

enum class DType : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8E4M3,  ///< FN variant: no infinity, 0x7F and 0xFF are NaN, largest value 448
  kF8E8M0,  ///< unsigned power of two, 2^(b-127); 255 is NaN
  kU8,
  kI8,
  kI16,
  kI32,
  kI64,
  kBool,
};

/// Bits that one element takes in memory and on disk.
int bits_of(DType dtype);

/// Bytes that one element takes.
inline std::int64_t bytes_of(DType dtype) { return bits_of(dtype) / 8; }

/// The safetensors spelling: "F32", "BF16", "F8_E4M3", "F8_E8M0", "U8", …
std::string_view name_of(DType dtype);

/// Inverse of name_of; nothing when the spelling is unknown.
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace quatrain
