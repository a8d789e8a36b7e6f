/* Vectors of one instruction set, in the extensions of GCC and Clang, and the operations of cpu_rows.cpp: dtypes,
 * exponential, cap. */
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu_rows.h"

#ifdef __FAST_MATH__
#error "NaN and infinite logits need IEEE arithmetic: compile without -ffast-math"
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

typedef float Float __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Word __attribute__((vector_size(4 * WIDTH)));

struct Pair {
  Float a, b;
};

constexpr int64_t PAIR = 2 * WIDTH;
constexpr double LN2 = 0.6931471805599453;

INLINE Float splat(float x) { return x - Float{}; }

/* y where either is NaN, as the x86 instruction returns. */
INLINE Float larger(Float x, Float y) { return x > y ? x : y; }

/* Non-temporal if the machine supports it: a cache line of the gradient is then not read before it is written. */
INLINE void stream(void *p, Word x) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i *)p, (__m512i)x);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i *)p, (__m256i)x);
#elif defined(__x86_64__)
  _mm_stream_si128((__m128i *)p, (__m128i)x);
#else
  memcpy(p, &x, sizeof x);
#endif
}

INLINE void put(void *p, Word x, bool past) {
  if (past) return stream(p, x);
  memcpy(p, &x, sizeof x);
}

struct Float32 {
  typedef float Element;
  static constexpr Element ONE = 1;
  static INLINE Pair load(const Element *p) {
    Pair x;
    memcpy(&x.a, p, sizeof x.a);
    memcpy(&x.b, p + WIDTH, sizeof x.b);
    return x;
  }
  static INLINE void store(Element *p, Pair x, bool past = false) {
    put(p, (Word)x.a, past);
    put(p + WIDTH, (Word)x.b, past);
  }
};

/* Entries 0, 2, 4, ... are the low halves of 32-bit words and make the first vector, 1, 3, 5, ... the second. */
struct BFloat16 {
  typedef uint16_t Element;
  static constexpr Element ONE = 0x3f80;
  static INLINE Pair load(const Element *p) {
    Word words;
    memcpy(&words, p, sizeof words);
    return {(Float)(words << 16), (Float)(words & 0xffff0000)};
  }
  /* To nearest, ties to even. A NaN stays one if its low half is 0. */
  static INLINE Word round(Float x) { return (Word)x + ((Word)x >> 16 & 1) + 0x7fff; }
  static INLINE void store(Element *p, Pair x, bool past = false) {
    put(p, round(x.a) >> 16 | (round(x.b) & 0xffff0000), past);
  }
};

/* exp(d / temperature) for d <= 0, or NaN; 0 below `lowest`. It is 2^t with t = d k, k in two parts. */
#if defined(__AVX512F__)

/* n is t rounded to 32nds: 2^floor(n) times 2^(n - floor(n)) from a table, times a polynomial of t - n,
 * 6e-8 off at most. 32 n is in the low bits of `shifted`. */
struct Exp {
  const float k, k_low, lowest;
  const Float low, high; /* 2^(j / 32) for j < 16, and from there on. */
  INLINE explicit Exp(double temperature)
      : k((float)(1 / (temperature * LN2))), k_low((float)(1 / (temperature * LN2) - k)),
        lowest((float)(-160 * temperature * LN2)),
        low{1.f,           0x1.059b0ep0f, 0x1.0b5586p0f, 0x1.11301ep0f, 0x1.172b84p0f, 0x1.1d4874p0f,
            0x1.2387a6p0f, 0x1.29e9ep0f,  0x1.306fep0f,  0x1.371a74p0f, 0x1.3dea64p0f, 0x1.44e086p0f,
            0x1.4bfdaep0f, 0x1.5342b6p0f, 0x1.5ab07ep0f, 0x1.6247ecp0f},
        high{0x1.6a09e6p0f, 0x1.71f75ep0f, 0x1.7a1148p0f, 0x1.82589ap0f, 0x1.8ace54p0f, 0x1.93737cp0f,
             0x1.9c4918p0f, 0x1.a5503cp0f, 0x1.ae89fap0f, 0x1.b7f77p0f,  0x1.c199bep0f, 0x1.cb720ep0f,
             0x1.d5818ep0f, 0x1.dfc974p0f, 0x1.ea4afap0f, 0x1.f50766p0f} {}
  INLINE Float bounded(Float d) const { return larger(splat(lowest), d); }
  INLINE Float operator()(Float d) const {
    const float magic = 0x1.8p18f;
    Float shifted = d * k + magic, n = shifted - magic, r = (d * k - n) + d * k_low;
    Float part = _mm512_permutex2var_ps(low, (__m512i)shifted, high);
    return _mm512_maskz_scalef_ps(-1, part * r * (r * 0x1.ebfbdep-3f + 0x1.62e584p-1f) + part, n);
  }
};

