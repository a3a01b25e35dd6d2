// SPDX-License-Identifier: Apache-2.0
// From token ids, as they are generated, to text that can be shown.
//
// Does not look for stop strings (stop_matcher.h) or tool calls (assistant_parser.h).
#pragma once

#include <cstdint>
#include <string>

#include "tokenizer/tokenizer.h"

namespace quatrain {

/// Decodes one sequence. All text given out is valid UTF-8: a character spread over several tokens
/// appears when its last byte is there, and bytes that no character begins with become U+FFFD.
class StreamDecoder {
 public:
  /// Special tokens are kept unless asked to skip them: "</think>" and "｜DSML｜" are among them,
  /// so output that will be parsed must keep them. `tokenizer` must outlive the decoder.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  /// The text that one more token completes; may be empty. An id without a token gives nothing.
  std::string feed(std::int32_t id);

  /// Ends the sequence: U+FFFD if a character is incomplete. The decoder can be used again.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // an incomplete character, at most 3 bytes between calls
};

}  // namespace quatrain
