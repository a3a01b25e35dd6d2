// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/linear_stream.h"

#include <algorithm>

#include "core/error.h"

namespace quatrain {
namespace {

// What one read asks for: large enough for a disk, small enough to share a tensor among threads.
constexpr std::int64_t kPieceBytes = std::int64_t{8} << 20;
// A linear above this is exceptional (embedding, head) and may fill the ring alone.
constexpr std::int64_t kLargeBytes = std::int64_t{128} << 20;

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + LinearStream::kAlignment - 1) / LinearStream::kAlignment *
         LinearStream::kAlignment;
}

std::int64_t scale_bytes(const LinearSource& source) {
  return source.scale != nullptr ? source.scale->bytes : 0;
}

// Scales follow the values on a boundary of their own.
std::int64_t scales_at(const LinearSource& source) { return aligned(source.weight->bytes); }

std::int64_t item_bytes(const LinearSource& source) {
  return scales_at(source) + aligned(scale_bytes(source));
}

}  // namespace

std::int64_t LinearStream::ring_bytes(std::span<const LinearSource> sources, std::int64_t wanted) {
  std::int64_t bytes = aligned(wanted);
  for (const LinearSource& source : sources) {
    const std::int64_t item = item_bytes(source);
    // A place may begin only where it does not wrap, which can waste as much again.
    bytes = std::max(bytes, item > kLargeBytes ? item : 2 * (kMaxHeld + 1) * item);
  }
  return bytes;
}

LinearStream::LinearStream(const Checkpoint& checkpoint, std::span<const LinearSource> sources,
                           std::span<std::byte> ring, int threads)
    : checkpoint_(checkpoint), sources_(sources), ring_(ring), items_(sources.size()) {
  QT_CHECK(std::ssize(ring) >= ring_bytes(sources, 0), "a ring of {} bytes for linears of up to {}",
           ring.size(), ring_bytes(sources, 0));
  for (std::size_t i = 0; i < sources.size(); ++i) items_[i].bytes = item_bytes(sources[i]);
  for (int t = 0; t < threads; ++t) threads_.emplace_back([this] { read(); });
}

LinearStream::~LinearStream() {
  {
    const std::scoped_lock lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
}

bool LinearStream::is_ready() {
  const std::scoped_lock lock(mutex_);
  return next_ < items_.size() && items_[next_].ready;
}

QuantMatrix LinearStream::next() {
  std::unique_lock lock(mutex_);
  QT_CHECK(next_ < items_.size(), "a stream of {} linears was asked for another", items_.size());
  Item& item = items_[next_];
  progress_.wait(lock, [&] { return item.ready; });
  ++next_;
  if (item.error) std::rethrow_exception(item.error);
  return item.matrix;
}

void LinearStream::release() {
  {
    const std::scoped_lock lock(mutex_);
    QT_CHECK(released_ < next_, "released a linear that was not taken");
    ++released_;
  }
  work_.notify_all();
}

// Gives the item to be read a place in the ring; false when there is no room yet.
bool LinearStream::place() {
  Item& item = items_[reading_];
  if (item.begin >= 0) return true;
  const std::int64_t capacity = std::ssize(ring_);
  const std::int64_t at = head_ % capacity;
  const std::int64_t begin = at + item.bytes <= capacity ? head_ : head_ - at + capacity;
  const std::int64_t oldest = released_ < reading_ ? items_[released_].begin : begin;
  if (begin + item.bytes - oldest > capacity) return false;
  item.begin = begin;
  head_ = begin + item.bytes;
  const LinearSource& source = sources_[reading_];
  std::byte* data = ring_.data() + begin % capacity;
  item.matrix = {.name = source.name,
                 .format = source.format,
                 .rows = source.rows,
                 .cols = source.cols,
                 .dtype = source.weight->dtype,
                 .values = data,
                 .scale_dtype = source.scale_dtype(),
                 .scales = data + scales_at(source)};
  return true;
}

// The next bytes of the item to be read, first its values, then its scales.
LinearStream::Piece LinearStream::take_piece() {
  Item& item = items_[reading_];
  const LinearSource& source = sources_[reading_];
  const bool values = item.issued < source.weight->bytes;
  const TensorInfo* tensor = values ? source.weight : source.scale;
  const std::int64_t offset = values ? item.issued : item.issued - source.weight->bytes;
  const std::int64_t count = std::min(kPieceBytes, tensor->bytes - offset);
  std::byte* data = ring_.data() + item.begin % std::ssize(ring_);
  std::byte* out = data + (values ? 0 : scales_at(source)) + offset;
  item.issued += count;
  if (item.issued == source.weight->bytes + scale_bytes(source)) ++reading_;
  return {tensor, offset, {out, static_cast<std::size_t>(count)}};
}

// Scalars and checks of an item whose bytes are all there.
void LinearStream::finish(std::size_t index) {
  std::exception_ptr error;
  try {
    checkpoint_.finish(sources_[index], items_[index].matrix);
  } catch (...) {
    error = std::current_exception();
  }
  {
    const std::scoped_lock lock(mutex_);
    if (!items_[index].error) items_[index].error = error;
    items_[index].ready = true;
  }
  progress_.notify_all();
}

void LinearStream::read() {
  for (;;) {
    std::unique_lock lock(mutex_);
    work_.wait(lock, [&] { return stop_ || reading_ == items_.size() || place(); });
    if (stop_ || reading_ == items_.size()) return;
    const std::size_t index = reading_;
    const Piece piece = take_piece();
    lock.unlock();

    std::exception_ptr error;
    try {
      checkpoint_.read_part(*piece.tensor, piece.offset, piece.out);
    } catch (...) {
      error = std::current_exception();
    }

    lock.lock();
    Item& item = items_[index];
    if (error && !item.error) item.error = error;
    item.done += std::ssize(piece.out);
    const bool complete = item.done == sources_[index].weight->bytes + scale_bytes(sources_[index]);
    lock.unlock();
    if (complete) finish(index);
  }
}

}  // namespace quatrain
