// SPDX-License-Identifier: Apache-2.0
// Fuzzes the framing of HTTP. The first byte says how the rest is cut; a request that is read whole
// must be the same when it comes byte by byte.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "server/request_parser.h"

namespace {

using quatrain::server::HttpLimits;
using quatrain::server::RequestParser;

void read(RequestParser& parser, std::string_view bytes, std::size_t piece) {
  std::string in;
  for (std::size_t at = 0; at < bytes.size() && !parser.fault() && !parser.done(); at += piece) {
    in += bytes.substr(at, piece);
    for (std::size_t used = 1; used > 0 && !parser.fault() && !parser.done();) {
      used = parser.feed(in);
      if (used > in.size()) std::abort();
      in.erase(0, used);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const HttpLimits limits{
      .request_line = 256, .header = 1024, .header_count = 16, .body = 2048, .chunks = 64};
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  RequestParser pieces(limits), whole(limits);
  read(pieces, bytes, 1u + data[0]);
  read(whole, bytes, std::max<std::size_t>(1, bytes.size()));
  if (whole.done() != pieces.done()) std::abort();
  if (!whole.done()) return 0;
  const auto &a = whole.request(), &b = pieces.request();
  if (a.body != b.body || a.target != b.target || a.fields != b.fields) std::abort();
  if (a.body.size() > limits.body || a.fields.size() > limits.header_count) std::abort();
  return 0;
}
