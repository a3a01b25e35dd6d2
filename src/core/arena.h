// SPDX-License-Identifier: Apache-2.0
// Arena: a bump allocator for the scratch of one step.
//
// One arena serves every layer. It is sized at start by running the step once against an arena that
// only measures; afterwards growing past the measured size is a program fault.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "core/tensor.h"

namespace quatrain {

class Arena {
 public:
  static constexpr std::int64_t kAlignment = 256;

  /// An arena that hands out no usable memory and only records how much a step takes.
  static Arena measuring() { return Arena(); }

  /// An arena over `capacity` bytes at `base` (host or device memory that the caller owns).
  Arena(void* base, std::int64_t capacity);

  /// A contiguous uninitialised tensor. Throws when the arena is full.
  Tensor make(DType dtype, std::initializer_list<std::int64_t> shape);

  std::int64_t used() const { return used_; }
  std::int64_t high_water() const { return high_water_; }
  std::int64_t capacity() const { return capacity_; }
  bool is_measuring() const { return base_ == nullptr; }

  /// Frees, at the end of a scope, everything made inside it.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    std::int64_t mark_;
  };

 private:
  Arena() = default;

  char* base_ = nullptr;
  std::int64_t capacity_ = 0;
  std::int64_t used_ = 0;
  std::int64_t high_water_ = 0;
};

}  // namespace quatrain
