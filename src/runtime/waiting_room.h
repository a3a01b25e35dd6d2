// SPDX-License-Identifier: Apache-2.0
// WaitingRoom: the account of requests that have not started, bounded in requests and in tokens.
#pragma once

#include <cstdint>
#include <string>

#include "core/error.h"

namespace quatrain {

/// Not guarded by itself: the engines keep it under their mutex.
class WaitingRoom {
 public:
  /// Throws Error if either bound is below 1.
  WaitingRoom(std::int64_t max_requests, std::int64_t max_tokens)
      : max_requests_(max_requests), max_tokens_(max_tokens) {
    if (max_requests < 1 || max_tokens < 1)
      fail("the queue's bounds are {} requests and {} tokens: expected at least 1 of each",
           max_requests, max_tokens);
  }

  /// Whether a prompt of so many tokens may wait. One longer than the bound may when it is alone.
  bool has_room(std::int64_t tokens) const {
    return requests_ < max_requests_ && (requests_ == 0 || tokens_ + tokens <= max_tokens_);
  }
  void enter(std::int64_t tokens) {
    ++requests_;
    tokens_ += tokens;
  }
  void leave(std::int64_t requests, std::int64_t tokens) {
    requests_ -= requests;
    tokens_ -= tokens;
  }

  std::int64_t requests() const { return requests_; }
  std::int64_t tokens() const { return tokens_; }
  /// Why there is no room.
  std::string describe() const {
    return fmt::format("{} requests with {} tokens are waiting", requests_, tokens_);
  }

 private:
  std::int64_t max_requests_;
  std::int64_t max_tokens_;
  std::int64_t requests_ = 0;
  std::int64_t tokens_ = 0;
};

}  // namespace quatrain
