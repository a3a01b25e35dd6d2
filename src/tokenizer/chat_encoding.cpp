// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/chat_encoding.h"

#include <simdjson.h>
#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "tokenizer/chat_templates.h"
#include "tokenizer/python_json.h"

namespace quatrain {
namespace {

// Builds a prompt and notes where control tokens are.
class PromptWriter {
 public:
  // Text of the protocol: control tokens inside it are meant.
  PromptWriter& protocol(std::string_view text) {
    constexpr std::string_view kControls[] = {
        kBosToken,       kEosToken,    chat::kUser, chat::kAssistant, chat::kLatestReminder,
        chat::kThinkEnd, chat::kThink, chat::kDsml,
    };
    for (std::size_t i = 0; i < text.size();) {
      const std::string_view rest = text.substr(i);
      const auto starts = [&](std::string_view token) { return rest.starts_with(token); };
      auto token = std::find_if(std::begin(kControls), std::end(kControls), starts);
      const bool is_control = token != std::end(kControls);
      if (is_control) prompt_.controls.push_back({prompt_.text.size() + i, token->size()});
      i += is_control ? token->size() : 1;
    }
    prompt_.text += text;
    return *this;
  }

  // Exactly one control token.
  PromptWriter& control(std::string_view token) {
    prompt_.controls.push_back({prompt_.text.size(), token.size()});
    prompt_.text += token;
    return *this;
  }

  // Text from outside.
  PromptWriter& text(std::string_view text) {
    prompt_.text += text;
    return *this;
  }

  ChatPrompt take() { return std::move(prompt_); }

 private:
  ChatPrompt prompt_;
};

// V4 has no tool role: results become blocks of a user message, and neighbouring user messages
// become one. As in the reference encoder only the first message's other fields stay.
std::vector<Message> merge_user_turns(std::span<const Message> messages) {
  std::vector<Message> merged;
  for (const Message& message : messages) {
    const bool after_user = !merged.empty() && merged.back().role == Role::kUser;
    if (message.role == Role::kTool) {
      if (!after_user) merged.push_back({.role = Role::kUser});
      merged.back().blocks.push_back(
          {ContentBlock::Kind::kToolResult, message.content, message.tool_call_id});
    } else if (message.role == Role::kUser) {
      std::vector<ContentBlock> blocks = message.blocks;
      if (blocks.empty()) blocks.push_back({ContentBlock::Kind::kText, message.content});
      if (!after_user || merged.back().task) {
        merged.push_back(message);
        merged.back().blocks.clear();
      }
      auto& all = merged.back().blocks;
      all.insert(all.end(), blocks.begin(), blocks.end());
    } else {
      merged.push_back(message);
    }
  }
  return merged;
}

// Puts the tool results of each user message into the order of the calls before it. Blocks of text
// keep their places.
void sort_tool_results(std::vector<Message>& messages) {
  std::unordered_map<std::string_view, std::size_t> order;  // call id → place
  const auto place = [&](const ContentBlock& block) {
    const auto it = order.find(block.tool_call_id);
    return it != order.end() ? it->second : 0;
  };
  for (Message& message : messages) {
    if (message.role == Role::kAssistant && !message.tool_calls.empty()) {
      order.clear();
      for (std::size_t i = 0; i < message.tool_calls.size(); ++i)
        if (!message.tool_calls[i].id.empty()) order[message.tool_calls[i].id] = i;
    }
    if (message.role != Role::kUser || order.empty()) continue;
    std::vector<ContentBlock> results;
    for (const ContentBlock& block : message.blocks)
      if (block.kind == ContentBlock::Kind::kToolResult) results.push_back(block);
    std::stable_sort(results.begin(), results.end(),
                     [&](const auto& a, const auto& b) { return place(a) < place(b); });
    auto next = results.begin();
    for (ContentBlock& block : message.blocks)
      if (block.kind == ContentBlock::Kind::kToolResult) block = std::move(*next++);
  }
}

bool asks(const Message& message) {
  return message.role == Role::kUser || message.role == Role::kDeveloper;
}

// Index of the last user or developer message, -1 if there is none.
std::ptrdiff_t last_user_index(const std::vector<Message>& messages) {
  auto i = static_cast<std::ptrdiff_t>(messages.size()) - 1;
  while (i >= 0 && !asks(messages[i])) --i;
  return i;
}

// Takes the reasoning and the developer messages before the last question away. `context` is the
// number of leading messages that are context, before and after.
void drop_old_thinking(std::vector<Message>& messages, std::size_t& context) {
  const auto last_user = last_user_index(messages);
  std::vector<Message> kept;
  std::size_t kept_context = 0;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    Message& message = messages[i];
    if (static_cast<std::ptrdiff_t>(i) < last_user) {
      if (message.role == Role::kDeveloper) continue;
      message.reasoning.clear();
    }
    if (i < context) ++kept_context;
    kept.push_back(std::move(message));
  }
  messages = std::move(kept);
  context = kept_context;
}

std::string_view effort_text(const ChatOptions& options) {
  const bool is_0731 = options.effort_table == EffortTable::k0731;
  switch (options.effort) {
    case ReasoningEffort::kHigh:
      return is_0731 ? chat::kEffortAbsolute : "";
    case ReasoningEffort::kMax:
      return is_0731 ? chat::kEffortBeyond : chat::kEffortAbsolute;
    default:
      return "";
  }
}

class Renderer {
 public:
  Renderer(const ChatOptions& options, std::vector<Message> messages, std::size_t context)
      : options_(options), messages_(std::move(messages)), first_(context) {
    const bool has_tools = std::any_of(messages_.begin(), messages_.end(),
                                       [](const Message& m) { return !m.tools.empty(); });
    drops_ = options.drop_thinking && !has_tools;
    if (drops_ && thinks()) drop_old_thinking(messages_, first_);
    last_user_ = last_user_index(messages_);
  }

