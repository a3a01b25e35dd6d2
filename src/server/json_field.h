// SPDX-License-Identifier: Apache-2.0
// Members of a JSON request, read with their type and range checked; faults name the field.
//
// Private to the readers of requests: it names simdjson types.
#pragma once

#include <fmt/format.h>
#include <simdjson.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"

namespace quatrain::server {

/// A value with its path, such as "messages[0].role".
class JsonField {
 public:
  JsonField(simdjson::dom::element value, std::string path)
      : value_(value), path_(std::move(path)) {}

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const simdjson::dom::element& value() const { return value_; }

  [[noreturn]] void reject(std::string_view expected) const {
    std::string found = simdjson::minify(value_);
    if (found.size() > 60) found = "a longer value";
    throw ApiError(400, fmt::format("{}: expected {}, found {}", path_, expected, found), path_);
  }

  /// A member; nothing when it is missing or null.
  [[nodiscard]] std::optional<JsonField> member(std::string_view key) const {
    simdjson::dom::element found;
    if (value_.at_key(key).get(found) || found.is_null()) return std::nullopt;
    return JsonField(found, path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key));
  }

  [[nodiscard]] std::string string() const {
    std::string_view text;
    if (value_.get(text)) reject("a string");
    return std::string(text);
  }
  [[nodiscard]] bool boolean() const {
    bool on = false;
    if (value_.get(on)) reject("true or false");
    return on;
  }
  [[nodiscard]] std::int64_t integer(std::int64_t low, std::int64_t high) const {
    std::int64_t n = 0;
    if (value_.get(n) || n < low || n > high)
      reject(fmt::format("an integer from {} to {}", low, high));
    return n;
  }
  [[nodiscard]] float number(double low, double high) const {
    double x = 0;
    if (value_.get(x) || !(x >= low && x <= high))
      reject(fmt::format("a number from {} to {}", low, high));
    return static_cast<float>(x);
  }
  [[nodiscard]] std::vector<JsonField> items(std::size_t most) const {
    simdjson::dom::array elements;
    if (value_.get(elements)) reject("an array");
    std::vector<JsonField> fields;
    for (const simdjson::dom::element item : elements) {
      if (fields.size() == most)
        throw ApiError(400, fmt::format("{}: expected at most {} items", path_, most), path_);
      fields.emplace_back(item, fmt::format("{}[{}]", path_, fields.size()));
    }
    return fields;
  }
  void require_object() const {
    if (!value_.is_object()) reject("an object");
  }

 private:
  simdjson::dom::element value_;
  std::string path_;
};

}  // namespace quatrain::server
