// SPDX-License-Identifier: Apache-2.0
// The verbs of the command: each function adds its subcommand, flags and action to the parser.
//
// An action prints results on stdout and everything else on stderr. It throws Error on failure;
// main() prints the message and exits with 1.
#pragma once

namespace CLI {
class App;
}

namespace quatrain::apps {

void add_bench(CLI::App& app);
void add_run(CLI::App& app);
void add_chat(CLI::App& app);
void add_serve(CLI::App& app);
void add_inspect(CLI::App& app);
void add_quantize(CLI::App& app);
void add_perplexity(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_logits(CLI::App& app);
void add_doctor(CLI::App& app);
void add_verify(CLI::App& app);

}  // namespace quatrain::apps
