// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/stream_decoder.h"

#include "tokenizer/unicode.h"

namespace quatrain {

std::string StreamDecoder::feed(std::int32_t id) {
  std::string text;
  if (skip_special_ && tokenizer_->is_special(id)) return text;
  pending_ += tokenizer_->token(id);
  drain_utf8(pending_, false, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  drain_utf8(pending_, true, text);
  return text;
}

}  // namespace quatrain
