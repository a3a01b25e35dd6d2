// SPDX-License-Identifier: Apache-2.0
#include "grammar/schema.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "core/error.h"

namespace quatrain::grammar {
namespace {

using simdjson::dom::element;

// They describe or place a schema and say nothing about values. `format` is an annotation unless a
// validator chooses otherwise, and so is `default`.
constexpr std::array<std::string_view, 17> kAnnotations = {
    "title",           "description",  "default",
    "examples",        "example",      "deprecated",
    "readOnly",        "writeOnly",    "$comment",
    "$schema",         "$id",          "format",
    "definitions",     "$defs",        "contentMediaType",
    "contentEncoding", "discriminator"};

constexpr std::array<std::string_view, 21> kUnderstood = {"$ref",
                                                          "anyOf",
                                                          "oneOf",
                                                          "allOf",
                                                          "const",
                                                          "enum",
                                                          "type",
                                                          "properties",
                                                          "required",
                                                          "additionalProperties",
                                                          "items",
                                                          "prefixItems",
                                                          "minItems",
                                                          "maxItems",
                                                          "uniqueItems",
                                                          "minLength",
                                                          "maxLength",
                                                          "minimum",
                                                          "maximum",
                                                          "exclusiveMinimum",
                                                          "exclusiveMaximum"};

// In the order of Schema::Type.
constexpr std::array<std::string_view, 7> kTypes = {"null",   "boolean", "integer", "number",
                                                    "string", "array",   "object"};

}  // namespace

std::string_view shortened(std::string_view name) { return name.substr(0, 64); }

std::string below(const std::string& path, std::string_view part) {
  constexpr std::size_t kLongest = 512;
  if (path.size() <= kLongest) return fmt::format("{}{}", path, part);
  return path.ends_with("…") ? path : path + "…";
}
std::string below(const std::string& path, std::size_t index) {
  return below(path, fmt::format("[{}]", index));
}

Schema::Schema(const element& value, const std::string& path) : path_(path) {
  simdjson::dom::object members;
  if (value.get(members)) fail("{}: expected a schema: an object, true or false", path);
  for (const auto [key, member] : members) {
    if (is_among(kAnnotations, key)) continue;
    if (!is_among(kUnderstood, key))
      fail("{}: the keyword {} is not supported", path, shortened(key));
    if (!members_.emplace(key, member).second)
      fail("{}: the keyword {} is there more than once", path, key);
  }
}

const element* Schema::find(std::string_view key) const {
  const auto it = members_.find(key);
  return it == members_.end() ? nullptr : &it->second;
}

std::string Schema::at(std::string_view key) const { return below(path_, fmt::format(".{}", key)); }

std::vector<Schema::Type> Schema::types() const {
  std::vector<Type> types;
  const auto add = [&](const element& name) {
    std::string_view text;
    const auto* const found = name.get(text) ? kTypes.end() : std::ranges::find(kTypes, text);
    if (found == kTypes.end()) fail("{}: expected the name of a type", at("type"));
    const auto type = static_cast<Type>(found - kTypes.begin());
    if (!is_among(types, type)) types.push_back(type);
  };
  if (const element* const type = find("type")) {
    simdjson::dom::array names;
    if (type->get(names)) {
      add(*type);
    } else {
      for (const element name : names) add(name);
      if (types.empty()) fail("{}: expected at least one type", at("type"));
    }
    return types;
  }
  // Without a type, the keywords say which one is meant.
  const auto has = [&](std::initializer_list<std::string_view> keys) {
    return std::ranges::any_of(keys, [&](auto key) { return find(key) != nullptr; });
  };
  if (has({"properties", "required", "additionalProperties"})) types.push_back(Type::kObject);
  if (has({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}))
    types.push_back(Type::kArray);
  if (has({"minLength", "maxLength"})) types.push_back(Type::kString);
  if (has({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}))
    types.push_back(Type::kNumber);
  return types;
}

std::uint32_t Schema::count(std::string_view key, std::uint32_t otherwise) const {
  const element* const value = find(key);
  if (value == nullptr) return otherwise;
  std::int64_t count = 0;
  if (value->get(count) || count < 0 || count > 1'000'000'000)
    fail("{}: expected a whole number from 0 to 1000000000", at(key));
  return static_cast<std::uint32_t>(count);
}

std::optional<std::int64_t> Schema::bound(std::string_view key, int fraction, bool is_upper,
                                          bool is_exclusive) const {
  const element* const value = find(key);
  if (value == nullptr) return std::nullopt;
  double bound = 0;
  if (value->get(bound)) fail("{}: expected a number", at(key));
  const double unit = std::pow(10.0, fraction);
  // No number with this many digits passes such a bound.
  if (is_upper ? bound * unit >= 1e18 : bound * unit <= -1e18)
    return is_upper ? kMostUnits : -kMostUnits;
  const double most = fraction == 0 ? 9e15 : 1e9;  // the arithmetic below is exact up to here
  if (!(std::abs(bound) <= most)) fail("{}: expected a number from {} to {}", at(key), -most, most);
  // The decimal with this many places that reads as the bound itself, if there is one.
  const double near = std::nearbyint(bound * unit);
  if (near / unit == bound) {
    const auto exact = static_cast<std::int64_t>(near);
    return is_exclusive ? exact + (is_upper ? -1 : 1) : exact;
  }
  return static_cast<std::int64_t>(is_upper ? std::floor(bound * unit) : std::ceil(bound * unit));
}

bool has_type(const element& value, const std::vector<Schema::Type>& types) {
  double number = 0;
  const bool is_number = !value.get(number);
  const auto is = [&](Schema::Type type) {
    switch (type) {
      case Schema::Type::kNull:
        return value.is_null();
      case Schema::Type::kBoolean:
        return value.is_bool();
      case Schema::Type::kInteger:
        return is_number && std::floor(number) == number;
      case Schema::Type::kNumber:
        return is_number;
      case Schema::Type::kString:
        return value.is_string();
      case Schema::Type::kArray:
        return value.is_array();
      case Schema::Type::kObject:
        return value.is_object();
    }
    return false;
  };
  return std::ranges::any_of(types, is);
}

}  // namespace quatrain::grammar
