// SPDX-License-Identifier: Apache-2.0
// From the kinds of a launch to template arguments.
#pragma once

#include <span>

#include "backends/cuda/launch/linear.h"

namespace quatrain::cuda {

/// Calls f<kind>().
template <class F>
void with_kind(LinearKind kind, const F& f) {
  switch (kind) {
    case LinearKind::kFp8:
      return f.template operator()<LinearKind::kFp8>();
    case LinearKind::kFp8Rounded:
      return f.template operator()<LinearKind::kFp8Rounded>();
    case LinearKind::kBf16:
      return f.template operator()<LinearKind::kBf16>();
    case LinearKind::kNvfp4:
      return f.template operator()<LinearKind::kNvfp4>();
    case LinearKind::kMxfp4:
      return f.template operator()<LinearKind::kMxfp4>();
  }
}

/// Calls f<kinds…>() with the smallest set that has the kinds of all `parts`, of the sets that
/// kernels are made for. In a step the code of a launch comes from far away: a kernel that has more
/// of it than the launches of a model need takes longer to start, and one that fewer of them share
/// has more often left the caches.
template <class Part, class F>
void with_kinds(std::span<const Part> parts, const F& f) {
  using enum LinearKind;
  const auto all_are = [&](LinearKind a, LinearKind b) {
    for (const Part& part : parts)
      if (part.kind != a && part.kind != b) return false;
    return true;
  };
  if (all_are(kBf16, kFp8Rounded)) return f.template operator()<kBf16, kFp8Rounded>();
  if (all_are(kBf16, kFp8)) return f.template operator()<kBf16, kFp8>();
  f.template operator()<kBf16, kFp8, kFp8Rounded, kNvfp4, kMxfp4>();
}

}  // namespace quatrain::cuda