#else

/* n is the integer nearest to t, and 2^(t - n) a polynomial, 3e-9 off at most. n + 127 is in the low bits of `shifted`,
 * ready to be the exponent of 2^n. */
struct Exp {
  const double step; /* Of d from one n to the next. */
  const float k, k_low, lowest;
  INLINE explicit Exp(double temperature)
      : step(temperature * LN2), k((float)(1 / step)), k_low((float)(1 / step - k)),
        lowest((float)(-127 * step)) {}
  INLINE Float bounded(Float d) const { return larger(splat(lowest), d); }
  /* t - n. Without a fused product d k would be rounded: d - n step then, in two parts of which the first is exact. */
  INLINE Float fraction(Float d, Float n) const {
#if defined(__FP_FAST_FMAF)
    return (d * k - n) + d * k_low;
#else
    const float high = leading((float)step), low = (float)(step - high);
    return (d - n * high - n * low) * k;
#endif
  }
  /* Its 16 leading bits. */
  static INLINE float leading(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits &= 0xffffff00;
    memcpy(&x, &bits, 4);
    return x;
  }
  INLINE Float operator()(Float d) const {
    const float magic = 0x1.8p23f + 127.f;
    Float shifted = d * k + magic, r = fraction(d, shifted - magic);
    Float q = r * 0x1.417284p-13f + 0x1.5f0976p-10f;
    q = q * r + 0x1.3b2ddap-7f;
    q = q * r + 0x1.c6af7ap-5f;
    q = q * r + 0x1.ebfbdcp-3f;
    q = q * r + 0x1.62e43p-1f;
    q = q * r + 1.f;
    return (Float)((Word)shifted << 23) * q;
  }
};

#endif

struct Uncapped {
  INLINE explicit Uncapped(CapoHead) {}
  INLINE Float value(Float x) const { return x; }
  INLINE Float slope(Float) const { return splat(1.f); }
};

/* c tanh(x / c), by y = -2 |x| / c and q = exp(y): c (1 - 2 q / (1 + q)), or near 0, where that cancels,
 * |x| (1 - y^2 p) with a polynomial p of y^2, 2e-8 off at most. What is subtracted is the smaller part in both, and so
 * is its error. The derivative is 4 q / (1 + q)^2. */
struct Capped {
  const float softcap;
  const Exp exp;
  INLINE explicit Capped(CapoHead head) : softcap(head.softcap), exp(0.5 * head.softcap) {}
  INLINE Float y(Float abs) const { return abs / (-0.5f * softcap); }
  INLINE Float q(Float abs) const { return exp(exp.bounded(-abs)); }
  INLINE Float value(Float x) const {
    Float abs = (Float)((Word)x & 0x7fffffff), yy = y(abs) * y(abs);
    Float p = yy * -0x1.ccf32ep-22f + 0x1.fa755p-18f;
    p = p * yy - 0x1.608d5ap-14f;
    p = p * yy + 0x1.b9b0d6p-11f;
    p = p * yy - 0x1.110fap-7f;
    p = p * yy + 0x1.555554p-4f;
    Float all = y(abs) > -1.6f ? abs : splat(softcap);
    Float lost = y(abs) > -1.6f ? yy * p : 2.f * q(abs) / (1.f + q(abs));
    return (Float)((Word)(all - all * lost) | ((Word)x & 0x80000000));
  }
  INLINE Float slope(Float x) const {
    Float share = q((Float)((Word)x & 0x7fffffff)), half = 2.f / (1.f + share);
    return share * half * half;
  }
};

}  // namespace
