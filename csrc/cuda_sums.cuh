/* The arithmetic of a row's elements: sums over them, and their gradients. Included by cuda.cu, after the device. */
#pragma once
#include <float.h>
#include <math.h>

#include "cuda_elements.cuh"

namespace {

constexpr int WARP = 32;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
// Stands for infinity where a factor may be 0: 0 * LARGE is 0. Far beyond any exponent, and no product overflows.
constexpr float LARGE = 1e30f;

template <bool SOFTCAP> struct Head {
  float softcap;

  __device__ float cap(float x) const { return SOFTCAP ? softcap * tanhf(x / softcap) : x; }
  // dy/dx
  __device__ float slope(float y) const { return SOFTCAP ? 1.f - (y / softcap) * (y / softcap) : 1.f; }
};

/* 2^(y k - top k) is one fma and one exponential with `base` for top k: the product, rounded. All numbers of a row take
 * the same base, so that its error is a common factor of theirs, 2^low, which division takes out of the sums. Only
 * where the base is small: its error grows with it, and the gradient meets it once more. In elements of 16 bits, for
 * which `DEEP` stands for -inf: 2^(DEEP k - base) is 0, and times any power of it still is. */
template <int DTYPE, bool SOFTCAP> struct Scale {
  static constexpr bool FUSED = DTYPE != CAPO_F32 && !SOFTCAP;
  static constexpr float NEAR = 512.f, LEAST = 0x1p-6f, MOST = 0x1p60f;
  static constexpr uint32_t DEEP = DTYPE == CAPO_BF16 ? 0xe0ade0adu : 0xfbfffbffu; // -1e20 or -65504, twice
  float k, near;

  explicit __device__ Scale(float temperature) : k(LOG2E / temperature) {
    near = FUSED && k >= LEAST && k <= MOST ? NEAR : 0.f;
  }
  __device__ bool fused(float top) const { return FUSED && fabsf(top * k) < near; }
  __device__ float low(float top) const { return fused(top) ? fmaf(top, k, -(top * k)) : 0.f; }
};

// The largest of x, as a tree whose depth is log2(N). A half that is rounded up leaves no element out, whatever N is.
template <int N, typename T, typename Larger> __device__ T largest(const T (&x)[N], Larger larger) {
  T most[N];
  for (int i = 0; i < N; ++i) most[i] = x[i];
#pragma unroll
  for (int left = N; left > 1; left = (left + 1) / 2)
    for (int i = 0; i < left / 2; ++i) most[i] = larger(most[i], most[i + (left + 1) / 2]);
  return most[0];
}

// Sums over some of a row's y, of 2^u and of 2^u u, u = y k - top k + low. The largest y has u = low exactly, so that no
// log-prob exceeds 0. NaN, which maxima drop, stays in the sums.
template <int DTYPE, bool SOFTCAP> struct Sums {
  using E = Element<DTYPE>;
  using Scaled = Scale<DTYPE, SOFTCAP>;
  static constexpr int W = E::WIDTH;
  float top = -FLT_MAX, low = 0.f, sum = 0.f, weighted = 0.f;

  __device__ void raise(float to, Scaled scale) {
    const float to_low = scale.low(to);
    const float lift = fminf(fmaf(to - top, scale.k, low - to_low), LARGE), factor = exp2_fast(-lift);
    weighted = factor * (weighted - lift * sum);
    sum *= factor;
    top = to, low = to_low;
  }

  // N vectors: load(i), of which the first left(i) elements count.
  template <int N, typename Load, typename Left>
  __device__ void add(Load load, Left left, Head<SOFTCAP> head, Scaled scale) {
    if constexpr (Scaled::FUSED) {
      uint4 vectors[N];
      for (int i = 0; i < N; ++i) vectors[i] = cut<DTYPE>(load(i), left(i));
      uint32_t pairs[4 * N];
      memcpy(pairs, vectors, sizeof vectors);
      const float2 most = unpack<DTYPE>(largest(pairs, larger_pair<DTYPE>));
      const float to = fmaxf(top, fmaxf(most.x, most.y));
      if (scale.fused(to)) return raise(to, scale), add_fused(pairs, scale);
    }
#pragma unroll 1
    for (int i = 0; i < N; ++i) add_exact(load(i), left(i), head, scale);
  }

  template <int N> __device__ void add_fused(uint32_t (&pairs)[N], Scaled scale) {
    const float base = top * scale.k;
    float second_sum = 0.f, second_weighted = 0.f;
    for (int i = 0; i < N; ++i) {
      const float2 y = unpack<DTYPE>(raised_pair<DTYPE>(pairs[i], Scaled::DEEP));
      const float u = fmaf(y.x, scale.k, -base), e = exp2_fast(u), v = fmaf(y.y, scale.k, -base), f = exp2_fast(v);
      sum += e, second_sum += f;
      weighted = fmaf(e, u, weighted), second_weighted = fmaf(f, v, second_weighted);
    }
    sum += second_sum, weighted += second_weighted;
  }

  __device__ void add_exact(uint4 vector, int left, Head<SOFTCAP> head, Scaled scale) {
    float y[W];
    E::unpack(vector, y);
    for (int i = 0; i < W; ++i) y[i] = i < left ? head.cap(y[i]) : -INFINITY;
    raise(fmaxf(top, largest(y, fmaxf)), scale);
    for (int i = 0; i < W; ++i) {
      const float u = fmaf(y[i] - top, scale.k, low), e = exp2_fast(u);
      sum += e;
      weighted = fmaf(e, fmaxf(u, -LARGE), weighted);
    }
  }

  // Of all lanes of the warp.
  __device__ void merge_warp(Scaled scale) {
    float to = top;
    for (int lanes = WARP / 2; lanes; lanes /= 2) to = fmaxf(to, shuffle_xor(to, lanes));
    raise(to, scale);
    add_lanes();
  }

  // What `count` warps were told, to every lane.
  __device__ void gather(const float4 *told, int count, Scaled scale) {
    const int lane = threadIdx.x % WARP;
    for (int i = lane; i < count; i += WARP) top = fmaxf(top, told[i].x);
    for (int lanes = WARP / 2; lanes; lanes /= 2) top = fmaxf(top, shuffle_xor(top, lanes));
    low = scale.low(top);
    for (int i = lane; i < count; i += WARP) {
      Sums one;
      one.top = told[i].x, one.low = scale.low(one.top), one.sum = told[i].y, one.weighted = told[i].z;
      one.raise(top, scale);
      sum += one.sum, weighted += one.weighted;
    }
    add_lanes();
  }

  __device__ void add_lanes() {
    for (int lanes = WARP / 2; lanes; lanes /= 2)
      sum += shuffle_xor(sum, lanes), weighted += shuffle_xor(weighted, lanes);
  }

  // The same with low = 0. The sum is exactly 1 where it is of one element.
  __device__ void settle() {
    const float one = exp2_fast(low);
    sum /= one;
    weighted = fmaf(-low, sum, weighted / one);
    low = 0.f;
  }
};

// A vector of logits -> their gradients by 2^u (constant + linear u), but for the target's.
template <int DTYPE, bool SOFTCAP> struct Curve {
  Head<SOFTCAP> head;
  float top, k, constant, linear;

  __device__ uint4 operator()(uint4 vector) const {
    using E = Element<DTYPE>;
    float x[E::WIDTH];
    E::unpack(vector, x);
    for (float &value : x) {
      const float y = head.cap(value), u = (y - top) * k;
      value = exp2_fast(u) * fmaf(linear, fmaxf(u, -LARGE), constant) * head.slope(y);
    }
    return E::pack(x);
  }
};

// The same where linear is 0 and the base is small: the constant goes into the exponent, its sign into the result.
template <int DTYPE> struct Power {
  float k, offset;
  uint32_t sign;

  __device__ Power(float top, float k, float constant) : k(k) {
    offset = fmaf(-top, k, log2f(fabsf(constant)));
    sign = constant < 0.f ? 0x80008000u : 0u;
  }
  __device__ uint32_t pair(uint32_t x) const {
    const float2 y = unpack<DTYPE>(x);
    return pack<DTYPE>({exp2_fast(fmaf(y.x, k, offset)), exp2_fast(fmaf(y.y, k, offset))}) ^ sign;
  }
  __device__ uint4 operator()(uint4 v) const { return {pair(v.x), pair(v.y), pair(v.z), pair(v.w)}; }
};

} // namespace
