// SPDX-License-Identifier: Apache-2.0
// quatrain bench: how fast a model, or one operation, runs.
#include "apps/bench.h"

#include <CLI/CLI.hpp>

#include "apps/commands.h"

namespace quatrain::apps {

void add_bench(CLI::App& app) {
  CLI::App* verb =
      app.add_subcommand("bench", "Measure speed: e2e for a model, ops for operations");
  verb->require_subcommand(1);
  add_bench_e2e(*verb);
  add_bench_ops(*verb);
}

}  // namespace quatrain::apps
