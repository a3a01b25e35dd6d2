// SPDX-License-Identifier: Apache-2.0
// quatrain verify: is a checkpoint whole, and does a backend compute what the CPU computes?
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>

#include "apps/commands.h"
#include "apps/compare_report.h"
#include "apps/model_flags.h"
#include "apps/number_list.h"
#include "core/progress.h"
#include "core/random.h"
#include "model/checkpoint_check.h"

namespace quatrain::apps {
namespace {

struct VerifyFlags {
  ModelFlags model;
  std::string against;
  std::string contexts = "1024";
  std::int64_t rows = 16;
  double tolerance = 1e-2;
  bool full = false;
};

void verify_files(const VerifyFlags& flags) {
  const ModelSource source = flags.model.open();
  std::unique_ptr<ProgressBar> bar;
  CheckpointCheck check;
  if (flags.full) {
    std::int64_t total = 0;
    for (const TensorInfo& tensor : source.checkpoint.tensors()) total += tensor.bytes;
    bar = std::make_unique<ProgressBar>("reading", total);
    check = check_checkpoint_data(source, [&](std::int64_t bytes) { bar->advance(bytes); });
    bar->finish();
  } else {
    check = check_checkpoint_headers(source);
  }
  fmt::print("{}: {} tensors in {} files are {}\n", source.name, check.tensors, check.files,
             flags.full ? "there, well-formed and free of bad values"
                        : "there and well-formed; --full reads them too");
  fmt::print("experts: {} linears, {} pairs of w1 and w3 with scales of their own\n",
             check.expert_linears, check.unequal_pairs);
}

// Rows [context − rows − 1, context − 1) as one step, then the last position as another.
void run_steps(ModelRunner& runner, std::int64_t context, std::int64_t rows) {
  const auto vocab = static_cast<std::uint64_t>(runner.config().vocab_size);
  const std::int64_t before = std::min(rows, context - 1);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i <= before; ++i)
    tokens.push_back(static_cast<std::int32_t>(random_word(7, context + i) % vocab));
  const auto last = static_cast<std::size_t>(before);
  const SequenceChunk steps[] = {
      {.position = context - 1 - before, .tokens = std::span(tokens).first(last)},
      {.position = context - 1, .tokens = std::span(tokens).subspan(last)}};
  for (const SequenceChunk& step : steps)
    if (!step.tokens.empty()) runner.step({&step, 1});
}

void verify_against(VerifyFlags& flags) {
  const auto contexts = parse_numbers(flags.contexts, "--context", 1, 1 << 20);
  EngineOptions& options = flags.model.options;
  options.max_model_len = std::max(options.max_model_len, *std::ranges::max_element(contexts));
  options.max_num_batched_tokens = flags.rows;
  // The plain kernels are the definition of every operation.
  const CpuFlags reference_cpu{.threads = flags.model.cpu.threads, .isa = "plain"};
  const Backend reference = make_backend(flags.against, reference_cpu, "auto");
  CompareOps* compare = nullptr;
  LoadedEngine engine(flags.model, [&](Ops& subject) {
    auto made = std::make_unique<CompareOps>(subject, *reference.ops);
    compare = made.get();
    return made;
  });
  fmt::print("{}: {} against {}, each operation on the same inputs, relative distances\n",
             engine.name(), engine.backend().description, reference.description);
  std::vector<OpDifference> above;
  for (const std::int64_t context : contexts) {
    // Random caches stand for the tokens that did not run: both sides read the same.
    engine.runner().cache().randomise(engine.ops(), static_cast<std::uint64_t>(context));
    compare->clear();
    run_steps(engine.runner(), context, flags.rows);
    fmt::print("\ncontext {}: {} rows, then 1\n{}", context, std::min(flags.rows, context - 1),
               format_differences(engine.config(), compare->differences(), flags.tolerance));
    std::fflush(stdout);
    if (const auto* first = first_above(compare->differences(), flags.tolerance))
      above.push_back(*first);
  }
  if (!above.empty())
    fail("{} differs from {} by {:.2e} in layer {} ({}), above --tolerance {:.1e}",
         above.front().title(), flags.against, above.front().difference, above.front().layer,
         above.front().part, flags.tolerance);
  fmt::print("\nno operation is above {:.1e}\n", flags.tolerance);
}

void verify(VerifyFlags& flags) {
  if (flags.against.empty())
    verify_files(flags);
  else
    verify_against(flags);
}

}  // namespace

void add_verify(CLI::App& app) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* verb = app.add_subcommand(
      "verify", "Check a checkpoint's files, or a backend's operations against the CPU's");
  verb->footer(
      "Without --against: every tensor of the architecture is there once, with its shape and a "
      "format\n"
      "that is known; --full reads all of them and looks for bad scales and values.\n"
      "With --against cpu: the model runs on --backend, and the CPU repeats every operation on "
      "the\n"
      "same inputs. Caches hold random numbers, so long contexts cost no prompt:\n"
      "  quatrain verify --synthetic flash --layers 3 --context 1024,32768,262144 --against cpu\n"
      "The exit status is 1 when something is wrong.");
  flags->model.add_to(*verb);
  flags->model.add_synthetic_to(*verb);
  verb->add_option("--against", flags->against, "The backend to compare with")
      ->check(CLI::IsMember({"cpu"}));
  verb->add_option("--context", flags->contexts, "Tokens that a sequence holds; a list")
      ->capture_default_str();
  verb->add_option("--rows", flags->rows, "Rows of the step before the last")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  verb->add_option("--tolerance", flags->tolerance, "Largest relative distance of one operation")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_flag("--full,!--quick", flags->full, "Read all tensors, not only headers");
  verb->callback([flags] { verify(*flags); });
}

}  // namespace quatrain::apps
