// SPDX-License-Identifier: Apache-2.0
// Sends many requests to an HTTP server at a rate or a concurrency, and notes when what came back.
//
// One thread and one epoll carry thousands of streams; a connection is used again when the server
// keeps it. Plain HTTP/1.1 only.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace quatrain::apps {

struct LoadOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;
  std::string path = "/v1/completions";
  std::string method = "POST";
  std::string api_key;           ///< empty: none is sent
  std::int64_t requests = 0;     ///< in all
  std::int64_t concurrency = 0;  ///< at once; 0: no bound
  double rate = 0;               ///< started a second, at random moments; 0: as many as may run
  double seconds = 0;            ///< no request is started after that; 0: all are
  double timeout = 600;          ///< seconds after which a request is given up
  std::uint64_t seed = 0;        ///< of the random moments
  std::function<std::string(std::int64_t)> body;       ///< of request i; none for GET
  std::function<void(std::int64_t done)> on_progress;  ///< about twice a second
};

/// What became of one request. Times are seconds; a moment is one after `begin`.
struct LoadRecord {
  double begin = 0;       ///< since the run began: when it was sent, or a connection asked for
  int status = 0;         ///< 0: there was no response
  bool complete = false;  ///< a response, or a stream with its [DONE], came to its end
  double first_byte = 0;
  double end = 0;
  std::vector<float> tokens;           ///< moments of the events that had text
  std::int64_t prompt_tokens = 0;      ///< as the server counts
  std::int64_t completion_tokens = 0;  ///< the same; 0 if it did not say
};

/// Runs until every request has ended. Throws Error when the host is unknown or nothing listens.
std::vector<LoadRecord> run_load(const LoadOptions& options);

}  // namespace quatrain::apps
