// SPDX-License-Identifier: Apache-2.0
// Small JSON helpers: quoting for writers. Reading is simdjson's, in the file that needs it.
#pragma once

#include <string>
#include <string_view>

namespace quatrain {

/// `text` as a JSON string with its quotes: control characters, quotes and backslashes escaped as
/// Python's json.dumps(ensure_ascii=False) does; everything else is copied.
std::string json_quote(std::string_view text);

}  // namespace quatrain
