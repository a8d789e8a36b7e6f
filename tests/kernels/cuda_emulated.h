// A GPU for csrc/cuda.cu on the CPU: the names of csrc/cuda_device.cuh, with a fiber for each thread. Fibers switch
// where threads wait, in random order; copies and sends land later, in random order; shared memory starts as NaN; one
// cluster runs at a time. So wrong indices, wrong sums, deadlocks and most missing barriers show. What only hardware
// knows doesn't: speed, spills, weakly ordered memory.
#pragma once
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "capo.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

// Small, so that small rows need several chunks, several slots and several blocks.
constexpr int SHAPES[3][2] = {{64, 2}, {32, 4}, {64, 3}};
constexpr int RESIDENT = 2, SHARED_BYTES = 24 << 10, SHARED_BYTES_EACH = 11 << 10, CLUSTERS = 2;

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void require(bool holds, const char *what) {
  if (!holds) throw std::logic_error(what);
}

// ---- threads ----

struct Warp {
  int arrived = 0, syncs = 0;
  double lanes[2][32];
};
struct Block {
  alignas(128) char memory[SHARED_BYTES];
  std::vector<Warp> warps;
  int arrived = 0, syncs = 0;
};
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  int index, count, threads, arrived = 0, syncs = 0;
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int thread, rank;
  bool done = false;
};

inline Cluster *cluster;
inline Fiber *fiber;
inline ucontext_t scheduler;
inline std::function<void()> kernel_call;
inline std::string failure;
inline bool moved; // whether any fiber has done more than wait
inline std::vector<std::function<void()>> in_flight; // copies and sends that have not landed

struct Index {
  int x;
};
#define threadIdx (Index{fiber->thread})
#define blockIdx (Index{cluster->index * cluster_size() + fiber->rank})
#define gridDim (Index{cluster->count * cluster_size()})

template <typename Holds> void wait_until(Holds holds) {
  while (!holds()) swapcontext(&fiber->context, &scheduler);
  moved = true;
}

inline int cluster_rank() { return fiber->rank; }
inline int cluster_size() { return static_cast<int>(cluster->blocks.size()); }
inline int cluster_index() { return cluster->index; }
inline int cluster_count() { return cluster->count; }
inline char *shared_memory() { return cluster->blocks[fiber->rank]->memory; }
inline char *kept_shared_memory() { return shared_memory(); }
inline void publish_barriers() {}

template <typename Group> void meet(Group &group, int all) {
  const int now = group.syncs;
  if (++group.arrived == all) group.arrived = 0, ++group.syncs;
  wait_until([&] { return group.syncs != now; });
}
inline void cluster_sync() { meet(*cluster, cluster->threads * cluster_size()); }
inline Warp &warp() { return cluster->blocks[fiber->rank]->warps[fiber->thread / 32]; }
inline void warp_sync() { meet(warp(), 32); }
inline void block_sync() {
  Block &block = *cluster->blocks[fiber->rank];
  meet(block, cluster->threads);
}
// What each lane of the warp holds.
inline const double *lanes_of(double x) {
  double(&all)[32] = warp().lanes[warp().syncs & 1];
  all[fiber->thread % 32] = x;
  warp_sync();
  return all;
}
template <typename T> T shuffle_xor(T x, int lanes) { return T(lanes_of(x)[fiber->thread % 32 ^ lanes]); }
inline uint32_t lanes_where(bool x) {
  const double *all = lanes_of(x);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= uint32_t(all[lane]) << lane;
  return bits;
}
inline int bit_count(uint32_t x) { return __builtin_popcount(x); }

inline void run_fiber() {
  try {
    kernel_call();
  } catch (const std::exception &error) {
    failure = error.what();
  }
  fiber->done = moved = true;
  setcontext(&scheduler);
}

// Any number of those in flight; within a few calls all of them.
inline void land(std::mt19937 &random) {
  std::shuffle(in_flight.begin(), in_flight.end(), random);
  for (; !in_flight.empty() && random() % 4; in_flight.pop_back()) in_flight.back()(), moved = true;
}

inline void run(Cluster &all, std::mt19937 &random) {
  std::vector<Fiber> fibers(all.threads * all.blocks.size());
  std::vector<Fiber *> alive;
  cluster = &all;
  for (size_t i = 0; i < fibers.size(); ++i) {
    constexpr size_t STACK = 64 << 10;
    Fiber &each = fibers[i];
    each.thread = static_cast<int>(i) % all.threads, each.rank = static_cast<int>(i) / all.threads;
    each.stack.reset(new char[STACK]);
    getcontext(&each.context);
    each.context.uc_stack.ss_sp = each.stack.get(), each.context.uc_stack.ss_size = STACK;
    makecontext(&each.context, run_fiber, 0);
    alive.push_back(&each);
  }
  while (!alive.empty() && failure.empty()) {
    moved = false;
    std::shuffle(alive.begin(), alive.end(), random);
    for (Fiber *each : alive) fiber = each, swapcontext(&scheduler, &each->context), land(random);
    alive.erase(std::remove_if(alive.begin(), alive.end(), [](Fiber *each) { return each->done; }), alive.end());
    if (!moved && in_flight.empty()) failure = "deadlock";
  }
  if (failure.empty() && !in_flight.empty()) failure = "a copy to a block that has exited";
  in_flight.clear();
}

