// The calls of the CUDA runtime that csrc/cuda_launch.cuh makes, as a list of words. Kernels are not run.
#pragma once
#include <cstddef>
#include <string>

using cudaError_t = int;
using cudaStream_t = void *;
enum { cudaSuccess = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaLaunchAttributeClusterDimension = 4 };
struct dim3 {
  unsigned x, y, z;
};
struct cudaLaunchAttribute {
  int id;
  union {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  unsigned gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute *attrs;
  unsigned numAttrs;
};

inline std::string calls;
inline int failing; // the result of cudaOccupancyMaxActiveClusters

inline cudaError_t cudaSetDevice(int device) { return calls += "device" + std::to_string(device) + " ", 0; }
inline cudaError_t cudaFuncSetAttribute(const void *, int, int bytes) {
  return calls += "shared" + std::to_string(bytes) + " ", 0;
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, const void *, const cudaLaunchConfig_t *) {
  return calls += "occupancy ", *clusters = 66, failing;
}
template <typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*)(Arguments...), Arguments...) {
  return calls += "launch" + std::to_string(config->gridDim) + " ", 0;
}
inline const char *cudaGetErrorString(cudaError_t) { return "an error"; }
