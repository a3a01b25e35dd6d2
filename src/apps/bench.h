// SPDX-License-Identifier: Apache-2.0
// The two benchmarks, as subcommands of `quatrain bench`.
#pragma once

namespace CLI {
class App;
}

namespace quatrain::apps {

void add_bench_e2e(CLI::App& bench);
void add_bench_ops(CLI::App& bench);
void add_bench_serve(CLI::App& bench);

}  // namespace quatrain::apps
