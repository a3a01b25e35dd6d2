// SPDX-License-Identifier: Apache-2.0
#include "server/answer_format.h"

#include "core/error.h"
#include "grammar/builder.h"
#include "server/answer_constraint.h"

namespace quatrain::server {
namespace {

// A model in a loop must not call for ever.
constexpr std::uint32_t kMaxForcedCalls = 32;

// The format, if it is not plain text.
std::optional<JsonField> read_format(const JsonField& root) {
  const auto format = root.member("response_format");
  if (!format) return std::nullopt;
  format->require_object();
  const auto type = format->member("type");
  if (!type)
    throw ApiError(400, "response_format.type: expected a type, found nothing", "response_format");
  const std::string name = type->string();
  if (name == "text") return std::nullopt;
  if (name != "json_object" && name != "json_schema")
    type->reject("\"text\", \"json_object\" or \"json_schema\"");
  return format;
}

void read_tool_choice(const JsonField& root, AnswerForm& form) {
  using Calls = AnswerForm::Calls;
  const auto tools = root.member("tools");
  const bool has_tools = tools && !tools->items(kMaxTools).empty();
  form.calls = has_tools ? Calls::kAllowed : Calls::kNone;
  const auto choice = root.member("tool_choice");
  if (!choice) return;
  const std::string text = choice->value().is_string() ? choice->string() : "";
  if (text == "auto") return;
  if (text == "none") {
    form.calls = Calls::kNone;
    form.hides_tools = true;
    return;
  }
  if (text != "required") {
    const auto type = choice->value().is_object() ? choice->member("type") : std::nullopt;
    const auto function = type ? choice->member("function") : std::nullopt;
    const auto name = function ? function->member("name") : std::nullopt;
    if (!name || type->string() != "function")
      choice->reject("\"auto\", \"none\", \"required\" or a function's name as an object");
    form.function = name->string();
  }
  if (!has_tools) choice->reject("\"auto\" or \"none\" where there are no tools");
  form.calls = Calls::kForced;
}

void add_format(const JsonField& format, grammar::GrammarBuilder& builder) {
  if (format.member("type")->string() == "json_object") return builder.add_object();
  const auto outer = format.member("json_schema");
  if (outer) outer->require_object();
  const auto schema = outer ? outer->member("schema") : std::nullopt;
  if (!schema)
    throw ApiError(400, "response_format.json_schema.schema: expected a schema, found nothing",
                   "response_format");
  builder.add_schema(simdjson::minify(schema->value()), schema->path());
}

void add_tools(const JsonField& root, const AnswerForm& form, const RequestDefaults& defaults,
               grammar::GrammarBuilder& builder) {
  std::vector<grammar::Tool> tools;
  for (const JsonField& item : root.member("tools")->items(kMaxTools)) {
    item.require_object();
    const auto function = item.member("function");
    if (!function) item.reject("an object with a member function");
    function->require_object();
    const auto name = function->member("name");
    if (!name) function->reject("an object with a member name");
    if (!form.function.empty() && name->string() != form.function) continue;
    const auto parameters = function->member("parameters");
    tools.push_back({name->string(), parameters ? simdjson::minify(parameters->value()) : "",
                     function->path() + ".parameters"});
  }
  if (tools.empty())
    throw ApiError(400, "tool_choice.function.name: no tool has this name", "tool_choice");
  builder.add_calls(tools, call_marker(defaults.vocabulary.get()),
                    form.parallel ? kMaxForcedCalls : 1);
}

// What a constrained answer cannot have: it ends where the grammar says.
void refuse_combinations(const std::string& param, const GenerationRequest& request,
                         const RequestDefaults& defaults) {
  const auto refuse = [&](const char* what) {
    throw ApiError(400, fmt::format("{}: {}", param, what), param);
  };
  if (request.ignore_eos) refuse("not together with ignore_eos");
  if (request.sampling.min_tokens > 0) refuse("not together with min_tokens");
  const bool thinks = request.is_chat && request.chat.mode == ThinkingMode::kThinking;
  if (thinks && defaults.vocabulary && !defaults.vocabulary->think_end)
    refuse("this model's vocabulary has no token </think>; only without thinking");
}

}  // namespace

AnswerForm read_answer_form(const JsonField& root, bool is_chat) {
  AnswerForm form;
  form.format = read_format(root);
  if (!is_chat) return form;
  read_tool_choice(root, form);
  if (const auto parallel = root.member("parallel_tool_calls")) form.parallel = parallel->boolean();
  return form;
}

void constrain(const JsonField& root, const AnswerForm& form, const RequestDefaults& defaults,
               GenerationRequest& request) {
  const bool forced = form.calls == AnswerForm::Calls::kForced;
  if (!forced && !form.format) return;
  const std::string param = forced ? "tool_choice" : "response_format";
  refuse_combinations(param, request, defaults);
  try {
    grammar::GrammarBuilder builder(answer_guard());
    if (!forced) add_format(*form.format, builder);
    if (form.calls != AnswerForm::Calls::kNone) add_tools(root, form, defaults, builder);
    request.grammar = builder.build();
    request.vocabulary = defaults.vocabulary;
  } catch (const Error& error) {
    const std::string message = error.what();
    throw ApiError(400, message, message.starts_with("tools") ? "tools" : param);
  }
}

}  // namespace quatrain::server
