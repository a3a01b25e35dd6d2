// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V4's pre-tokenizer: cuts text into the pieces within which byte pairs are merged.
//
// Written by hand; no regular expressions run here. Does not know tokens or control tokens.
#pragma once

#include <string_view>

namespace quatrain {

/// The three patterns that this splitter stands for, as they are written in tokenizer.json. Each
/// stage keeps both its matches and the text between them ("Isolated"); a later stage sees each
/// piece of the one before as a text of its own.
inline constexpr std::string_view kSplitPatterns[3] = {
    R"(\p{N}{1,3})",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)re"
    R"re(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re",
};

/// Walks over the pieces of a text; their concatenation is the text. A byte that is not part of
/// well-formed UTF-8 counts as one character of no class. Linear time.
class PreTokenizer {
 public:
  explicit PreTokenizer(std::string_view text)
      : position_(text.data()), segment_end_(text.data()), end_(text.data() + text.size()) {}

  /// Sets `piece` to the next piece; false at the end. Pieces are never empty.
  bool next(std::string_view& piece);

 private:
  void begin_segment();

  const char* position_;
  const char* segment_end_;  // end of the piece of stages 1 and 2 that holds position_
  const char* end_;
  bool is_number_ = false;  // the segment is a match of stage 1
};

}  // namespace quatrain
