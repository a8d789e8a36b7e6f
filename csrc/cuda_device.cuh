/* The primitives of an sm_90a device for cuda.cu: numbers, barriers, copies, conversions. No arithmetic of the loss.
 * It has compiled and never run on a GPU. The tests replace it by a version for CPUs (CAPO_DEVICE in cuda.cu): keep the
 * two alike. */
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include "capo.h"
#include "cuda_launch.cuh"

// Of each shape of a block: threads that compute, and vectors that one takes of a chunk; one warp more copies. Rows in
// general run in the first; for those that matter most CAPO_CUDA_SHAPE chooses.
constexpr int SHAPES[3][2] = {{192, 4}, {352, 2}, {192, 5}};
constexpr int RESIDENT = 2;                  // blocks that share a multiprocessor, where their memory allows
constexpr int SHARED_BYTES_EACH = 113 << 10; // that each of two gets: 228 KB less 1 KB that the system takes of each

__device__ inline uint32_t shared_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// A barrier in shared memory. A phase ends when `count` arrivals and all promised bytes are in.
struct Barrier {
  uint64_t state;

  __device__ uint32_t address() const { return shared_address(&state); }

  __device__ void init(int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(count));
  }

  __device__ void arrive() {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(address()) : "memory");
  }

  // One arrival, and a promise of `bytes`.
  __device__ void expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
  }

  // *shared = value and 16 bytes to this barrier, both in block `rank` of the cluster. No fence: pending
  // gradient stores do not delay it.
  __device__ void send(float4 *shared, float4 value, int rank) {
    asm volatile(
        "{ .reg .b32 slot, barrier; mapa.shared::cluster.u32 slot, %0, %2; mapa.shared::cluster.u32 barrier, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [slot], {%3, %4, %5, %6}, [barrier]; }" ::"r"(
            shared_address(shared)),
        "r"(address()), "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
        : "memory");
  }

  // Waits for the end of the phase of this parity; the phase before the first counts as ended.
  __device__ void wait(int parity) {
    uint32_t done = 0;
    while (!done)
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(address()), "r"(parity)
          : "memory");
  }

  // The same, where other blocks send.
  __device__ void wait_cluster(int parity) {
    uint32_t done = 0;
    while (!done)
      asm volatile(
          "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
          "selp.b32 %0, 1, 0, p; }"
          : "=r"(done)
          : "r"(address()), "r"(parity)
          : "memory");
  }

  // `bytes` from device memory into this block's shared memory and to this barrier; all multiples of 16.
  __device__ void copy(void *shared, const void *global, uint32_t bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(address())
                 : "memory");
  }
};

// After Barrier::init, before cluster_sync.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

#define CAPO_REGISTER(name, special)                                                                                   \
  __device__ inline int name() {                                                                                       \
    int value;                                                                                                         \
    asm("mov.u32 %0, %%" special ";" : "=r"(value));                                                                   \
    return value;                                                                                                      \
  }
CAPO_REGISTER(cluster_rank, "cluster_ctarank") // of this block in its cluster
CAPO_REGISTER(cluster_size, "cluster_nctarank")
CAPO_REGISTER(cluster_index, "clusterid.x") // of this cluster in the grid
CAPO_REGISTER(cluster_count, "nclusterid.x")

__device__ inline char *shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// The same, in a register: otherwise the compiler computes the address at every use, in three instructions.
__device__ inline char *kept_shared_memory() {
  char *memory = shared_memory();
  asm volatile("" : "+l"(memory));
  __builtin_assume(__isShared(memory));
  return memory;
}

template <typename T> __device__ T shuffle_xor(T x, int lanes) { return __shfl_xor_sync(0xffffffff, x, lanes); }
// A bit for each lane of the warp.
__device__ inline uint32_t lanes_where(bool x) { return __ballot_sync(0xffffffff, x); }
__device__ inline int bit_count(uint32_t x) { return __popc(x); }
__device__ inline void warp_sync() { __syncwarp(); }
__device__ inline void block_sync() { __syncthreads(); }
// The 32 bits that begin `bits` after the first of `low`.
__device__ inline uint32_t straddle(uint32_t low, uint32_t high, int bits) {
  return __funnelshift_r(low, high, bits);
}

// For data that is read or written once.
__device__ inline uint4 load_vector(const uint4 *p) { return __ldcs(p); }
__device__ inline void store_vector(uint4 *p, uint4 x) { __stcs(p, x); }

// 2^x within 2 ulp, which is 2^-22: under the criterion's 2^-21, and half of the work of exp2f.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger of a and b, of two elements of 16 bits each; a number before NaN.
template <int DTYPE> __device__ uint32_t larger_pair(uint32_t a, uint32_t b) {
  uint32_t pair;
  if (DTYPE == CAPO_BF16) {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  } else {
    asm("max.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  }
  return pair;
}

// Two elements of 16 bits and their values as floats; rounding is to nearest even.
template <int DTYPE> __device__ float2 unpack(uint32_t pair) {
  if (DTYPE == CAPO_BF16) return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  float2 x;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(x.x), "=f"(x.y)
      : "r"(pair));
  return x;
}

template <int DTYPE> __device__ uint32_t pack(float2 x) {
  uint32_t pair;
  if (DTYPE == CAPO_BF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(x.y), "f"(x.x));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(x.y), "f"(x.x));
  }
  return pair;
}
