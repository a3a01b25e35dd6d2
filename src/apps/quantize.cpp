// SPDX-License-Identifier: Apache-2.0
// quatrain quantize: converts a checkpoint to NVFP4 experts and, if asked, FP8 or NVFP4 linears.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "apps/commands.h"
#include "checkpoint/convert.h"
#include "core/log.h"
#include "core/progress.h"

namespace quatrain::apps {
namespace {

struct QuantizeFlags {
  std::string source;
  std::string target;
  ConvertOptions options;
};

void print_error(std::string_view what, const SquaredError& error) {
  if (error.reference > 0.0)
    fmt::print("{:<18}relative L2 error {:.4f} %\n", what, 100.0 * error.relative());
}

void quantize(const QuantizeFlags& flags) {
  std::optional<ProgressBar> bar;
  const auto progress = [&](std::string_view name, std::int64_t bytes, std::int64_t total) {
    if (!bar) bar.emplace("quantizing", total);
    bar->advance(bytes);
    log_debug("{}", name);
  };
  const ConvertReport report =
      convert_checkpoint(flags.source, flags.target, flags.options, progress);
  if (bar) bar->finish();
  const double before = static_cast<double>(report.bytes_before);
  const double after = static_cast<double>(report.bytes_after);
  fmt::print("{:<18}{} converted, {} tensors copied, {} file(s)\n", "linears",
             report.converted_linears, report.copied_tensors, report.shards);
  fmt::print("{:<18}{:.2f} MB → {:.2f} MB ({:.1f} %)\n", "size", before / 1e6, after / 1e6,
             before > 0 ? 100.0 * after / before : 0.0);
  print_error("routed experts", report.experts_error);
  print_error("other linears", report.linears_error);
  if (report.cast_blocks > 0)
    fmt::print("{:<18}{} of {} MXFP4 blocks exact\n", "cast",
               report.cast_blocks - report.inexact_blocks, report.cast_blocks);
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* verb = app.add_subcommand("quantize", "Convert a checkpoint's weights to NVFP4");
  verb->add_option("source", flags->source, "Model folder to read")->required();
  verb->add_option("target", flags->target, "Folder to write; made if it does not exist")
      ->required();
  const std::map<std::string, ConvertTarget> experts = {{"nvfp4", ConvertTarget::kNvfp4},
                                                        {"keep", ConvertTarget::kKeep}};
  std::map<std::string, ConvertTarget> linears = experts;
  linears["fp8"] = ConvertTarget::kFp8;
  verb->add_option("--experts", flags->options.experts, "Routed experts: nvfp4 (default) or keep")
      ->transform(CLI::Transformer(experts).description(""));
  verb->add_option("--linears", flags->options.linears,
                   "Attention and shared experts: keep (default), fp8 (128x128 blocks) or nvfp4")
      ->transform(CLI::Transformer(linears).description(""));
  verb->add_flag_callback(
      "--all-linears", [flags] { flags->options.linears = ConvertTarget::kNvfp4; },
      "The same as --linears nvfp4");
  verb->add_flag("--cast-mxfp4", flags->options.cast_mxfp4,
                 "Convert MXFP4 weights without changing their values where that is possible");
  verb->add_option("--max-shard-size", flags->options.max_shard_bytes, "Largest file, such as 5GB")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::PositiveNumber);
  verb->callback([flags] { quantize(*flags); });
}

}  // namespace quatrain::apps
