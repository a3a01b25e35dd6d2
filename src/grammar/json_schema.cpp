// SPDX-License-Identifier: Apache-2.0
// JSON schemas → rules. What is not understood is refused by its name and path, never left out.
#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "core/error.h"
#include "core/json.h"
#include "grammar/draft.h"
#include "grammar/schema.h"

namespace quatrain::grammar {
namespace {

using simdjson::dom::element;
using Type = Schema::Type;

constexpr std::size_t kMaxSchemaDepth = 64;
constexpr std::size_t kMaxReference = 1024;  // bytes

class Compiler {
 public:
  Compiler(Draft& draft, std::string_view json, const std::string& path)
      : draft_(draft), root_path_(path) {
    auto error = parser_.allocate(std::max<std::size_t>(json.size(), 64), kMaxSchemaDepth);
    if (!error) error = parser_.parse(json.data(), json.size()).get(root_);
    if (error) fail("{}: {}", path, simdjson::error_message(error));
  }

  RuleId run() {
    const RuleId rule = reference("#", root_path_);
    // Not where they are met: a chain of references may be long.
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      const Target target = targets_[i];
      compile_into(target.rule, target.schema, target.path);
    }
    return rule;
  }

 private:
  struct Target {
    RuleId rule;
    element schema;
    std::string path;
  };

  RuleId compile(const element& value, const std::string& path);
  void compile_into(RuleId rule, const element& value, const std::string& path);
  RuleId reference(const std::string& pointer, const std::string& path);
  element resolve_pointer(std::string_view pointer, const std::string& path) const;

  bool compile_combination(RuleId rule, const Schema& schema);
  void refuse_beside(const Schema& schema, std::string_view key,
                     std::initializer_list<std::string_view> allowed = {}) const;
  void compile_values(RuleId rule, const Schema& schema);
  void add_constant(RuleId rule, const element& value, const std::string& path, TextsLeaf& texts);

  void compile_type(RuleId rule, Type type, const Schema& schema);
  void compile_object(RuleId rule, const Schema& schema);
  std::map<std::string_view, std::uint32_t> add_properties(Members& object, const Schema& schema);
  void compile_array(RuleId rule, const Schema& schema);
  void compile_string(RuleId rule, const Schema& schema);
  void compile_number(RuleId rule, bool is_integer, const Schema& schema);

