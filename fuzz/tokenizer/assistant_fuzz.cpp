// SPDX-License-Identifier: Apache-2.0
// Fuzzes the stream parser of answers: any cut gives what the whole text gives, and no tag is
// shown.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tokenizer/assistant_parser.h"
#include "tokenizer/assistant_stream.h"

namespace {

struct Sum {
  std::string reasoning, content, calls;
  void add(const quatrain::AssistantDelta& delta) {
    reasoning += delta.reasoning;
    content += delta.content;
    for (const auto& call : delta.tool_calls) calls += call.name + "\n" + call.arguments + "\n";
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto mode = data[0] & 1 ? quatrain::ThinkingMode::kThinking : quatrain::ThinkingMode::kChat;
  const std::size_t piece = 1u + (data[0] >> 1);
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  quatrain::AssistantStream stream(mode);
  Sum sum;
  for (std::size_t at = 0; at < text.size(); at += piece)
    sum.add(stream.feed(text.substr(at, piece)));
  sum.add(stream.finish());
  const auto turn = quatrain::parse_assistant(text, mode);
  std::string calls;
  for (const auto& call : turn.tool_calls) calls += call.name + "\n" + call.arguments + "\n";
  if (sum.reasoning != turn.reasoning || sum.content != turn.content || sum.calls != calls)
    std::abort();
  for (const char* tag : {"<｜DSML｜", "</｜DSML｜", "<|DSML|", "</|DSML|", "｜DSML｜"})
    if (sum.content.find(tag) != std::string::npos) std::abort();
  return 0;
}
