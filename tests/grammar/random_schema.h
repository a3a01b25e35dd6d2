// SPDX-License-Identifier: Apache-2.0
// Random schemas, documents that satisfy them, and texts that a grammar allows.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "grammar/grammar_harness.h"

namespace quatrain::grammar::testing {

class RandomSchema {
 public:
  explicit RandomSchema(std::uint32_t seed) : random_(seed) {
    root_ = schema(3);
    if (random_() % 3 == 0) {
      root_["$defs"]["tree"] = {
          {"type", "object"},
          {"properties",
           {{"v", {{"type", "integer"}}},
            {"next", {{"anyOf", {{{"$ref", "#/$defs/tree"}}, {{"type", "null"}}}}}}}},
          {"required", {"v", "next"}},
          {"additionalProperties", false}};
    }
  }

  const Json& root() const { return root_; }

  /// A document that satisfies the schema, written as the grammar wants it: listed properties
  /// first, in the schema's order.
  Json document() { return document(root_); }

  std::uint32_t random() { return static_cast<std::uint32_t>(random_()); }

  Json any(int depth) {
    switch (random() % (depth > 0 ? 7u : 5u)) {
      case 0:
        return nullptr;
      case 1:
        return random() % 2 == 0;
      case 2:
        return static_cast<int>(random() % 2001) - 1000;
      case 3:
        return (static_cast<double>(random() % 20001) - 10000) / 37.0;
      case 4:
        return string(0, 6);
      case 5: {
        Json list = Json::array();
        for (unsigned n = random() % 4; n > 0; --n) list.push_back(any(depth - 1));
        return list;
      }
      default: {
        Json object = Json::object();
        for (unsigned n = random() % 4; n > 0; --n) object[string(0, 4)] = any(depth - 1);
        return object;
      }
    }
  }

 private:
  std::string string(std::size_t min, std::size_t max) {
    static const std::vector<std::string> kOnes = {
        "a", "b", "Z", "7", " ", "\"", "\\", "/", "é", "日", "🦉", "\n", "\t", "{", ":", "\x01"};
    std::string text;
    for (std::size_t n = min + random() % (max - min + 1); n > 0; --n)
      text += kOnes[random() % kOnes.size()];
    return text;
  }

  Json schema(int depth) {
    const bool is_root = depth == 3;
    switch (random() % (depth > 0 ? 12u : 7u)) {
      case 0:
        return {{"type", "boolean"}, {"title", "flag"}};
      case 1: {
        Json number = {{"type", random() % 2 == 0 ? "integer" : "number"}};
        if (random() % 2 == 0) number["minimum"] = static_cast<int>(random() % 40) - 20;
        if (random() % 2 == 0) number["maximum"] = static_cast<int>(random() % 40) + 20;
        return number;
      }
      case 2: {
        Json text = {{"type", "string"}};
        if (random() % 2 == 0) text["minLength"] = random() % 3;
        if (random() % 2 == 0) text["maxLength"] = 2 + random() % 5;
        return text;
      }
      case 3: {
        Json values = Json::array();
        for (unsigned n = 1 + random() % 4; n > 0; --n) values.push_back(any(1));
        return {{"enum", values}};
      }
      case 4:
        return {{"const", any(2)}};
      case 5:
        return {{"type", {"string", "null", "integer"}}};
      case 6:
        return is_root ? schema(depth) : Json(true);
      case 7:
      case 8:
        return array(depth);
      case 9: {
        Json parts = Json::array();
        for (unsigned n = 1 + random() % 3; n > 0; --n) parts.push_back(schema(depth - 1));
        return {{random() % 2 == 0 ? "anyOf" : "oneOf", parts}};
      }
      default:
        return object(depth);
    }
  }

  Json array(int depth) {
    Json list = {{"type", "array"}, {"items", schema(depth - 1)}};
    if (random() % 2 == 0) list["minItems"] = random() % 3;
    if (random() % 2 == 0) list["maxItems"] = 2 + random() % 3;
    if (random() % 3 == 0) list["prefixItems"] = {schema(depth - 1), schema(depth - 1)};
    return list;
  }

  Json object(int depth) {
    static const std::vector<std::string> kNames = {"a", "ab", "abc", "b\"", "é", "x y", "n\n"};
    Json properties = Json::object(), required = Json::array();
    for (const std::string& name : kNames) {
      if (random() % 2 == 0) continue;
      properties[name] = schema(depth - 1);
      if (random() % 2 == 0) required.push_back(name);
    }
    Json object = {{"type", "object"}, {"properties", properties}, {"required", required}};
    if (random() % 2 == 0) object["additionalProperties"] = false;
    if (random() % 4 == 0) object["additionalProperties"] = schema(0);
    return object;
  }

