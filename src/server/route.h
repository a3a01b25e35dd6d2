// SPDX-License-Identifier: Apache-2.0
// A row of the table of paths. Private to the sources of Service.
#pragma once

#include <string_view>

#include "server/service.h"

namespace quatrain::server {

struct Service::Route {
  std::string_view path;
  std::string_view method;
  HttpResponse (Service::*get)(const HttpRequest&);   // answers at once
  HttpResponse (Service::*post)(const HttpRequest&);  // answers on a worker
  bool needs_key;
  bool needs_model;

  [[nodiscard]] bool is_generation() const { return get == nullptr && post == nullptr; }
};

}  // namespace quatrain::server
