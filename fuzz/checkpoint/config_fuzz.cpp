// SPDX-License-Identifier: Apache-2.0
// Fuzzes config.json: whatever is accepted must be safe to size buffers and divide by.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const quatrain::V4Config c = quatrain::parse_config(text, "config.json");
    const bool sound =
        c.num_layers >= 1 && c.num_layers <= 1024 && c.num_hash_layers <= c.num_layers &&
        c.compress_ratios.size() == static_cast<std::size_t>(c.num_layers + c.num_mtp_layers) &&
        c.num_heads % c.o_groups == 0 && c.rope_dim % 2 == 0 && c.rope_dim <= c.head_dim &&
        c.experts_per_token <= c.num_experts && !c.eos_token_ids.empty() && c.hidden_size > 0;
    if (!sound) std::abort();
    for (const std::int64_t ratio : c.compress_ratios)
      if (ratio != 0 && ratio != 4 && ratio != 128) std::abort();
  } catch (const quatrain::Error&) {
  }
  return 0;
}
