// SPDX-License-Identifier: Apache-2.0
// The read-bandwidth probe of linear_bench.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace quatrain::bench {

/// Reads `bytes` bytes once; `out` has room for 4.
void read_all(const void* from, std::int64_t bytes, void* out, CUstream_st* stream);

}  // namespace quatrain::bench