  Json document(const Json& s) {
    if (s.is_boolean()) return any(2);
    if (s.contains("const")) return s["const"];
    const auto pick = [&](const Json& list) -> const Json& { return list[random() % list.size()]; };
    if (s.contains("enum")) return pick(s["enum"]);
    for (const char* key : {"anyOf", "oneOf"})
      if (s.contains(key)) return document(pick(s[key]));
    const std::string type = s["type"].is_array() ? pick(s["type"]) : s["type"];
    if (type == "null") return nullptr;
    if (type == "boolean") return random() % 2 == 0;
    if (type == "string") return string(s.value("minLength", 0u), s.value("maxLength", 9u));
    if (type == "array") return list(s);
    if (type == "object") return members(s);
    const int low = s.value("minimum", -500), high = s.value("maximum", 500);
    const int whole = low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
    if (type == "integer" || whole == high) return whole;
    return whole + static_cast<double>(random() % 8) / 8;
  }

  Json list(const Json& s) {
    Json out = Json::array();
    const unsigned min = s.value("minItems", 0u), max = s.value("maxItems", min + 3);
    const Json prefix = s.value("prefixItems", Json::array());
    for (unsigned n = min + random() % (max - min + 1); out.size() < n;)
      out.push_back(document(out.size() < prefix.size() ? prefix[out.size()] : s["items"]));
    return out;
  }

  Json members(const Json& s) {
    Json out = Json::object();
    for (const auto& [name, schema] : s["properties"].items()) {
      const bool needed = std::ranges::find(s["required"], Json(name)) != s["required"].end();
      if (needed || random() % 2 == 0) out[name] = document(schema);
    }
    const bool nothing_listed = s["properties"].empty() && !s.contains("additionalProperties");
    const Json others = s.value("additionalProperties", Json(nothing_listed));
    if (others != Json(false))
      for (unsigned n = random() % 3; n > 0; --n)
        if (const std::string name = "a" + string(1, 3); !s["properties"].contains(name))
          out[name] = document(others);
    return out;
  }

  std::mt19937 random_;
  Json root_;
};

/// The document in several spellings that all have the same order.
inline std::vector<std::string> spellings(const Json& document) {
  std::vector<std::string> out = {document.dump(), document.dump(2), document.dump(1, '\t'),
                                  document.dump(-1, ' ', true)};
  // json.dumps of Python: spaces behind separators.
  std::string spaced;
  bool in_string = false;
  for (std::size_t i = 0; i < out[0].size(); ++i) {
    const char c = out[0][i];
    spaced += c;
    if (in_string && c == '\\') spaced += out[0][++i];
    if (c == '"') in_string = !in_string;
    if (!in_string && (c == ',' || c == ':')) spaced += ' ';
  }
  out.push_back(spaced);
  return out;
}

/// A text of the grammar, byte by byte at random; ends are taken more often than they come.
inline std::string random_text(const std::shared_ptr<const Grammar>& grammar,
                               std::mt19937& random) {
  static const std::string kEnders = "\"}],\n<";
  Automaton automaton(grammar);
  std::vector<Automaton::Thread> threads, next;
  automaton.start(threads);
  std::string text;
  for (;;) {
    const bool ends = std::ranges::any_of(threads, [&](auto t) { return automaton.may_end(t); });
    if (ends && random() % 3 == 0) return text;
    std::vector<std::uint8_t> bytes;
    for (int b = 0; b < 256; ++b) {
      next.clear();
      automaton.step(threads, static_cast<std::uint8_t>(b), next);
      if (!next.empty()) bytes.push_back(static_cast<std::uint8_t>(b));
    }
    if (bytes.empty()) {
      EXPECT_TRUE(ends) << "a dead end: " << text;
      return text;
    }
    const auto may_come = [&](char c) {
      return std::ranges::find(bytes, static_cast<std::uint8_t>(c)) != bytes.end();
    };
    // Raw text ends where a tag begins.
    const char ender = may_come('\xFF')                       ? '\xFF'
                       : text.ends_with('<') && may_come('/') ? '/'
                                                              : kEnders[random() % kEnders.size()];
    std::uint8_t byte = bytes[random() % bytes.size()];
    if (random() % 4 != 0 && may_come(ender)) byte = static_cast<std::uint8_t>(ender);
    next.clear();
    automaton.step(threads, byte, next);
    threads.swap(next);
    automaton.compact(threads);
    text += static_cast<char>(byte);
  }
}

}  // namespace quatrain::grammar::testing
