// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 requests and responses as plain data, and the bounds on what a client may send.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quatrain::server {

struct HttpLimits {
  std::size_t request_line = 8 << 10;  // bytes
  std::size_t header = 32 << 10;       // bytes, request line not counted
  std::size_t header_count = 100;
  std::size_t body = 32 << 20;  // bytes, after chunks are joined
  std::size_t chunks = 100'000;
};

using HttpFields = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string target;  // origin form: path and query
  bool is_http11 = true;
  bool keep_alive = true;
  HttpFields fields;  // names in lower case, in the order they came
  std::string body;
  std::string peer;  // address of the client

  /// The target without its query.
  [[nodiscard]] std::string_view path() const {
    return std::string_view(target).substr(0, target.find('?'));
  }
  /// The value of the first field with this name (lower case); nullptr when there is none.
  [[nodiscard]] const std::string* field(std::string_view name) const {
    for (const auto& [key, value] : fields)
      if (key == name) return &value;
    return nullptr;
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  HttpFields fields = {};
  bool close = false;  // the connection ends with this response
};

/// "Not Found" for 404.
std::string_view reason_phrase(int status);

}  // namespace quatrain::server