// ---- barriers and copies ----

template <typename T> T *remote(T *shared, int rank) {
  return reinterpret_cast<T *>(cluster->blocks[rank]->memory + (reinterpret_cast<char *>(shared) - shared_memory()));
}

struct Barrier {
  int count, pending, bytes, phase; // arrivals of a phase; those and the bytes that are yet to come

  void init(int arrivals) { count = pending = arrivals, bytes = phase = 0; }
  void add(int arrivals, int promised) {
    pending -= arrivals, bytes += promised;
    require(pending >= 0, "more arrivals than a barrier counts");
    if (!pending && !bytes) pending = count, ++phase;
  }
  void arrive() { add(1, 0); }
  void expect(int promised) { add(1, promised); }
  void wait(int parity) {
    wait_until([&] { return (phase & 1) != parity; });
  }
  void wait_cluster(int parity) { wait(parity); }
  void send(float4 *shared, float4 value, int rank) {
    in_flight.push_back([value, to = remote(shared, rank), barrier = remote(this, rank)] {
      *to = value;
      barrier->add(0, -static_cast<int>(sizeof value));
    });
  }
  void copy(void *shared, const void *global, int size) {
    for (uintptr_t x : {reinterpret_cast<uintptr_t>(shared), reinterpret_cast<uintptr_t>(global), uintptr_t(size)})
      require(x % 16 == 0, "a bulk copy of what is no multiple of 16 bytes");
    in_flight.push_back([this, shared, global, size] {
      memcpy(shared, global, size);
      add(0, -size);
    });
  }
};

inline uint4 load_vector(const uint4 *p) {
  require(reinterpret_cast<uintptr_t>(p) % 16 == 0, "a vector that is not aligned");
  return *p;
}
inline void store_vector(uint4 *p, uint4 x) {
  require(reinterpret_cast<uintptr_t>(p) % 16 == 0, "a vector that is not aligned");
  *p = x;
}

// ---- arithmetic ----


template <typename To, typename From> To bits(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  memcpy(&y, &x, sizeof y);
  return y;
}
// As wrong as a GPU's approximation may be, 2 ulp to either side as the bits of x have it, and exact at 0.
inline float exp2_fast(float x) {
  const uint32_t ulps = bits<uint32_t>(x) * 2654435761u >> 30;
  const float y = exp2f(x);
  if (x == 0.f || !(y < INFINITY)) return y;
  return y < FLT_MIN ? 0.f : bits<float>(bits<uint32_t>(y) + 2 - (ulps == 0 ? 4 : ulps));
}

template <int DTYPE> float widen(uint16_t x) {
  return DTYPE == CAPO_BF16 ? bits<float>(uint32_t(x) << 16) : float(bits<_Float16>(x));
}
template <int DTYPE> uint16_t narrow(float x) {
  if (DTYPE == CAPO_F16) return bits<uint16_t>(_Float16(x));
  const uint32_t all = bits<uint32_t>(x);
  return x == x ? (all + 0x7fff + (all >> 16 & 1)) >> 16 : 0x7fff;
}
template <int DTYPE> float2 unpack(uint32_t pair) { return {widen<DTYPE>(pair), widen<DTYPE>(pair >> 16)}; }
template <int DTYPE> uint32_t pack(float2 x) { return narrow<DTYPE>(x.x) | uint32_t(narrow<DTYPE>(x.y)) << 16; }

template <int DTYPE> uint16_t larger(uint16_t a, uint16_t b) {
  const float x = widen<DTYPE>(a), y = widen<DTYPE>(b);
  return x != x || y > x ? b : a;
}
template <int DTYPE> uint32_t larger_pair(uint32_t a, uint32_t b) {
  return larger<DTYPE>(a, b) | uint32_t(larger<DTYPE>(a >> 16, b >> 16)) << 16;
}
inline uint32_t straddle(uint32_t low, uint32_t high, int bits) {
  return (uint64_t(high) << 32 | low) >> bits;
}

// ---- launches ----

inline int launches = 0;

struct Launch {
  int size, threads, shared, device;
  void *stream;

  template <typename... Parameters, typename... Arguments>
  int operator()(void (*kernel)(Parameters...), int64_t count, const Arguments &...arguments) const {
    std::mt19937 random(0);
    failure.clear();
    ++launches;
    kernel_call = [&] { kernel(arguments...); };
    for (int i = 0; i < count && failure.empty(); ++i) {
      Cluster all{{}, i, static_cast<int>(count), threads};
      for (int rank = 0; rank < size; ++rank) {
        all.blocks.emplace_back(new Block());
        memset(all.blocks.back()->memory, 0xff, shared); // NaN
        all.blocks.back()->warps.resize(threads / 32);
      }
      run(all, random);
    }
    return failure.empty() ? 0 : 1;
  }
  template <typename... Parameters, typename... Arguments>
  int persistent(void (*kernel)(Parameters...), int64_t rows, const Arguments &...arguments) const {
    return (*this)(kernel, std::min<int64_t>(rows, CLUSTERS), arguments...);
  }
};

inline const char *device_error(int) { return failure.c_str(); }
