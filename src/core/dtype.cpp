// SPDX-License-Identifier: Apache-2.0
#include "core/dtype.h"

#include <array>

namespace quatrain {
namespace {

struct Row {
  DType dtype;
  int bits;
  std::string_view name;
};

constexpr std::array<Row, 11> kTable = {{
    {DType::kF32, 32, "F32"},
    {DType::kF16, 16, "F16"},
    {DType::kBF16, 16, "BF16"},
    {DType::kF8E4M3, 8, "F8_E4M3"},
    {DType::kF8E8M0, 8, "F8_E8M0"},
    {DType::kU8, 8, "U8"},
    {DType::kI8, 8, "I8"},
    {DType::kI16, 16, "I16"},
    {DType::kI32, 32, "I32"},
    {DType::kI64, 64, "I64"},
    {DType::kBool, 8, "BOOL"},
}};

}  // namespace

int bits_of(DType dtype) { return kTable[static_cast<std::size_t>(dtype)].bits; }

std::string_view name_of(DType dtype) { return kTable[static_cast<std::size_t>(dtype)].name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const Row& row : kTable)
    if (row.name == name) return row.dtype;
  return std::nullopt;
}

}  // namespace quatrain