  ChatPrompt run() {
    if (options_.add_bos && first_ == 0) writer_.control(kBosToken);
    for (std::size_t i = first_; i < messages_.size(); ++i) {
      if (i == 0 && thinks()) writer_.protocol(effort_text(options_));
      write_message(i);
      write_suffix(i);
    }
    ChatPrompt prompt = writer_.take();
    prompt.trust_text = options_.trust_text;
    return prompt;
  }

 private:
  [[nodiscard]] bool thinks() const { return options_.mode == ThinkingMode::kThinking; }

  void write_message(std::size_t i) {
    const Message& message = messages_[i];
    switch (message.role) {
      case Role::kSystem:
        writer_.text(message.content);
        write_instructions(message);
        break;
      case Role::kDeveloper:
        if (message.content.empty())
          fail("messages[{}].content: expected text in a developer message, found nothing", i);
        writer_.control(chat::kUser).text(message.content);
        write_instructions(message);
        break;
      case Role::kUser:
        write_user(message);
        break;
      case Role::kLatestReminder:
        writer_.control(chat::kLatestReminder).text(message.content);
        break;
      case Role::kAssistant:
        write_assistant(i);
        break;
      case Role::kTool:
        break;  // merged away
    }
  }

  // The tools block and the response format.
  void write_instructions(const Message& message) {
    if (!message.tools.empty()) {
      writer_.protocol("\n\n").protocol(chat::kToolsBegin);
      for (std::size_t i = 0; i < message.tools.size(); ++i)
        writer_.protocol(i > 0 ? "\n" : "").text(message.tools[i]);
      writer_.protocol(chat::kToolsEnd);
    }
    if (!message.response_format.empty())
      writer_.protocol("\n\n").protocol(chat::kResponseFormat).text(message.response_format);
  }

  void write_user(const Message& message) {
    writer_.control(chat::kUser);
    bool first = true;
    for (const ContentBlock& block : message.blocks) {
      if (!std::exchange(first, false)) writer_.protocol("\n\n");
      const bool is_result = block.kind == ContentBlock::Kind::kToolResult;
      if (is_result) writer_.protocol("<tool_result>");
      writer_.text(block.text);
      if (is_result) writer_.protocol("</tool_result>");
    }
  }

  void write_assistant(std::size_t i) {
    const Message& message = messages_[i];
    const bool answers_task = i > 0 && messages_[i - 1].task.has_value();
    if (thinks() && !answers_task && (!drops_ || static_cast<std::ptrdiff_t>(i) > last_user_))
      writer_.text(message.reasoning).control(chat::kThinkEnd);
    writer_.text(message.content);
    if (!message.tool_calls.empty()) write_tool_calls(message.tool_calls);
    if (!message.without_eos) writer_.control(kEosToken);
  }

