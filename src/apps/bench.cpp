// SPDX-License-Identifier: Apache-2.0
// quatrain bench: how fast a model, one operation or a server is.
#include "apps/bench.h"

#include <CLI/CLI.hpp>

#include "apps/commands.h"

namespace quatrain::apps {

void add_bench(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "bench", "Measure speed: e2e for a model, ops for operations, serve for a server");
  verb->require_subcommand(1);
  add_bench_e2e(*verb);
  add_bench_ops(*verb);
  add_bench_serve(*verb);
}

}  // namespace quatrain::apps
