#include "backend/cuda/step_graph.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/device.h"

namespace millrace::cuda {

StepGraph::~StepGraph() {
  for (const Known& known : known_) {
    if (known.graph != nullptr) cudaGraphExecDestroy(known.graph);
  }
}

void StepGraph::mix_bytes(const std::byte* bytes, std::size_t count) {
  for (; count > 0;) {
    std::uint64_t word = 0;
    const std::size_t taken = std::min(count, sizeof word);
    std::memcpy(&word, bytes, taken);
    hash_ = (hash_ ^ word) * 0x9e3779b97f4a7c15ull;
    hash_ ^= hash_ >> 29;
    bytes += taken;
    count -= taken;
  }
}

void StepGraph::start_all(cudaStream_t stream) const {
  for (const auto& operation : operations_) MILLRACE_CUDA_CHECK(operation(stream));
}

cudaGraphExec_t StepGraph::capture(cudaStream_t stream) const {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  MILLRACE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  start_all(stream);
  MILLRACE_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  MILLRACE_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  MILLRACE_CUDA_CHECK(cudaGraphDestroy(graph));
  return executable;
}

void StepGraph::run(cudaStream_t stream, bool repeats) {
  if (operations_.empty()) return;
  if (!repeats) {
    start_all(stream);
  } else {
    const auto found = std::ranges::find(known_, hash_, &Known::hash);
    if (found == known_.end()) {
      start_all(stream);
      known_.push_front({.hash = hash_});
      if (known_.size() > kMostKnown) {
        if (known_.back().graph != nullptr) MILLRACE_CUDA_CHECK(cudaGraphExecDestroy(known_.back().graph));
        known_.pop_back();
      }
    } else {
      known_.splice(known_.begin(), known_, found);
      if (found->graph == nullptr) found->graph = capture(stream);
      MILLRACE_CUDA_CHECK(cudaGraphLaunch(found->graph, stream));
    }
  }
  operations_.clear();
  hash_ = 0;
}

}  // namespace millrace::cuda
