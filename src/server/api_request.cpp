// SPDX-License-Identifier: Apache-2.0
#include "server/api_request.h"

#include <charconv>
#include <limits>

#include "core/error.h"
#include "server/answer_format.h"
#include "server/json_field.h"

namespace quatrain::server {
namespace {

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxMessages = 10'000;
constexpr std::size_t kMaxStops = 16;
constexpr std::size_t kMaxBiases = 4'096;
constexpr std::int64_t kMaxChoices = 128;
constexpr std::int64_t kMaxLogprobs = 20;
constexpr auto kMaxInteger = std::numeric_limits<std::int64_t>::max();

// A body that was parsed; the parser owns the values.
struct Body {
  explicit Body(std::string_view text) {
    auto error = parser.allocate(std::max<std::size_t>(text.size(), 64), kMaxDepth);
    simdjson::dom::element element;
    if (!error) error = parser.parse(text.data(), text.size()).get(element);
    if (error == simdjson::DEPTH_ERROR)
      throw ApiError(400, fmt::format("the body nests deeper than {}", kMaxDepth));
    if (error)
      throw ApiError(400, fmt::format("the body is not JSON: {}", simdjson::error_message(error)));
    root.emplace(element, "");
    if (!element.is_object()) throw ApiError(400, "the body is not a JSON object");
  }