  void write_tool_calls(const std::vector<ToolCall>& calls) {
    writer_.protocol("\n\n<｜DSML｜tool_calls>\n");
    for (const ToolCall& call : calls) {
      writer_.protocol("<｜DSML｜invoke name=\"").text(call.name).protocol("\">\n");
      write_arguments(call.arguments);
      writer_.protocol("\n</｜DSML｜invoke>\n");
    }
    writer_.protocol("</｜DSML｜tool_calls>");
  }

  void write_arguments(const std::string& arguments) {
    simdjson::dom::parser parser;
    simdjson::dom::element root;
    simdjson::dom::object object;
    if (!detail::parse_json(parser, arguments, root) || root.get(object)) {
      write_parameter("arguments", true, arguments);
      return;
    }
    bool first = true;
    for (const auto& [key, value] : detail::members_of(object)) {
      if (!std::exchange(first, false)) writer_.protocol("\n");
      std::string_view text;
      if (!value.get(text))
        write_parameter(key, true, text);
      else
        write_parameter(key, false, detail::python_json(value));
    }
  }

  void write_parameter(std::string_view name, bool is_string, std::string_view value) {
    writer_.protocol("<｜DSML｜parameter name=\"").text(name);
    writer_.protocol(is_string ? "\" string=\"true\">" : "\" string=\"false\">").text(value);
    writer_.protocol("</｜DSML｜parameter>");
  }

  // What makes the model speak: at the end, and before an answer that is there already.
  void write_suffix(std::size_t i) {
    if (i + 1 < messages_.size() && messages_[i + 1].role != Role::kAssistant &&
        messages_[i + 1].role != Role::kLatestReminder)
      return;
    const Message& message = messages_[i];
    if (message.task) {
      if (message.task == Task::kAction)
        writer_.control(chat::kAssistant).control(thinks() ? chat::kThink : chat::kThinkEnd);
      writer_.control(chat::kTaskTokens[static_cast<std::size_t>(*message.task)]);
    } else if (asks(message)) {
      const bool think = thinks() && (!drops_ || static_cast<std::ptrdiff_t>(i) >= last_user_);
      writer_.control(chat::kAssistant).control(think ? chat::kThink : chat::kThinkEnd);
    }
  }

  const ChatOptions& options_;
  std::vector<Message> messages_;
  std::size_t first_;  // index of the first message to render; those before are context
  bool drops_ = false;
  std::ptrdiff_t last_user_ = -1;
  PromptWriter writer_;
};

}  // namespace

ChatPrompt render_chat(std::span<const Message> messages, const ChatOptions& options,
                       std::span<const Message> context) {
  std::vector<Message> all = merge_user_turns(context);
  const std::size_t context_count = all.size();
  std::vector<Message> rest = merge_user_turns(messages);
  std::move(rest.begin(), rest.end(), std::back_inserter(all));
  sort_tool_results(all);
  return Renderer(options, std::move(all), context_count).run();
}

std::vector<std::int32_t> encode_prompt(const Tokenizer& tokenizer, const ChatPrompt& prompt) {
  if (prompt.trust_text) return tokenizer.encode(prompt.text, AddedTokens::kMatch);
  const std::string_view text = prompt.text;
  std::vector<std::int32_t> ids;
  std::size_t done = 0;
  for (const ChatPrompt::Span& span : prompt.controls) {
    const auto id = tokenizer.added_id_of(text.substr(span.begin, span.size));
    if (!id) continue;
    tokenizer.encode_to(text.substr(done, span.begin - done), AddedTokens::kText, ids);
    ids.push_back(*id);
    done = span.begin + span.size;
  }
  tokenizer.encode_to(text.substr(done), AddedTokens::kText, ids);
  return ids;
}

std::vector<std::int32_t> encode_chat(const Tokenizer& tokenizer, std::span<const Message> messages,
                                      const ChatOptions& options,
                                      std::span<const Message> context) {
  return encode_prompt(tokenizer, render_chat(messages, options, context));
}

}  // namespace quatrain
