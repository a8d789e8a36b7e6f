/* The host's side of a launch on one device. It has compiled and never run on a GPU; the tests count its calls of the
 * CUDA runtime. */
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include <map>
#include <mutex>
#include <tuple>

constexpr int SHARED_BYTES = 227 << 10; // the most that one block gets

struct Launch {
  int cluster, threads, shared; // blocks of a cluster, threads and bytes of shared memory of each
  int device;
  void *stream;

  // A cudaError_t. The library has a CUDA runtime of its own, which does not see the device that torch's has chosen.
  template <typename... Parameters, typename... Arguments>
  int operator()(void (*kernel)(Parameters...), int64_t clusters, const Arguments &...arguments) const {
    if (cudaError_t error = cudaSetDevice(device)) return error;
    cudaLaunchAttribute size;
    cudaLaunchConfig_t config = configure(size, clusters);
    return cudaLaunchKernelEx(&config, kernel, arguments...);
  }

  // The same, with no more clusters than the device holds at a time: each of them loops over its rows.
  template <typename... Parameters, typename... Arguments>
  int persistent(void (*kernel)(Parameters...), int64_t rows, const Arguments &...arguments) const {
    int resident = 0;
    if (cudaError_t error = find_resident(reinterpret_cast<const void *>(kernel), &resident)) return error;
    return (*this)(kernel, rows < resident ? rows : resident, arguments...);
  }

private:
  // Prepares the kernel for this device and finds the clusters that it holds. Done once for each, for it takes the host
  // longer than a launch.
  cudaError_t find_resident(const void *kernel, int *resident) const {
    static std::mutex mutex;
    static std::map<std::tuple<int, const void *, int, int>, int> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find({device, kernel, cluster, shared});
    if (found != known.end()) return *resident = found->second, cudaSuccess;
    cudaLaunchAttribute size;
    cudaLaunchConfig_t config = configure(size, 1);
    cudaError_t error = cudaSetDevice(device);
    // Not `shared`: a narrower row's would forbid the wider ones that are known already.
    if (!error) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);
    if (!error) error = cudaOccupancyMaxActiveClusters(resident, kernel, &config);
    if (!error) known[{device, kernel, cluster, shared}] = *resident;
    return error;
  }

  cudaLaunchConfig_t configure(cudaLaunchAttribute &size, int64_t clusters) const {
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    return {static_cast<unsigned>(clusters * cluster), static_cast<unsigned>(threads), static_cast<size_t>(shared),
            static_cast<cudaStream_t>(stream), &size, 1};
  }
};

inline const char *device_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
