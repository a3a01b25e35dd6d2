// SPDX-License-Identifier: Apache-2.0
// What tests of grammars share: compiling, matching texts byte by byte, and a checker of schemas
// that has nothing in common with the compiler.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "grammar/automaton.h"
#include "grammar/builder.h"
#include "grammar/token_matcher.h"

namespace quatrain::grammar::testing {

using Json = nlohmann::ordered_json;

inline std::shared_ptr<const TextGuard> markup_guard() {
  const std::vector<std::string> markup = {"<｜", "｜DSML", "|DSML"};
  return std::make_shared<TextGuard>(markup);
}

inline std::shared_ptr<const Grammar> grammar_of(const Json& schema,
                                                 std::shared_ptr<const TextGuard> guard = nullptr) {
  GrammarBuilder builder(guard ? guard : markup_guard());
  builder.add_schema(schema.dump(), "schema");
  return builder.build();
}

inline std::shared_ptr<const Grammar> object_grammar() {
  GrammarBuilder builder(markup_guard());
  builder.add_object();
  return builder.build();
}

/// The message of the refusal; empty if the schema is taken.
inline std::string refusal_of(const Json& schema) {
  try {
    grammar_of(schema);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

/// How many bytes of the text the grammar takes, one more if it may also end behind them.
inline std::size_t taken(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  Automaton automaton(grammar);
  std::vector<Automaton::Thread> threads, next;
  automaton.start(threads);
  for (std::size_t i = 0; i < text.size(); ++i) {
    next.clear();
    automaton.step(threads, static_cast<std::uint8_t>(text[i]), next);
    if (next.empty()) return i;
    threads.swap(next);
    if (i % 7 == 0) automaton.compact(threads);
  }
  const bool ends = std::ranges::any_of(threads, [&](auto t) { return automaton.may_end(t); });
  return text.size() + (ends ? 1 : 0);
}

inline bool accepts(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  return taken(grammar, text) == text.size() + 1;
}

inline std::size_t characters(const std::string& text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

inline bool has_type(const Json& value, const std::string& type) {
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_boolean();
  if (type == "string") return value.is_string();
  if (type == "array") return value.is_array();
  if (type == "object") return value.is_object();
  if (type == "number") return value.is_number();
  return value.is_number() && std::floor(value.get<double>()) == value.get<double>();
}

/// Whether a value satisfies a schema, by the definition of each keyword. `root` resolves
/// references; oneOf counts as anyOf.
inline bool is_valid(const Json& value, const Json& schema, const Json& root) {
  if (schema.is_boolean()) return schema.get<bool>();
  const auto with = [&](const char* key) -> const Json* {
    const auto it = schema.find(key);
    return it == schema.end() ? nullptr : &*it;
  };
  if (const Json* at = with("$ref")) {
    const auto place = at->get<std::string>().substr(1);
    return is_valid(value, place.empty() ? root : root.at(Json::json_pointer(place)), root);
  }
  for (const char* key : {"anyOf", "oneOf", "allOf"})
    if (const Json* parts = with(key))
      if (std::ranges::none_of(*parts, [&](const Json& s) { return is_valid(value, s, root); }))
        return false;
  if (const Json* only = with("const"); only != nullptr && !(*only == value)) return false;
  if (const Json* only = with("enum");
      only != nullptr && std::ranges::find(*only, value) == only->end())
    return false;
  if (const Json* type = with("type")) {
    const Json types = type->is_array() ? *type : Json::array({*type});
    if (std::ranges::none_of(types, [&](const Json& t) { return has_type(value, t); }))
      return false;
  }
  if (value.is_number()) {
    const double x = value.get<double>();
    if (const Json* low = with("minimum"); low != nullptr && x < low->get<double>()) return false;
    if (const Json* high = with("maximum"); high != nullptr && x > high->get<double>())
      return false;
    if (const Json* low = with("exclusiveMinimum"); low != nullptr && x <= low->get<double>())
      return false;
    if (const Json* high = with("exclusiveMaximum"); high != nullptr && x >= high->get<double>())
      return false;
  }
  if (value.is_string()) {
    const std::size_t n = characters(value.get<std::string>());
    if (const Json* min = with("minLength"); min != nullptr && n < min->get<std::size_t>())
      return false;
    if (const Json* max = with("maxLength"); max != nullptr && n > max->get<std::size_t>())
      return false;
  }
  if (value.is_array()) {
    if (const Json* min = with("minItems");
        min != nullptr && value.size() < min->get<std::size_t>())
      return false;
    if (const Json* max = with("maxItems");
        max != nullptr && value.size() > max->get<std::size_t>())
      return false;
    const Json* prefix = with("prefixItems");
    const std::size_t fixed = prefix == nullptr ? 0 : prefix->size();
    for (std::size_t i = 0; i < value.size(); ++i)
      if (i < fixed ? !is_valid(value[i], (*prefix)[i], root)
                    : with("items") != nullptr && !is_valid(value[i], *with("items"), root))
        return false;
  }
  if (value.is_object()) {
    const Json* properties = with("properties");
    if (const Json* required = with("required"))
      for (const Json& name : *required)
        if (!value.contains(name.get<std::string>())) return false;
    for (const auto& [key, member] : value.items()) {
      const bool is_listed = properties != nullptr && properties->contains(key);
      if (is_listed && !is_valid(member, (*properties)[key], root)) return false;
      if (!is_listed && with("additionalProperties") != nullptr &&
          !is_valid(member, *with("additionalProperties"), root))
        return false;
    }
  }
  return true;
}

inline bool is_valid(const Json& value, const Json& schema) {
  return is_valid(value, schema, schema);
}

}  // namespace quatrain::grammar::testing
