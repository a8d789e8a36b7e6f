/* Elements of rows, in vectors of 16 bytes. Included by cuda.cu, after the device. */
#pragma once
#include <math.h>
#include <string.h>

namespace {

constexpr int VECTOR_BYTES = 16;

template <int DTYPE> struct Element {
  using Bits = uint16_t;
  static constexpr int WIDTH = 8; // elements of a vector
  static constexpr uint32_t LOW = DTYPE == CAPO_BF16 ? 0xe0ade0adu : 0xfbfffbffu; // -1e20 or -65504, twice

  static __device__ void unpack(uint4 v, float (&x)[WIDTH]) {
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; ++i) {
      float2 pair = ::unpack<DTYPE>(pairs[i]);
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
  }
  static __device__ uint4 pack(const float (&x)[WIDTH]) {
    return {::pack<DTYPE>({x[0], x[1]}), ::pack<DTYPE>({x[2], x[3]}), ::pack<DTYPE>({x[4], x[5]}),
            ::pack<DTYPE>({x[6], x[7]})};
  }
  static __device__ float load(const Bits *p) { return ::unpack<DTYPE>(*p).x; }
  static __device__ Bits narrow(float x) { return static_cast<Bits>(::pack<DTYPE>({x, 0.f})); }
};

template <> struct Element<CAPO_F32> {
  using Bits = float;
  static constexpr int WIDTH = 4;

  static __device__ void unpack(uint4 v, float (&x)[WIDTH]) { memcpy(x, &v, sizeof v); }
  static __device__ uint4 pack(const float (&x)[WIDTH]) {
    uint4 v;
    memcpy(&v, x, sizeof v);
    return v;
  }
  static __device__ float load(const float *p) { return *p; }
  static __device__ float narrow(float x) { return x; }
};

// Elements of a row, and the aligned vectors of memory that contain them. `lead` elements of the first vector and the
// end of the last may be other data. EVEN: they are not.
template <int DTYPE, bool EVEN> struct Span {
  using E = Element<DTYPE>;
  using Bits = typename E::Bits;
  int count, lead;

  __device__ Span(const Bits *first, int count)
      : count(count),
        lead(EVEN ? 0 : static_cast<int>(reinterpret_cast<uintptr_t>(first) % VECTOR_BYTES / sizeof(Bits))) {}

  __device__ int vectors() const { return (lead + count + E::WIDTH - 1) / E::WIDTH; }

  // Elements from v * WIDTH on, if the span's vectors begin at `slot`.
  __device__ uint4 load(const uint4 *slot, int v) const {
    if (EVEN || lead == 0) return slot[v];
    const int bytes = lead * static_cast<int>(sizeof(Bits));
    const uint32_t *words = reinterpret_cast<const uint32_t *>(slot + v) + bytes / 4;
    if constexpr (sizeof(Bits) == 4) return {words[0], words[1], words[2], words[3]};
    const uint32_t all[5] = {words[0], words[1], words[2], words[3], words[4]};
    const int bits = bytes % 4 * 8;
    return {straddle(all[0], all[1], bits), straddle(all[1], all[2], bits), straddle(all[2], all[3], bits),
            straddle(all[3], all[4], bits)};
  }

  // Vector v to a span that starts at `first`: whole if both have the same alignment, else element by element.
  __device__ void store(Bits *first, int v, uint4 x, bool alike) const {
    const int at = v * E::WIDTH - lead;
    if (EVEN || (alike && at >= 0 && at + E::WIDTH <= count))
      return store_vector(reinterpret_cast<uint4 *>(first + at), x);
    Bits each[E::WIDTH];
    memcpy(each, &x, sizeof x);
    for (int i = 0; i < E::WIDTH; ++i)
      if (at + i >= 0 && at + i < count) first[at + i] = each[i];
  }
};

// v, but LOW from the element `left` on. Of 16-bit elements.
template <int DTYPE> __device__ uint4 cut(uint4 v, int left) {
  constexpr uint32_t LOW = Element<DTYPE>::LOW;
  if (left >= Element<DTYPE>::WIDTH) return v;
  uint32_t pairs[4];
  memcpy(pairs, &v, sizeof v);
  for (int i = 0; i < 4; ++i) {
    const uint32_t both = left > 2 * i + 1 ? pairs[i] : (LOW & 0xffff0000u) | (pairs[i] & 0xffffu);
    pairs[i] = left > 2 * i ? both : LOW;
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

} // namespace
