// SPDX-License-Identifier: Apache-2.0
// quatrain bench ops: every operation at the shapes of published models, beside what the device can
// do at best.
#include <CLI/CLI.hpp>
#include <memory>

#include "apps/backend.h"
#include "apps/bench.h"
#include "apps/model_flags.h"
#include "apps/number_list.h"
#include "apps/op_cases.h"
#include "core/file.h"
#include "model/synthetic.h"

namespace quatrain::apps {
namespace {

struct OpsFlags {
  std::string backend = "auto";
  std::string kv_cache_dtype = "auto";
  std::string expert_activations = "auto", linear_activations = "auto";
  CpuFlags cpu;
  std::vector<std::string> models = {"flash"};
  std::string rows = "1,16,512";
  std::string contexts = "1024,32768";
  std::string filter;
  std::string format = "md";
  std::string save;
  int repetitions = 21;
};

void bench_ops(const OpsFlags& flags) {
  OpCaseOptions options{.filter = flags.filter,
                        .rows = parse_numbers(flags.rows, "--rows", 1, 1 << 16),
                        .contexts = parse_numbers(flags.contexts, "--context", 1, 1 << 20)};
  Backend backend = make_backend(flags.backend, flags.cpu, flags.kv_cache_dtype);
  options.activations = parse_activations(flags.expert_activations, backend.ops->backend_name());
  options.linear_activations =
      parse_linear_activations(flags.linear_activations, backend.ops->backend_name());
  options.cycle_bytes = backend.cycle_bytes;
  OpsReport report;
  report.subject = {.version = QUATRAIN_VERSION,
                    .model = "",
                    .backend = std::string(backend.ops->backend_name()),
                    .device = backend.device};
  report.limits = backend.measure_limits();
  fmt::print(stderr, "{}: {}\n", backend.description, describe(report.limits));
  for (const std::string& model : flags.models) {
    measure_operations(*backend.ops, synthetic_model(model, 3), model, options, flags.repetitions,
                       [&](OpResult result) {
                         fmt::print(stderr, "{} {}, {} rows, context {}: {:.2f} µs\n", model,
                                    result.operation, result.rows, result.context,
                                    result.microseconds);
                         report.results.push_back(std::move(result));
                       });
    for (const std::string& choice : backend.ops->kernel_choices())
      fmt::print(stderr, "{} kernels: {}\n", model, choice);
  }
  if (!flags.save.empty()) write_text_file(flags.save, format_report(report, "json"));
  fmt::print("{}", format_report(report, flags.format));
}

}  // namespace

void add_bench_ops(CLI::App& bench) {
  auto flags = std::make_shared<OpsFlags>();
  CLI::App* verb =
      bench.add_subcommand("ops", "Time of each operation at the shapes of published models");
  verb->footer(
      "Weights, caches and routings take turns until 256 MB were read (on a CPU four times its "
      "last "
      "cache),\n"
      "so that no cache helps; data are random. Up to 64 rows are one of each sequence, more are "
      "one\n"
      "sequence's prompt. The limit is the larger of bytes over the read bandwidth and products "
      "over "
      "the peak\n"
      "of the unit that they are for, all measured in the same run.");
  verb->add_option("--backend", flags->backend, "cpu, cuda, or auto")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  add_cpu_flags(*verb, flags->cpu);
  verb->add_option("--kv-cache-dtype", flags->kv_cache_dtype, "Type of the caches, as for run")
      ->capture_default_str();
  verb->add_option("--expert-activations", flags->expert_activations,
                   "Inputs of the routed experts, as for run")
      ->capture_default_str();
  verb->add_option("--linear-activations", flags->linear_activations,
                   "Inputs of linears with FP8 weights, as for run")
      ->check(CLI::IsMember({"auto", "fp32", "fp16", "fp8"}))
      ->capture_default_str();
  verb->add_option("--models", flags->models, "Shapes: flash, pro, storyteller")
      ->delimiter(',')
      ->check(CLI::IsMember({"flash", "pro", "storyteller"}))
      ->capture_default_str();
  verb->add_option("--rows", flags->rows, "Rows of a step; a list")->capture_default_str();
  verb->add_option("--context", flags->contexts, "Tokens of a sequence; a list")
      ->capture_default_str();
  verb->add_option("--filter", flags->filter, "Only operations whose name contains this");
  verb->add_option("-r,--repetitions", flags->repetitions, "Passes; the median counts")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  verb->add_option("-o,--output", flags->format, "md, csv or json")
      ->check(CLI::IsMember({"md", "csv", "json"}))
      ->capture_default_str();
  verb->add_option("--save", flags->save, "Also write the results to this file, as JSON");
  verb->callback([flags] { bench_ops(*flags); });
}

}  // namespace quatrain::apps
