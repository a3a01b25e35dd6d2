// SPDX-License-Identifier: Apache-2.0
// Fuzzes the reader of tokenizer.json; with what loads, encodes and decodes a text.
//
// Input: the text to encode, a zero byte, then additions to a small valid file, which a random file
// would hardly ever be: an object of the tokens, an array of the merges and one of the added
// tokens, each ended by a zero byte. Without the zero bytes the input is the whole file.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/stream_decoder.h"
#include "tokenizer/tokenizer.h"

namespace {

using quatrain::json_quote;

// The pipeline and the 256 bytes under the ids 0 to 255. Ends inside the vocabulary.
std::string valid_beginning() {
  std::string json = R"({"decoder":{"type":"ByteLevel"},"pre_tokenizer":{"pretokenizers":[)";
  for (const std::string_view pattern : quatrain::kSplitPatterns)
    json += R"({"type":"Split","behavior":"Isolated","pattern":{"Regex":)" + json_quote(pattern) +
            "}},";
  json += R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},)";
  json += R"("model":{"type":"BPE","vocab":{)";
  unsigned next = 0x100;
  for (unsigned b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
    json += fmt::format("{}\"\\u{:04x}\":{}", b ? "," : "", printable ? b : next++, b);
  }
  return json;
}

void exercise(const quatrain::Tokenizer& tokenizer, std::string_view text) {
  for (const auto added : {quatrain::AddedTokens::kMatch, quatrain::AddedTokens::kText}) {
    const std::vector<std::int32_t> ids = tokenizer.encode(text, added);
    quatrain::StreamDecoder decoder(tokenizer);
    for (const std::int32_t id : ids) {
      if (!tokenizer.has_token(id)) std::abort();
      if (added == quatrain::AddedTokens::kText && tokenizer.is_special(id)) std::abort();
      decoder.feed(id);
    }
    decoder.finish();
    if (tokenizer.decode(ids) != text) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string beginning = valid_beginning();
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const auto take = [&rest] {
    const std::string_view part = rest.substr(0, rest.find('\0'));
    rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    return part;
  };
  const bool is_whole_file = rest.find('\0') == rest.npos;
  const std::string_view text = is_whole_file ? rest : take();
  std::string json(rest);
  if (!is_whole_file) {
    json = beginning;
    json.append(take()).append("},\"merges\":[");
    json.append(take()).append("]},\"added_tokens\":[");
    json.append(take()).append("]}");
  }
  try {
    exercise(quatrain::Tokenizer::parse(json), text);
  } catch (const quatrain::Error&) {
  }
  return 0;
}
