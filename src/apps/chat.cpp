// SPDX-License-Identifier: Apache-2.0
// quatrain chat: a conversation on the terminal in the V4 chat encoding.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/line_reader.h"
#include "apps/model_flags.h"
#include "apps/sampling_flags.h"
#include "apps/text_file.h"
#include "tokenizer/assistant_parser.h"
#include "tokenizer/chat_encoding.h"

namespace quatrain::apps {
namespace {

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string system;
  std::string thinking = "off";
  std::string effort = "low";
  std::string effort_table = "preview";
};

constexpr const char* kHelp =
    "/help            this text\n"
    "/think on|off    let the model reason before it answers\n"
    "/effort low|high|max   how long it reasons\n"
    "/system TEXT     set the system prompt and start over\n"
    "/read FILE       send the content of a file\n"
    "/reset           forget the conversation\n"
    "/quit            leave (also Ctrl-D)\n"
    "Ctrl-C stops an answer.\n";

ReasoningEffort parse_effort(const std::string& name) {
  if (name == "low") return ReasoningEffort::kLow;
  if (name == "high") return ReasoningEffort::kHigh;
  if (name == "max") return ReasoningEffort::kMax;
  fail("effort: expected low, high or max, found '{}'", name);
}

class Chat {
 public:
  explicit Chat(ChatFlags& flags)
      : flags_(flags),
        engine_(flags.model),
        tokenizer_(load_tokenizer(flags.model.model, engine_.config())),
        session_(engine_.runner()) {
    flags_.sampling.resolve(engine_.config(), tokenizer_);
    options_.mode = flags.thinking == "on" ? ThinkingMode::kThinking : ThinkingMode::kChat;
    options_.effort = parse_effort(flags.effort);
    options_.effort_table =
        flags.effort_table == "0731" ? EffortTable::k0731 : EffortTable::kPreview;
    reset();
  }

  void talk() {
    fmt::print(stderr, "/help lists the commands.\n");
    LineReader reader;
    while (const auto line = reader.read("> ")) {
      try {
        if (line->empty()) continue;
        if (line->front() != '/')
          answer(*line);
        else if (!command(*line))
          return;
      } catch (const Error& error) {
        fmt::print(stderr, "error: {}\n", error.what());
      }
    }
  }

 private:
  void reset() {
    messages_.clear();
    if (!flags_.system.empty())
      messages_.push_back({.role = Role::kSystem, .content = flags_.system});
  }

  // Returns false to leave.
  bool command(const std::string& line) {
    const std::size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/quit" || name == "/exit") return false;
    if (name == "/help") {
      fmt::print(stderr, "{}", kHelp);
    } else if (name == "/reset") {
      reset();
    } else if (name == "/system") {
      flags_.system = rest;
      reset();
    } else if (name == "/read") {
      answer(read_text(rest));
    } else if (name == "/effort") {
      options_.effort = parse_effort(rest);
    } else if (name == "/think" && (rest == "on" || rest == "off")) {
      options_.mode = rest == "on" ? ThinkingMode::kThinking : ThinkingMode::kChat;
    } else {
      fail("'{}' is not a command; /help lists them", line);
    }
    return true;
  }

  void answer(const std::string& text) {
    messages_.push_back({.role = Role::kUser, .content = text});
    try {
      const std::vector<std::int32_t> prompt = encode_chat(tokenizer_, messages_, options_);
      const InterruptGuard interrupt;
      const TextResult result = generate_text(session_, tokenizer_, flags_.sampling, prompt,
                                              [&](const std::string& piece) {
                                                std::fwrite(piece.data(), 1, piece.size(), stdout);
                                                std::fflush(stdout);
                                                return !interrupt.seen();
                                              });
      std::fputc('\n', stdout);
      std::fflush(stdout);
      fmt::print(stderr, "[{}]\n", describe(result));
      AssistantTurn turn = parse_assistant(result.text, options_.mode);
      messages_.push_back({.role = Role::kAssistant,
                           .content = std::move(turn.content),
                           .reasoning = std::move(turn.reasoning),
                           .tool_calls = std::move(turn.tool_calls)});
    } catch (...) {
      messages_.pop_back();  // a turn that failed is not part of the conversation
      throw;
    }
  }

  ChatFlags& flags_;
  LoadedEngine engine_;
  Tokenizer tokenizer_;
  Session session_;
  ChatOptions options_;
  std::vector<Message> messages_;
};

}  // namespace

void add_chat(CLI::App& app) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* verb = app.add_subcommand("chat", "Talk with the model");
  flags->model.add_to(*verb);
  flags->sampling.add_to(*verb);
  verb->add_option("--system", flags->system, "System prompt");
  verb->add_option("--thinking", flags->thinking, "Let the model reason first")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  verb->add_option("--reasoning-effort", flags->effort, "How long it reasons")
      ->check(CLI::IsMember({"low", "high", "max"}))
      ->capture_default_str();
  verb->add_option("--effort-table", flags->effort_table,
                   "What the efforts mean: to preview checkpoints or to those of the 0731 type")
      ->check(CLI::IsMember({"preview", "0731"}))
      ->capture_default_str();
  verb->callback([flags] { Chat(*flags).talk(); });
}

}  // namespace quatrain::apps
