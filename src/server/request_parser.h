// SPDX-License-Identifier: Apache-2.0
// Bytes from a client → one HTTP request. Framing only: no sockets, no time, no meaning of paths.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http_message.h"

namespace quatrain::server {

/// Why a request cannot be read. The connection is of no use afterwards.
struct HttpFault {
  int status = 400;
  std::string message;
};

/// Reads one request. What two readers could understand differently is refused: bare line ends,
/// folded lines, more than one length, other codings than "chunked".
class RequestParser {
 public:
  explicit RequestParser(const HttpLimits& limits);
  ~RequestParser();
  RequestParser(const RequestParser&) = delete;
  RequestParser& operator=(const RequestParser&) = delete;

  /// Reads from the front of `input` and returns how many bytes it took. The rest must be given
  /// again, with more behind it.
  std::size_t feed(std::string_view input);

  [[nodiscard]] bool header_done() const;
  [[nodiscard]] bool done() const;
  [[nodiscard]] const std::optional<HttpFault>& fault() const;

  /// Complete but for the body once header_done().
  [[nodiscard]] HttpRequest& request();
  /// As declared; none for a chunked body.
  [[nodiscard]] std::optional<std::uint64_t> content_length() const;
  /// The client waits for "100 Continue" before it sends the body.
  [[nodiscard]] bool expects_continue() const;

 private:
  class Impl;  // Boost.Beast stays in the source file
  std::unique_ptr<Impl> impl_;
};

}  // namespace quatrain::server
