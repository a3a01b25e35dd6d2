// SPDX-License-Identifier: Apache-2.0
// A clock made of CUDA events.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_ops.h"

namespace quatrain {
namespace {

class EventClock final : public OpClock {
 public:
  EventClock(cudaStream_t stream, std::int64_t points) : stream_(stream) {
    events_.resize(static_cast<std::size_t>(points), nullptr);
    for (cudaEvent_t& event : events_) QT_CUDA(cudaEventCreate(&event));
  }
  ~EventClock() override {
    for (const cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  EventClock(const EventClock&) = delete;
  EventClock& operator=(const EventClock&) = delete;

  void mark() override {
    QT_CHECK(used_ < events_.size(), "a clock of {} points has no more", events_.size());
    // An external event becomes a node of the graph that a capture makes, and keeps its time.
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    QT_CUDA(cudaStreamIsCapturing(stream_, &status));
    const unsigned flags =
        status == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : cudaEventRecordDefault;
    QT_CUDA(cudaEventRecordWithFlags(events_[used_++], stream_, flags));
  }

  void restart() override { used_ = 0; }

  std::vector<double> intervals() override {
    QT_CUDA(cudaStreamSynchronize(stream_));
    std::vector<double> out;
    for (std::size_t i = 1; i < used_; ++i) {
      float milliseconds = 0;
      QT_CUDA(cudaEventElapsedTime(&milliseconds, events_[i - 1], events_[i]));
      out.push_back(1e3 * static_cast<double>(milliseconds));
    }
    return out;
  }

 private:
  cudaStream_t stream_;
  std::vector<cudaEvent_t> events_;
  std::size_t used_ = 0;
};

}  // namespace

std::unique_ptr<OpClock> CudaOps::make_clock(std::int64_t points) {
  return std::make_unique<EventClock>(stream_, points);
}

}  // namespace quatrain
