/* The arithmetic of a row's elements: sums over them, and their gradients. Included by cuda.cu, after the device. */
#pragma once
#include <float.h>
#include <math.h>

#include "cuda_elements.cuh"

namespace {

constexpr int WARP = 32;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
// Replaces infinity where a factor may be 0: 0 * LARGE is 0. Far beyond any exponent, and no product overflows.
constexpr float LARGE = 1e30f;

template <bool SOFTCAP> struct Head {
  float softcap;

  __device__ float cap(float x) const { return SOFTCAP ? softcap * tanhf(x / softcap) : x; }
  // dy/dx
  __device__ float slope(float y) const { return SOFTCAP ? 1.f - (y / softcap) * (y / softcap) : 1.f; }
};

/* 2^(y k - top k) is one fma and one exponential with `base` for top k: the product, rounded. All numbers of a row take
 * the same base, so that its error is a common factor of theirs, 2^low, which division takes out of the sums. Only
 * where the base is small: its error grows with it and enters the gradient too. And only for elements of 16
 * bits, where k is small enough for LOW to act as -inf: 2^(LOW k - base) is 0. */
template <int DTYPE, bool SOFTCAP> struct Scale {
  static constexpr bool FUSED = DTYPE != CAPO_F32 && !SOFTCAP;
  static constexpr float NEAR = 512.f, LEAST = 0x1p-6f;
  float k, near;

  explicit __device__ Scale(float temperature) : k(LOG2E / temperature) {
    near = FUSED && k >= LEAST ? NEAR : 0.f;
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

  // N vectors: load(i), whose first left(i) elements are counted.
  template <int N, typename Load, typename Left>
  __device__ void add(Load load, Left left, Head<SOFTCAP> head, Scaled scale) {
    if constexpr (Scaled::FUSED)
      if (add_fused<N>(load, left, scale)) return;
    constexpr int SOME = Scaled::FUSED || SOFTCAP ? 1 : N; // at once; more only in the common, short case
#pragma unroll 1
    for (int i = 0; i < N; i += SOME)
      add_exact<SOME>([&](int j) { return load(i + j); }, [&](int j) { return left(i + j); }, head, scale);
  }

  // True if the sums are valid: 0 * -inf may have made one NaN.
  template <int N, typename Load, typename Left> __device__ bool add_fused(Load load, Left left, Scaled scale) {
    uint4 vectors[N];
    for (int i = 0; i < N; ++i) vectors[i] = cut<DTYPE>(load(i), left(i));
    uint32_t pairs[4 * N];
    memcpy(pairs, vectors, sizeof vectors);
    const float2 most = unpack<DTYPE>(largest(pairs, larger_pair<DTYPE>));
    Sums one = *this, two;
    one.raise(fmaxf(top, fmaxf(most.x, most.y)), scale);
    const float base = one.top * scale.k;
    for (uint32_t pair : pairs) {
      const float2 y = unpack<DTYPE>(pair);
      one.count(fmaf(y.x, scale.k, -base));
      two.count(fmaf(y.y, scale.k, -base));
    }
    one.sum += two.sum, one.weighted += two.weighted;
    if (!scale.fused(one.top) || one.weighted != one.weighted) return false;
    *this = one;
    return true;
  }

  __device__ void count(float u) {
    const float e = exp2_fast(u);
    sum += e;
    weighted = fmaf(e, u, weighted);
  }

  template <int N, typename Load, typename Left>
  __device__ void add_exact(Load load, Left left, Head<SOFTCAP> head, Scaled scale) {
    float y[N * W];
    for (int i = 0; i < N; ++i) {
      float(&some)[W] = reinterpret_cast<float(&)[W]>(y[i * W]);
      E::unpack(load(i), some);
      for (int j = 0; j < W; ++j) some[j] = j < left(i) ? head.cap(some[j]) : -INFINITY;
    }
    raise(fmaxf(top, largest(y, fmaxf)), scale);
    for (float each : y) {
      const float u = fmaf(each - top, scale.k, low), e = exp2_fast(u);
      sum += e;
      weighted = fmaf(e, fmaxf(u, -LARGE), weighted);
    }
  }

  // Over all lanes of the warp.
  __device__ void merge_warp(Scaled scale) {
    float to = top;
    for (int lanes = WARP / 2; lanes; lanes /= 2) to = fmaxf(to, shuffle_xor(to, lanes));
    raise(to, scale);
    add_lanes();
  }

  // Combines the partial sums of `count` warps, in every lane.
  __device__ void gather(const float4 *partials, int count, Scaled scale) {
    const int lane = threadIdx.x % WARP;
    for (int i = lane; i < count; i += WARP) top = fmaxf(top, partials[i].x);
    for (int lanes = WARP / 2; lanes; lanes /= 2) top = fmaxf(top, shuffle_xor(top, lanes));
    low = scale.low(top);
    for (int i = lane; i < count; i += WARP) {
      Sums one;
      one.top = partials[i].x, one.low = scale.low(one.top), one.sum = partials[i].y, one.weighted = partials[i].z;
      one.raise(top, scale);
      sum += one.sum, weighted += one.weighted;
    }
    add_lanes();
  }

  __device__ void add_lanes() {
    for (int lanes = WARP / 2; lanes; lanes /= 2)
      sum += shuffle_xor(sum, lanes), weighted += shuffle_xor(weighted, lanes);
  }

  // The same with low = 0. The sum of a single element is exactly 1.
  __device__ void settle() {
    const float one = exp2_fast(low);
    sum /= one;
    weighted = fmaf(-low, sum, weighted / one);
    low = 0.f;
  }
};

// A vector of logits -> their gradients, 2^u (constant + linear u), except the target's.
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
