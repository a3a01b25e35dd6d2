// SPDX-License-Identifier: Apache-2.0
#include "apps/line_reader.h"

#include <histedit.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

namespace quatrain::apps {

struct LineReader::Editor {
  EditLine* line = nullptr;
  History* history = nullptr;
  HistEvent event{};
  const char* prompt = "";

  static char* prompt_of(EditLine* line) {
    void* data = nullptr;
    el_get(line, EL_CLIENTDATA, &data);
    return const_cast<char*>(static_cast<Editor*>(data)->prompt);
  }
};

LineReader::LineReader() {
  if (!isatty(STDIN_FILENO)) return;
  editor_ = new Editor;
  editor_->history = history_init();
  history(editor_->history, &editor_->event, H_SETSIZE, 1000);
  editor_->line = el_init("quatrain", stdin, stderr, stderr);
  el_set(editor_->line, EL_CLIENTDATA, editor_);
  el_set(editor_->line, EL_PROMPT, &Editor::prompt_of);
  el_set(editor_->line, EL_EDITOR, "emacs");
  el_set(editor_->line, EL_SIGNAL, 1);
  el_set(editor_->line, EL_HIST, history, editor_->history);
}

LineReader::~LineReader() {
  if (editor_ == nullptr) return;
  el_end(editor_->line);
  history_end(editor_->history);
  delete editor_;
}

std::optional<std::string> LineReader::read(const char* prompt) {
  std::string text;
  if (editor_ == nullptr) {
    if (!std::getline(std::cin, text)) return std::nullopt;
    return text;
  }
  editor_->prompt = prompt;
  int length = 0;
  const char* line = el_gets(editor_->line, &length);
  if (line == nullptr || length <= 0) return std::nullopt;
  text.assign(line, static_cast<std::size_t>(length));
  if (text.find_first_not_of(" \t\r\n") != std::string::npos)
    history(editor_->history, &editor_->event, H_ENTER, text.c_str());
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return text;
}

}  // namespace quatrain::apps
