// SPDX-License-Identifier: Apache-2.0
// Recorded steps as CUDA graphs.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_ops.h"

namespace quatrain {
namespace {

class GraphRecording final : public Ops::Recording {
 public:
  GraphRecording(cudaGraphExec_t graph, cudaStream_t stream) : graph_(graph), stream_(stream) {}
  ~GraphRecording() override { cudaGraphExecDestroy(graph_); }
  GraphRecording(const GraphRecording&) = delete;
  GraphRecording& operator=(const GraphRecording&) = delete;

  void replay() override { QT_CUDA(cudaGraphLaunch(graph_, stream_)); }

 private:
  cudaGraphExec_t graph_;
  cudaStream_t stream_;
};

}  // namespace

std::unique_ptr<Ops::Recording> CudaOps::record(const std::function<void()>& body) {
  QT_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  QT_CUDA(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  cuda::check(status, "cudaGraphInstantiate");
  QT_CUDA(cudaGraphUpload(executable, stream_));
  return std::make_unique<GraphRecording>(executable, stream_);
}

}  // namespace quatrain
