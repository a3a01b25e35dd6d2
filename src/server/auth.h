// SPDX-License-Identifier: Apache-2.0
// API keys. Neither the comparison nor the number of keys tried depends on how much of a key is
// right.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain::server {

/// Keeps hashes only; compares all of them, in constant time.
class ApiKeys {
 public:
  explicit ApiKeys(const std::vector<std::string>& keys);

  /// No key is needed.
  [[nodiscard]] bool empty() const { return hashes_.empty(); }
  [[nodiscard]] bool accepts(std::string_view key) const;

 private:
  using Hash = std::array<unsigned char, 32>;
  static Hash hash(std::string_view key);

  std::vector<Hash> hashes_;
};

/// `prefix` and 24 random characters, unguessable: ids of requests and of tool calls.
std::string random_id(std::string_view prefix);

}  // namespace quatrain::server
