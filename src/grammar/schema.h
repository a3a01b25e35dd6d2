// SPDX-License-Identifier: Apache-2.0
// One JSON schema as it is read: its keywords by name, all of them understood, and what they hold.
//
// Private to the compiler of schemas.
#pragma once

#include <simdjson.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain::grammar {

class Schema {
 public:
  enum class Type : std::uint8_t { kNull, kBoolean, kInteger, kNumber, kString, kArray, kObject };
  using Members = std::map<std::string_view, simdjson::dom::element>;

  /// The largest value of a number with bounds, in its units: 18 digits.
  static constexpr std::int64_t kMostUnits = 999'999'999'999'999'999;

  /// Reads the object `value`; refuses keywords that are not understood. `path` is for messages.
  Schema(const simdjson::dom::element& value, const std::string& path);

  /// The keyword's value; null if it is not there.
  [[nodiscard]] const simdjson::dom::element* find(std::string_view key) const;
  [[nodiscard]] const Members& members() const { return members_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  /// The path of a keyword.
  [[nodiscard]] std::string at(std::string_view key) const;

  /// What `type` lists or, without it, what the other keywords mean; empty: any type.
  [[nodiscard]] std::vector<Type> types() const;
  /// A count such as minItems.
  [[nodiscard]] std::uint32_t count(std::string_view key, std::uint32_t otherwise) const;
  /// A bound such as minimum in units of 10^-fraction, moved inwards to a multiple of the unit.
  [[nodiscard]] std::optional<std::int64_t> bound(std::string_view key, int fraction, bool is_upper,
                                                  bool is_exclusive) const;

 private:
  Members members_;
  std::string path_;
};

/// Whether the value is of one of the types.
bool has_type(const simdjson::dom::element& value, const std::vector<Schema::Type>& types);

/// A client's name as messages show it: not too long.
std::string_view shortened(std::string_view name);

/// The path of a part. Of what is very deep the path says only that it is below.
std::string below(const std::string& path, std::string_view part);
std::string below(const std::string& path, std::size_t index);

template <class Names, class Name>
bool is_among(const Names& names, const Name& name) {
  return std::ranges::find(names, name) != std::end(names);
}

}  // namespace quatrain::grammar