  Draft& draft_;
  std::string root_path_;
  simdjson::dom::parser parser_;
  element root_;
  std::unordered_map<std::string, RuleId> references_;
  std::vector<Target> targets_;  // of the references
};

// ---- Schemas and references ----

RuleId Compiler::compile(const element& value, const std::string& path) {
  const RuleId rule = draft_.add_rule(path);
  compile_into(rule, value, path);
  return rule;
}

void Compiler::compile_into(RuleId rule, const element& value, const std::string& path) {
  bool anything = false;
  if (!value.get(anything)) {
    if (anything) draft_.add_alternatives(rule, draft_.any_value(false));
    return;
  }
  const Schema schema(value, path);
  if (compile_combination(rule, schema)) return;
  if (schema.find("const") != nullptr || schema.find("enum") != nullptr)
    return compile_values(rule, schema);
  const std::vector<Type> types = schema.types();
  if (types.empty()) draft_.add_alternatives(rule, draft_.any_value(false));
  for (const Type type : types) compile_type(rule, type, schema);
}

// The rule of the schema that "#/…" means; run() fills it.
RuleId Compiler::reference(const std::string& pointer, const std::string& path) {
  if (const auto known = references_.find(pointer); known != references_.end())
    return known->second;
  const element target = resolve_pointer(pointer, path);
  const std::string place = pointer == "#" ? root_path_ : fmt::format("{}{}", root_path_, pointer);
  const RuleId rule = draft_.add_rule(place);
  references_.emplace(pointer, rule);
  targets_.push_back({rule, target, place});
  return rule;
}

element Compiler::resolve_pointer(std::string_view pointer, const std::string& path) const {
  if (pointer.size() > kMaxReference || !(pointer == "#" || pointer.starts_with("#/")))
    fail("{}.$ref: expected a place in this schema, such as #/$defs/name", path);
  element target;
  const std::string_view inside = pointer.substr(1);
  if ((inside.empty() ? simdjson::simdjson_result<element>(element(root_))
                      : root_.at_pointer(inside))
          .get(target))
    fail("{}.$ref: there is nothing at {}", path, shortened(pointer));
  return target;
}

void Compiler::refuse_beside(const Schema& schema, std::string_view key,
                             std::initializer_list<std::string_view> allowed) const {
  for (const auto& [other, value] : schema.members())
    if (other != key && !is_among(allowed, other))
      fail("{}: {} beside {} is not supported", schema.path(), other, key);
}

// $ref, anyOf, oneOf and allOf; false if the schema has none of them.
bool Compiler::compile_combination(RuleId rule, const Schema& schema) {
  for (const std::string_view key : {"$ref", "anyOf", "oneOf", "allOf"}) {
    const element* value = schema.find(key);
    if (value == nullptr) continue;
    refuse_beside(schema, key);
    if (key == "$ref") {
      std::string_view pointer;
      if (value->get(pointer)) fail("{}: expected a string", schema.at(key));
      const RuleId target = reference(std::string(pointer), schema.path());
      draft_.add_alternatives(rule, target);
      return true;
    }
    simdjson::dom::array parts;
    if (value->get(parts) || parts.size() == 0) fail("{}: expected schemas", schema.at(key));
    if (key == "allOf" && parts.size() > 1)
      fail("{}: more than one schema is not supported", schema.at(key));
    std::size_t i = 0;
    for (const element part : parts) {
      const RuleId target = compile(part, below(schema.at(key), i++));
      draft_.add_alternatives(rule, target);
    }
    return true;
  }
  return false;
}

// ---- const and enum ----

void Compiler::compile_values(RuleId rule, const Schema& schema) {
  const bool is_constant = schema.find("const") != nullptr;
  const std::string_view key = is_constant ? "const" : "enum";
  refuse_beside(schema, key, {"type"});
  const std::vector<Type> types = schema.types();
  TextsLeaf texts;
  const auto add = [&](const element& value, const std::string& path) {
    if (types.empty() || has_type(value, types)) add_constant(rule, value, path, texts);
  };
  if (is_constant) {
    add(*schema.find(key), schema.at(key));
  } else {
    simdjson::dom::array values;
    if (schema.find(key)->get(values)) fail("{}: expected an array", schema.at(key));
    if (values.size() > draft_.limits.texts)
      fail("{}: there are more than {} values", schema.at(key), draft_.limits.texts);
    std::size_t i = 0;
    for (const element value : values) add(value, below(schema.at(key), i++));
  }
  if (!texts.texts.empty()) draft_.add_value(rule, std::move(texts));
}

// A fixed value: a scalar joins `texts`, arrays and objects become their own nodes.
void Compiler::add_constant(RuleId rule, const element& value, const std::string& path,
                            TextsLeaf& texts) {
  const auto part = [&](const element& item, const std::string& place) {
    const RuleId inner = draft_.add_rule(place);
    TextsLeaf own;
    add_constant(inner, item, place, own);
    if (!own.texts.empty()) draft_.add_value(inner, std::move(own));
    return inner;
  };
  simdjson::dom::array items;
  simdjson::dom::object members;
  if (!value.get(items)) {
    Items array = empty_array();
    for (const element item : items)
      array.prefix.push_back(part(item, below(path, array.prefix.size())));
    array.min = array.max = static_cast<std::uint32_t>(array.prefix.size());
    draft_.add_value(rule, std::move(array));
  } else if (!value.get(members)) {
    Members object = empty_object();
    std::set<std::string_view> seen;
    for (const auto [key, member] : members) {
      if (!seen.insert(key).second) fail("{}: a key is there more than once", path);
      const std::string prefix = json_quote(key) + ":";
      draft_.add_text(prefix, path);
      const RuleId inner = part(member, below(path, fmt::format(".{}", shortened(key))));
      object.entries.push_back({prefix, object.size(), inner});
      object.required.push_back(true);
    }
    draft_.add_value(rule, std::move(object));
  } else {
    std::string_view text;
    const bool is_string = !value.get(text);
    TextsLeaf::Text entry{is_string ? json_quote(text) : simdjson::minify(value), std::string(text),
                          is_string};
    draft_.add_text(entry.json, path);
    texts.texts.push_back(std::move(entry));
  }
}

// ---- Types ----

void Compiler::compile_type(RuleId rule, Type type, const Schema& schema) {
  TextsLeaf words;
  switch (type) {
    case Type::kNull:
      words.texts.push_back({"null", "", false});
      return draft_.add_value(rule, std::move(words));
    case Type::kBoolean:
      for (const char* word : {"true", "false"}) words.texts.push_back({word, "", false});
      return draft_.add_value(rule, std::move(words));
    case Type::kInteger:
      return compile_number(rule, true, schema);
    case Type::kNumber:
      return compile_number(rule, false, schema);
    case Type::kString:
      return compile_string(rule, schema);
    case Type::kArray:
      return compile_array(rule, schema);
    case Type::kObject:
      return compile_object(rule, schema);
  }
}

void Compiler::compile_string(RuleId rule, const Schema& schema) {
  StringLeaf leaf;
  leaf.min = schema.count("minLength", 0);
  leaf.max = schema.count("maxLength", kNoLimit);
  draft_.add_value(rule, std::move(leaf));
}

void Compiler::compile_number(RuleId rule, bool is_integer, const Schema& schema) {
  NumberLeaf leaf;
  if (is_integer) leaf.fraction = 0;
  const int fraction = is_integer ? 0 : 6;
  const auto low = schema.bound("minimum", fraction, false, false);
  const auto above = schema.bound("exclusiveMinimum", fraction, false, true);
  const auto high = schema.bound("maximum", fraction, true, false);
  const auto below = schema.bound("exclusiveMaximum", fraction, true, true);
  if (low || above || high || below) {
    leaf.form = NumberLeaf::Form::kFixed;
    leaf.fraction = fraction;
    leaf.whole = 18 - fraction;
    leaf.low = std::max(low.value_or(-Schema::kMostUnits), above.value_or(-Schema::kMostUnits));
    leaf.high = std::min(high.value_or(Schema::kMostUnits), below.value_or(Schema::kMostUnits));
  }
  draft_.add_value(rule, leaf);
}

// ---- Arrays and objects ----

void Compiler::compile_array(RuleId rule, const Schema& schema) {
  bool is_unique = false;
  if (const element* const unique = schema.find("uniqueItems");
      unique != nullptr && (unique->get(is_unique) || is_unique))
    fail("{}: the keyword uniqueItems is not supported", schema.path());
  Items array = empty_array();
  array.min = schema.count("minItems", 0);
  array.max = schema.count("maxItems", kNoLimit);
  if (const element* const prefix = schema.find("prefixItems")) {
    simdjson::dom::array parts;
    if (prefix->get(parts)) fail("{}: expected schemas", schema.at("prefixItems"));
    for (const element part : parts) {
      const std::size_t i = array.prefix.size();
      array.prefix.push_back(compile(part, below(schema.at("prefixItems"), i)));
    }
  }
  const element* const items = schema.find("items");
  array.rest = items != nullptr ? compile(*items, schema.at("items")) : draft_.any_value(false);
  draft_.add_value(rule, std::move(array));
}

// Adds the listed properties; returns where each is.
std::map<std::string_view, std::uint32_t> Compiler::add_properties(Members& object,
                                                                   const Schema& schema) {
  std::map<std::string_view, std::uint32_t> places;
  const element* const properties = schema.find("properties");
  if (properties == nullptr) return places;
  simdjson::dom::object members;
  if (properties->get(members)) fail("{}: expected an object", schema.at("properties"));
  if (members.size() > draft_.limits.properties)
    fail("{}: there are more than {} properties", schema.at("properties"),
         draft_.limits.properties);
  for (const auto [key, value] : members) {
    const std::string path = below(schema.at("properties"), fmt::format(".{}", shortened(key)));
    if (!places.emplace(key, object.size()).second)
      fail("{}: the property is there more than once", path);
    const std::string prefix = json_quote(key) + ":";
    draft_.add_text(prefix, path);
    object.entries.push_back({prefix, object.size(), compile(value, path)});
    object.required.push_back(false);
  }
  return places;
}

void Compiler::compile_object(RuleId rule, const Schema& schema) {
  Members object = empty_object();
  const std::map<std::string_view, std::uint32_t> places = add_properties(object, schema);
  if (const element* const required = schema.find("required")) {
    simdjson::dom::array names;
    if (required->get(names)) fail("{}: expected an array", schema.at("required"));
    for (const element name : names) {
      std::string_view key;
      if (name.get(key)) fail("{}: expected strings", schema.at("required"));
      const auto place = places.find(key);
      if (place == places.end())
        fail("{}: {} is not among the properties", schema.at("required"), shortened(key));
      object.required[place->second] = true;
    }
  }
  // Where nothing is said about other members: none beside listed ones, any where none is listed.
  const element* const others = schema.find("additionalProperties");
  if (others != nullptr)
    object.extra = compile(*others, schema.at("additionalProperties"));
  else if (object.size() == 0)
    object.extra = draft_.any_value(false);
  if (object.extra != kNoRule) {
    std::vector<std::string_view> names;
    for (const auto& [name, place] : places) names.push_back(name);
    StringLeaf key;
    key.excludes = !names.empty();
    key.excluded = ByteTrie(names);
    object.extra_key = draft_.add_node(std::move(key));
  }
  draft_.add_value(rule, std::move(object));
}

}  // namespace

RuleId add_schema(Draft& draft, std::string_view json, const std::string& path) {
  return Compiler(draft, json, path).run();
}

}  // namespace quatrain::grammar
