// SPDX-License-Identifier: Apache-2.0
// The markup of tool calls as a grammar: the block, a tool's name, and each parameter, whose value
// is raw text if it is a string and JSON otherwise. The texts are those of tokenizer/chat_encoding.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "grammar/draft.h"

namespace quatrain::grammar {
namespace {

// Tags longer than a reader of the markup takes would be lost; it allows 4096 bytes.
constexpr std::size_t kMaxName = 1024;

void check_name(std::string_view name, const std::string& path) {
  const bool is_plain = !name.empty() && std::ranges::none_of(name, [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F ||
           std::string_view("\"\\<>").find(c) != std::string_view::npos;
  });
  if (!is_plain || name.size() > kMaxName)
    fail(
        "{}: a name in a call must be 1 to {} bytes without quotes, backslashes, angle "
        "brackets and control characters",
        path, kMaxName);
}

// The name that json_quote() and a colon turned into a prefix. Names with escapes are refused, so
// it only stands between the quotes.
std::string_view name_in(std::string_view prefix) { return prefix.substr(1, prefix.size() - 3); }

// The values of a parameter, parted by how they are written.
struct Values {
  std::vector<NodeId> raw, json;
};

Values part_values(Draft& draft, RuleId rule) {
  Values values;
  for (const NodeId id : std::vector<NodeId>(draft.rules[rule].nodes)) {
    if (const auto* string = std::get_if<StringLeaf>(&draft.nodes[id].body)) {
      StringLeaf raw = *string;
      raw.is_raw = true;
      values.raw.push_back(draft.add_node(std::move(raw)));
    } else if (const auto* texts = std::get_if<TextsLeaf>(&draft.nodes[id].body)) {
      TextsLeaf raw, json;
      for (const TextsLeaf::Text& text : texts->texts)
        if (text.is_string)
          raw.texts.push_back({text.raw, text.raw, true});
        else
          json.texts.push_back(text);
      if (!raw.texts.empty()) values.raw.push_back(draft.add_node(std::move(raw)));
      if (!json.texts.empty()) values.json.push_back(draft.add_node(std::move(json)));
    } else {
      values.json.push_back(id);
    }
  }
  return values;
}

// The parameters of a call, from the object that its schema describes.
RuleId add_parameters(Draft& draft, const DraftTool& tool, std::string_view marker) {
  const std::vector<NodeId>& nodes = draft.rules[tool.parameters].nodes;
  const auto* object =
      nodes.size() == 1 ? std::get_if<Members>(&draft.nodes[nodes[0]].body) : nullptr;
  if (object == nullptr) fail("{}: expected the schema of an object", tool.path);
  const std::vector<Members::Entry> properties = object->entries;
  Members call;
  call.required = object->required;
  call.around = {"", '\n', fmt::format("\n</{}invoke>", marker), false};
  call.suffix = fmt::format("</{}parameter>", marker);
  for (const Members::Entry& property : properties) {
    const std::string_view name = name_in(property.prefix);
    check_name(name, tool.path);
    const Values values = part_values(draft, property.value);
    const auto add = [&](std::string_view is_string, const std::vector<NodeId>& written) {
      if (written.empty()) return;
      const RuleId value = draft.add_rule(tool.path);
      draft.rules[value].nodes = written;
      call.entries.push_back(
          {fmt::format("<{}parameter name=\"{}\" string=\"{}\">", marker, name, is_string),
           property.property, value});
    };
    add("true", values.raw);
    add("false", values.json);
  }
  const RuleId rule = draft.add_rule(tool.path);
  draft.add_value(rule, std::move(call));
  return rule;
}

}  // namespace

RuleId add_call_block(Draft& draft, std::span<const DraftTool> tools, std::string_view marker,
                      std::uint32_t most) {
  Choice choice;
  for (const DraftTool& tool : tools) {
    check_name(tool.name, tool.path);
    draft.add_text(tool.name, tool.path);
    std::string prefix = fmt::format("<{}invoke name=\"{}\">\n", marker, tool.name);
    if (std::ranges::find(choice.entries, prefix, &Choice::Entry::prefix) != choice.entries.end())
      fail("{}: another tool has the name {}", tool.path, tool.name);
    choice.entries.push_back({std::move(prefix), add_parameters(draft, tool, marker)});
  }
  const RuleId call = draft.add_rule("a call");
  draft.add_value(call, std::move(choice));
  Items block;
  block.around = {fmt::format("\n\n<{}tool_calls>\n", marker), '\n',
                  fmt::format("\n</{}tool_calls>", marker), false};
  block.rest = call;
  block.min = 1;
  block.max = most;
  const RuleId rule = draft.add_rule("the calls");
  draft.add_value(rule, std::move(block));
  draft.wanted.push_back(rule);
  return rule;
}

}  // namespace quatrain::grammar