  simdjson::dom::parser parser;
  std::optional<JsonField> root;
};

void read_flag(const JsonField& root, std::string_view key, bool& on) {
  if (const auto field = root.member(key)) on = field->boolean();
}
void read_number(const JsonField& root, std::string_view key, double low, double high, float& x) {
  if (const auto field = root.member(key)) x = field->number(low, high);
}

void read_logit_bias(const JsonField& field, const RequestDefaults& defaults,
                     RequestSampling& sampling) {
  simdjson::dom::object members;
  if (field.value().get(members)) field.reject("an object of token ids and numbers");
  for (const auto [key, value] : members) {
    const JsonField bias(value, fmt::format("{}.{}", field.path(), key));
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 ||
        id >= defaults.vocab_size)
      throw ApiError(
          400,
          fmt::format("{}: expected token ids below {} as keys", field.path(), defaults.vocab_size),
          field.path());
    if (sampling.logit_bias.size() == kMaxBiases) field.reject("at most 4096 members");
    sampling.logit_bias.emplace_back(id, bias.number(-100, 100));
  }
}

void read_sampling(const JsonField& root, const RequestDefaults& defaults,
                   RequestSampling& sampling) {
  sampling = defaults.sampling;
  read_number(root, "temperature", 0, 2, sampling.temperature);
  read_number(root, "min_p", 0, 1, sampling.min_p);
  read_number(root, "presence_penalty", -2, 2, sampling.presence_penalty);
  read_number(root, "frequency_penalty", -2, 2, sampling.frequency_penalty);
  if (const auto field = root.member("top_p")) {
    sampling.top_p = field->number(0, 1);
    if (sampling.top_p == 0) field->reject("a number above 0, at most 1");
  }
  if (const auto field = root.member("repetition_penalty")) {
    sampling.repetition_penalty = field->number(0, 10);
    if (sampling.repetition_penalty == 0) field->reject("a number above 0, at most 10");
  }
  if (const auto field = root.member("top_k"))
    sampling.top_k = std::max<std::int32_t>(
        0, static_cast<std::int32_t>(field->integer(-1, std::numeric_limits<std::int32_t>::max())));
  if (const auto field = root.member("seed"))
    sampling.seed = static_cast<std::uint64_t>(field->integer(-kMaxInteger - 1, kMaxInteger));
  if (const auto field = root.member("min_tokens"))
    sampling.min_tokens = field->integer(0, defaults.max_model_len);
  if (const auto field = root.member("logit_bias")) read_logit_bias(*field, defaults, sampling);
}

std::vector<std::string> read_stop(const JsonField& field) {
  std::vector<std::string> stops;
  if (field.value().is_string())
    stops.push_back(field.string());
  else
    for (const JsonField& item : field.items(kMaxStops)) stops.push_back(item.string());
  for (const auto& stop : stops)
    if (stop.empty() || stop.size() > 4096) field.reject("strings of 1 to 4096 bytes");
  return stops;
}

TokenIds read_ids(const JsonField& field, const RequestDefaults& defaults, std::size_t most) {
  TokenIds ids;
  simdjson::dom::array items;
  if (field.value().get(items)) field.reject("an array of token ids");
  for (const simdjson::dom::element item : items) {
    std::int64_t id = -1;
    if (item.get(id) || id < 0 || id >= defaults.vocab_size || ids.size() == most)
      throw ApiError(400,
                     fmt::format("{}: expected at most {} token ids from 0 to {}", field.path(),
                                 most, defaults.vocab_size - 1),
                     field.path());
    ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

// What this server cannot do is refused, not ignored.
void refuse_unsupported(const JsonField& root) {
  constexpr std::string_view kUnsupported[] = {
      "structured_outputs", "guided_json",    "guided_regex",
      "guided_choice",      "guided_grammar", "suffix",
      "functions",          "function_call",  "use_beam_search"};
  for (const auto key : kUnsupported)
    if (const auto field = root.member(key))
      throw ApiError(400, fmt::format("{}: not supported by this server", key), std::string(key));
}

void read_common(const JsonField& root, const RequestDefaults& defaults,
                 GenerationRequest& request) {
  refuse_unsupported(root);
  if (const auto field = root.member("model")) request.model = field->string();
  read_sampling(root, defaults, request.sampling);
  if (const auto field = root.member("n"))
    request.n = static_cast<int>(field->integer(1, kMaxChoices));
  if (const auto field = root.member("best_of");
      field && field->integer(1, kMaxChoices) != request.n)
    field->reject("the same as n");
  read_flag(root, "stream", request.stream);
  if (const auto options = root.member("stream_options")) {
    options->require_object();
    if (!request.stream) options->reject("no stream_options without stream");
    read_flag(*options, "include_usage", request.include_usage);
  }
  for (const auto key : {"max_tokens", "max_completion_tokens"})
    if (const auto field = root.member(key)) request.max_tokens = field->integer(1, kMaxInteger);
  if (const auto field = root.member("stop")) request.stop = read_stop(*field);
  if (const auto field = root.member("stop_token_ids"))
    request.stop_token_ids = read_ids(*field, defaults, 1024);
  read_flag(root, "ignore_eos", request.ignore_eos);
  read_flag(root, "include_stop_str_in_output", request.include_stop);
  if (const auto field = root.member("priority"))
    request.priority = static_cast<int>(field->integer(-1'000'000, 1'000'000));
  if (const auto field = root.member("prompt_logprobs"))
    request.prompt_logprobs = static_cast<std::int32_t>(field->integer(0, kMaxLogprobs));
  if (request.prompt_logprobs >= 0 && request.stream)
    root.member("prompt_logprobs")->reject("no prompt_logprobs with stream");
}

std::vector<std::variant<std::string, TokenIds>> read_prompts(const JsonField& field,
                                                              const RequestDefaults& defaults) {
  const auto most = static_cast<std::size_t>(defaults.max_model_len);
  if (field.value().is_string()) return {field.string()};
  simdjson::dom::array items;
  if (field.value().get(items) || items.size() == 0)
    field.reject("a string, token ids, or an array of either, not empty");
  if (items.at(0).value_unsafe().is_number()) return {read_ids(field, defaults, most)};
  std::vector<std::variant<std::string, TokenIds>> prompts;
  for (const JsonField& item : field.items(kMaxChoices)) {
    if (item.value().is_string())
      prompts.emplace_back(item.string());
    else
      prompts.emplace_back(read_ids(item, defaults, most));
  }
  return prompts;
}

// Switches of thinking, in the spellings that clients use.
void read_thinking(const JsonField& root, ChatOptions& chat) {
  const auto set = [&chat](bool on) {
    chat.mode = on ? ThinkingMode::kThinking : ThinkingMode::kChat;
  };
  if (const auto kwargs = root.member("chat_template_kwargs")) {
    kwargs->require_object();
    for (const auto key : {"thinking", "enable_thinking"})
      if (const auto field = kwargs->member(key)) set(field->boolean());
  }
  if (const auto field = root.member("enable_thinking")) set(field->boolean());
  if (const auto thinking = root.member("thinking")) {
    if (thinking->value().is_bool()) {
      set(thinking->boolean());
    } else {
      thinking->require_object();
      const auto type = thinking->member("type");
      const std::string text = type ? type->string() : "";
      if (text != "enabled" && text != "disabled")
        thinking->reject("{\"type\": \"enabled\"} or {\"type\": \"disabled\"}");
      set(text == "enabled");
    }
  }
  const auto field = root.member("reasoning_effort");
  if (!field) return;
  const std::string effort = field->string();
  if (effort == "none")
    chat.mode = ThinkingMode::kChat;
  else if (effort == "minimal" || effort == "low")
    chat.effort = ReasoningEffort::kLow;
  else if (effort == "medium" || effort == "high" || effort == "xhigh")
    chat.effort = ReasoningEffort::kHigh;
  else if (effort == "max" || effort == "ultra")
    chat.effort = ReasoningEffort::kMax;
  else
    field->reject("none, minimal, low, medium, high, xhigh, max or ultra");
}

// Faults in messages come as "messages[0].role: expected …".
std::vector<Message> read_messages(std::string_view body) {
  try {
    return parse_messages(body);
  } catch (const Error& error) {
    std::string message = error.what();
    if (message.starts_with("request.")) message = message.substr(8);
    throw ApiError(400, message, message.substr(0, message.find(':')));
  }
}

void read_chat_input(const JsonField& root, std::string_view body, const RequestDefaults& defaults,
                     ChatOptions& chat, std::vector<Message>& messages) {
  const auto list = root.member("messages");
  if (!list) throw ApiError(400, "messages: expected an array, found nothing", "messages");
  if (list->items(kMaxMessages).empty()) list->reject("at least one message");
  chat.mode = defaults.mode;
  chat.effort = defaults.effort;
  chat.effort_table = defaults.effort_table;
  read_thinking(root, chat);
  messages = read_messages(body);
}

}  // namespace

GenerationRequest read_completion(std::string_view text, const RequestDefaults& defaults) {
  const Body body(text);
  GenerationRequest request;
  request.max_tokens = defaults.completion_tokens;
  read_common(*body.root, defaults, request);
  const auto prompt = body.root->member("prompt");
  if (!prompt) throw ApiError(400, "prompt: expected a prompt, found nothing", "prompt");
  request.prompts = read_prompts(*prompt, defaults);
  if (static_cast<std::int64_t>(request.prompts.size()) * request.n > kMaxChoices)
    prompt->reject("at most 128 prompts times n");
  constrain(*body.root, read_answer_form(*body.root, false), defaults, request);
  read_flag(*body.root, "echo", request.echo);
  read_flag(*body.root, "skip_special_tokens", request.skip_special);
  if (const auto field = body.root->member("logprobs")) {
    request.wants_logprobs = true;
    request.sampling.logprobs = static_cast<std::int32_t>(field->integer(0, kMaxLogprobs));
  }
  return request;
}

GenerationRequest read_chat(std::string_view text, const RequestDefaults& defaults) {
  const Body body(text);
  GenerationRequest request;
  request.is_chat = true;
  read_common(*body.root, defaults, request);
  const AnswerForm form = read_answer_form(*body.root, true);
  request.has_tools = form.calls != AnswerForm::Calls::kNone;
  if (!form.parallel) request.max_calls = 1;
  read_chat_input(*body.root, text, defaults, request.chat, request.messages);
  if (form.hides_tools)
    for (Message& message : request.messages) message.tools.clear();
  constrain(*body.root, form, defaults, request);
  read_flag(*body.root, "logprobs", request.wants_logprobs);
  const auto top = body.root->member("top_logprobs");
  if (top && !request.wants_logprobs) top->reject("no top_logprobs without logprobs");
  if (request.wants_logprobs)
    request.sampling.logprobs = top ? static_cast<std::int32_t>(top->integer(0, kMaxLogprobs)) : 0;
  return request;
}

TokenizeRequest read_tokenize(std::string_view text, const RequestDefaults& defaults) {
  const Body body(text);
  TokenizeRequest request;
  read_flag(*body.root, "add_special_tokens", request.add_special_tokens);
  read_flag(*body.root, "return_token_strs", request.with_texts);
  if (const auto prompt = body.root->member("prompt")) {
    request.input = prompt->string();
  } else {
    std::vector<Message> messages;
    read_chat_input(*body.root, text, defaults, request.chat, messages);
    request.input = std::move(messages);
  }
  return request;
}

TokenIds read_detokenize(std::string_view text, const RequestDefaults& defaults) {
  const Body body(text);
  const auto tokens = body.root->member("tokens");
  if (!tokens) throw ApiError(400, "tokens: expected an array of ids, found nothing", "tokens");
  return read_ids(*tokens, defaults, static_cast<std::size_t>(defaults.max_model_len));
}

}  // namespace quatrain::server
