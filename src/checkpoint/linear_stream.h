// SPDX-License-Identifier: Apache-2.0
// LinearStream: linears in a given order, read ahead into a ring of memory by several threads.
//
// Threads read pieces of the next linears, from whichever files these are in, as far as the ring
// has room; the consumer takes finished linears in order and gives their memory back in order.
// Knows files and memory; what becomes of a linear is the consumer's business.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace quatrain {

class LinearStream {
 public:
  /// Starts `threads` readers. `ring` has at least ring_bytes() of `sources`; it, `checkpoint` and
  /// `sources` must outlive the stream.
  LinearStream(const Checkpoint& checkpoint, std::span<const LinearSource> sources,
               std::span<std::byte> ring, int threads);
  ~LinearStream();
  LinearStream(const LinearStream&) = delete;
  LinearStream& operator=(const LinearStream&) = delete;

  /// Whether next() would return at once.
  bool is_ready();
  /// The next linear; waits for it. Its memory stays until release(). Throws what reading or
  /// checking it threw. Holding up to kMaxHeld never keeps the next one from being read; who holds
  /// more must release some while is_ready() is false.
  QuantMatrix next();
  /// Gives back the memory of the oldest linear that next() returned.
  void release();

  static constexpr std::int64_t kAlignment = 4096;
  static constexpr std::int64_t kMaxHeld = 2;  ///< besides the next: an expert has three
  /// Room for the largest linear, and for kMaxHeld + 1 of those that are not exceptionally large;
  /// `wanted` if that is more.
  static std::int64_t ring_bytes(std::span<const LinearSource> sources, std::int64_t wanted);

 private:
  struct Piece {
    const TensorInfo* tensor;
    std::int64_t offset;       // in the tensor
    std::span<std::byte> out;  // in the ring
  };
  struct Item {
    std::int64_t begin = -1;  // in the ring's timeline; −1: no place yet
    std::int64_t bytes = 0;
    std::int64_t issued = 0;  // bytes that readers have taken
    std::int64_t done = 0;    // bytes that are read
    bool ready = false;
    std::exception_ptr error;
    QuantMatrix matrix;
  };

  void read();
  bool place();
  Piece take_piece();
  void finish(std::size_t index);

  const Checkpoint& checkpoint_;
  std::span<const LinearSource> sources_;
  std::span<std::byte> ring_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable work_;
  std::condition_variable progress_;
  std::vector<Item> items_;
  std::size_t reading_ = 0;   // first item of which pieces are left to take
  std::size_t next_ = 0;      // what next() returns
  std::size_t released_ = 0;  // first item whose memory is still in use
  std::int64_t head_ = 0;     // end of the last place given, in the ring's timeline
  bool stop_ = false;

  std::vector<std::jthread> threads_;
};

}  // namespace quatrain
