// SPDX-License-Identifier: Apache-2.0
// quatrain run: one prompt, its continuation on stdout, everything else on stderr.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/model_flags.h"
#include "apps/sampling_flags.h"
#include "apps/text_file.h"

namespace quatrain::apps {
namespace {

struct RunFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string prompt;
  std::string file;
  bool echo = false;
  bool no_bos = false;
  bool special = false;
};

std::string prompt_text(const RunFlags& flags) {
  if (!flags.file.empty()) return read_text(flags.file);
  if (!flags.prompt.empty()) return flags.prompt;
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

void run(RunFlags& flags) {
  LoadedEngine engine(flags.model);
  const Tokenizer tokenizer = load_tokenizer(flags.model.model, engine.config());
  flags.sampling.resolve(engine.config(), tokenizer);

  const std::string text = prompt_text(flags);
  std::vector<std::int32_t> prompt;
  if (!flags.no_bos) prompt.push_back(static_cast<std::int32_t>(engine.config().bos_token_id));
  tokenizer.encode_to(text, flags.special ? AddedTokens::kMatch : AddedTokens::kText, prompt);
  if (prompt.empty()) fail("the prompt is empty: give --prompt, --file or text on stdin");

  if (flags.echo) std::fwrite(text.data(), 1, text.size(), stdout);
  Session session(engine.runner());
  const InterruptGuard interrupt;
  const TextResult result =
      generate_text(session, tokenizer, flags.sampling, prompt, [&](const std::string& piece) {
        std::fwrite(piece.data(), 1, piece.size(), stdout);
        std::fflush(stdout);
        return !interrupt.seen();
      });
  std::fputc('\n', stdout);
  std::fflush(stdout);
  fmt::print(stderr, "{} · seed {}\n", describe(result), flags.sampling.seed);
  if (result.stats.finish == FinishReason::kNonFinite)
    fail(
        "the model produced logits that are not finite after {} tokens; --check names the first "
        "operation at fault",
        result.stats.output_tokens);
}

}  // namespace

void add_run(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* verb = app.add_subcommand("run", "Continue a prompt");
  flags->model.add_to(*verb);
  flags->sampling.add_to(*verb);
  auto* prompt = verb->add_option("-p,--prompt", flags->prompt, "The prompt; default: stdin");
  verb->add_option("-f,--file,--prompt-file", flags->file, "Read the prompt from a file")
      ->excludes(prompt);
  verb->add_flag("--echo", flags->echo, "Print the prompt too");
  verb->add_flag("--no-bos", flags->no_bos, "Do not put the begin-of-sentence token first");
  verb->add_flag("--special", flags->special,
                 "Text such as <think> in the prompt becomes that control token");
  verb->callback([flags] { run(*flags); });
}

}  // namespace quatrain::apps
