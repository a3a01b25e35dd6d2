// SPDX-License-Identifier: Apache-2.0
// Fuzzes the readers of request bodies: they return checked data or throw ApiError.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/api_error.h"
#include "server/api_request.h"

namespace {

void check(const quatrain::server::GenerationRequest& request) {
  const auto& s = request.sampling;
  const bool ok = request.n >= 1 && request.n <= 128 && s.temperature >= 0 && s.temperature <= 2 &&
                  s.top_p > 0 && s.top_p <= 1 && s.top_k >= 0 && s.min_tokens >= 0 &&
                  s.logprobs <= 20 && request.stop.size() <= 16;
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace quatrain::server;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  RequestDefaults defaults;
  defaults.max_model_len = 2048;
  defaults.vocab_size = 4096;
  const auto attempt = [](auto&& read) {
    try {
      read();
    } catch (const ApiError& error) {
      if (error.status() != 400) std::abort();
    }
  };
  attempt([&] { check(read_completion(body, defaults)); });
  attempt([&] { check(read_chat(body, defaults)); });
  attempt([&] { read_tokenize(body, defaults); });
  attempt([&] { read_detokenize(body, defaults); });
  return 0;
}
