// SPDX-License-Identifier: Apache-2.0
// The flags of `quatrain serve`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/model_flags.h"
#include "server/http_server.h"
#include "server/service.h"

namespace quatrain::apps {

struct ServeFlags {
  ModelFlags model;
  server::HttpServerOptions http;
  server::ServiceOptions service;
  std::string api_key_file;
  std::string thinking = "on";
  std::string effort = "low";
  std::string effort_table = "preview";
  std::string log_level = "info";
  bool prefix_caching = true;
  std::int64_t prefix_snapshots = 64;
  std::optional<std::int64_t> snapshot_interval;  // none: by backend
  std::int64_t kv_cache_tokens = 0;
  bool log_json = false;
  double simulate = 0;                 // tokens a second of an engine without a model; 0: the model
  std::string simulate_text;           // what it answers; empty: the prompt
  std::int64_t shutdown_timeout = 30;  // seconds
  double header_timeout = 10, body_timeout = 30, idle_timeout = 75, write_timeout = 30;
  double keep_alive = 15, stats_interval = 10;
  std::vector<std::string> ignored;  // what other servers need to be told

  void add_to(CLI::App& app);
  /// Fills what depends on more than one flag or on files. Call once.
  void resolve();

 private:
  void add_server(CLI::App& app);
  void add_limits(CLI::App& app);
  void add_engine(CLI::App& app);
  void add_other(CLI::App& app);
  void read_generation_config();
};

}  // namespace quatrain::apps
