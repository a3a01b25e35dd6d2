// SPDX-License-Identifier: Apache-2.0
// The command `quatrain`: one binary with verbs. Only the folder apps chooses a backend.
#include <CLI/CLI.hpp>
#include <cctype>
#include <cstdio>
#include <string>

#include "apps/commands.h"
#include "core/error.h"
#include "core/log.h"

namespace {

// Another spelling of every flag: --max-model-len can be given as QUATRAIN_MAX_MODEL_LEN.
void name_environment(CLI::App& app) {
  for (CLI::App* verb : app.get_subcommands({})) name_environment(*verb);
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty()) continue;
    if (option->get_lnames().front() == "help" || option->get_lnames().front() == "version")
      continue;
    std::string name = "QUATRAIN_" + option->get_lnames().front();
    for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(c));
    option->envname(name);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Quatrain runs DeepSeek-V4 models with NVFP4 weights.", "quatrain");
  app.set_version_flag("--version", "quatrain " QUATRAIN_VERSION " (cpu; " QUATRAIN_COMPILER ")");
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default(false);
  quatrain::apps::add_run(app);
  quatrain::apps::add_chat(app);
  quatrain::apps::add_serve(app);
  quatrain::apps::add_inspect(app);
  quatrain::apps::add_quantize(app);
  quatrain::apps::add_perplexity(app);
  quatrain::apps::add_tokenize(app);
  quatrain::apps::add_logits(app);
  quatrain::apps::add_verify(app);
  quatrain::apps::add_doctor(app);
  quatrain::apps::add_bench(app);
  name_environment(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::exception& error) {
    if (quatrain::log_format() == quatrain::LogFormat::kJson)
      quatrain::log_error("{}", error.what());
    else
      fmt::print(stderr, "quatrain: error: {}\n", error.what());
    return 1;
  }
  return 0;
}
