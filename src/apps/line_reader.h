// SPDX-License-Identifier: Apache-2.0
// LineReader: lines from a person (with editing and history) or from a pipe.
#pragma once

#include <optional>
#include <string>

namespace quatrain::apps {

class LineReader {
 public:
  LineReader();
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  /// The next line without its newline; nothing at the end of the input.
  std::optional<std::string> read(const char* prompt);

 private:
  struct Editor;
  Editor* editor_ = nullptr;  // null when stdin is no terminal
};

}  // namespace quatrain::apps
