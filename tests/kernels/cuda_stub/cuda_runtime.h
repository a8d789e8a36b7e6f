// The calls of the CUDA runtime that csrc/cuda_launch.cuh makes, as a list of words. Kernels are not run.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
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
inline std::map<const void *, size_t> allowed; // bytes of shared memory of a kernel's block
inline int failing; // the result of cudaOccupancyMaxActiveClusters

inline cudaError_t cudaSetDevice(int device) { return calls += "device" + std::to_string(device) + " ", 0; }
inline cudaError_t cudaFuncSetAttribute(const void *kernel, int, int bytes) {
  return calls += "shared" + std::to_string(bytes) + " ", allowed[kernel] = bytes, 0;
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, const void *, const cudaLaunchConfig_t *) {
  return calls += "occupancy ", *clusters = 66, failing;
}
template <typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Arguments...), Arguments...) {
  const auto found = allowed.find(reinterpret_cast<const void *>(kernel));
  if (config->dynamicSmemBytes > (found == allowed.end() ? 48 << 10 : found->second)) return 1;
  return calls += "launch" + std::to_string(config->gridDim) + " ", 0;
}
inline const char *cudaGetErrorString(cudaError_t) { return "an error"; }

// Memory of the host in place of the device's, for csrc/selftest.cu.
enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
inline cudaError_t cudaMalloc(void **memory, size_t bytes) { return *memory = malloc(bytes), 0; }
inline cudaError_t cudaFree(void *memory) { return free(memory), 0; }
inline cudaError_t cudaMemset(void *memory, int byte, size_t bytes) { return memset(memory, byte, bytes), 0; }
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, int) { return memcpy(to, from, bytes), 0; }
inline cudaError_t cudaDeviceSynchronize() { return 0; }
