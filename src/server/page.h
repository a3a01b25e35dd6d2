// SPDX-License-Identifier: Apache-2.0
// The page at "/": one HTML text that needs nothing from elsewhere. Its source is page.html.
#pragma once

#include <string_view>

namespace quatrain::server {

extern const std::string_view kPage;

}  // namespace quatrain::server
