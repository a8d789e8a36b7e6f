/* The two passes over a row of logits (cpu_rows.h), in the vector extensions of GCC and Clang. Compiled once for each
 * instruction set, with its -m flags and -DCAPO_ISA=portable, avx2 or avx512. Nothing here comes from the C++ library:
 * its inline functions, compiled with AVX-512, could be the copies that the linker keeps for all machines.
 *
 * A row is taken two vectors at a time. It need not end with a whole pair: the pair that ends with the row overlaps the
 * one before, and only its last entries count. Blocks are read for their maximum first, so that one m serves their
 * entries; sums are float within a block and double across. A maximum may miss a NaN, the sums can't. */
#include "cpu_rows.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "capo.h"

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

constexpr int64_t PAIR = 2 * WIDTH, BLOCK = 2048;

INLINE Float splat(float x) { return x - Float{}; }

/* y where either is NaN: what the x86 instruction gives. */
INLINE Float larger(Float x, Float y) { return x > y ? x : y; }

struct Float32 {
  typedef float Element;
  static constexpr Element ONE = 1;
  static INLINE Pair load(const Element *p) {
    Pair x;
    memcpy(&x.a, p, sizeof x.a);
    memcpy(&x.b, p + WIDTH, sizeof x.b);
    return x;
  }
  static INLINE void store(Element *p, Pair x) {
    memcpy(p, &x.a, sizeof x.a);
    memcpy(p + WIDTH, &x.b, sizeof x.b);
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
  static INLINE void store(Element *p, Pair x) {
    Word words = round(x.a) >> 16 | (round(x.b) & 0xffff0000);
    memcpy(p, &words, sizeof words);
  }
};

/* For x in [-88, 0], or NaN: x = n ln 2 + r, ln 2 in two parts of which n times the first is exact, and a polynomial
 * for exp(r) - 1, 3e-9 off at most. n + 127 stands in the low bits of `shifted`, ready to be the exponent of 2^n. */
INLINE Float exp_of(Float x) {
  const float magic = 0x1.8p23f + 127.f;
  Float shifted = x * 0x1.715476p+0f + magic, n = shifted - magic;
  Float r = x - n * 0x1.63p-1f + n * 0x1.bd0106p-13f;
  Float q = r * 0x1.709ba2p-10f + 0x1.129052p-7f;
  q = q * r + 0x1.55515ep-5f;
  q = q * r + 0x1.5553cp-3f;
  q = q * r + 0x1.000002p-1f;
  q = q * r + 1.f;
  Float power = (Float)((Word)shifted << 23);
  return power * (q * r) + power;
}

struct Uncapped {
  INLINE explicit Uncapped(CapoHead) {}
  INLINE Float value(Float x) const { return x; }
  INLINE Float slope(Float) const { return splat(1.f); }
};

/* c tanh(x / c), by y = -2 |x| / c and q = exp(y): c (1 - 2 q / (1 + q)), or near 0, where that cancels,
 * |x| (1 - y^2 p) with a polynomial p of y^2, 2e-8 off at most. What is subtracted is the smaller part in both, and so
 * is its error. The derivative is 4 q / (1 + q)^2. */
struct Capped {
  const CapoHead head;
  INLINE explicit Capped(CapoHead h) : head(h) {}
  INLINE Float y(Float abs) const { return abs / (-0.5f * head.softcap); }
  INLINE Float q(Float abs) const { return exp_of(larger(splat(head.lowest_d), y(abs))); }
  INLINE Float value(Float x) const {
    Float abs = (Float)((Word)x & 0x7fffffff), yy = y(abs) * y(abs);
    Float p = yy * -0x1.ccf32ep-22f + 0x1.fa755p-18f;
    p = p * yy - 0x1.608d5ap-14f;
    p = p * yy + 0x1.b9b0d6p-11f;
    p = p * yy - 0x1.110fap-7f;
    p = p * yy + 0x1.555554p-4f;
    Float all = y(abs) > -1.6f ? abs : splat(head.softcap);
    Float lost = y(abs) > -1.6f ? yy * p : 2.f * q(abs) / (1.f + q(abs));
    return (Float)((Word)(all - all * lost) | ((Word)x & 0x80000000));
  }
  INLINE Float slope(Float x) const {
    Float share = q((Float)((Word)x & 0x7fffffff)), half = 2.f / (1.f + share);
    return share * half * half;
  }
};

/* d, of which -inf would make 0 * inf of e d. */
struct Distance {
  const float most, rate, lowest;
  INLINE Distance(CapoHead head, float m) : most(m), rate(1 / head.temperature), lowest(head.lowest_d) {}
  INLINE Float operator()(Float u) const { return larger(splat(lowest), (u - most) * rate); }
};

/* The pair that ends with the row. A row shorter than that is copied to `room`, its first entry repeated before it. */
template <class Element>
INLINE const Element *last_pair(const Element *row, int64_t vocab, Element *room) {
  if (vocab >= PAIR) return row + vocab - PAIR;
  for (int64_t i = 0; i < PAIR; ++i) room[i] = row[i < PAIR - vocab ? 0 : i - (PAIR - vocab)];
  return room;
}

INLINE float largest_lane(Pair x) {
  Float lanes = larger(x.a, x.b);
  float most = lanes[0];
  for (int i = 1; i < WIDTH; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

template <class Dtype, class Cap>
CapoSums read(const void *row, int64_t vocab, CapoHead head) {
  typedef typename Dtype::Element Element;
  const Cap cap(head);
  const Element *p = (const Element *)row;
  const int64_t rest = vocab % PAIR, whole = vocab - rest;
  Element room[PAIR], kept[2 * PAIR] = {};
  for (int64_t i = PAIR; i < 2 * PAIR; ++i) kept[i] = Dtype::ONE;
  const Pair last = Dtype::load(last_pair(p, vocab, room)), keep = Dtype::load(kept + rest);

  float top = -FLT_MAX, most = cap.value(splat(top))[0];
  double row_e[WIDTH] = {}, row_e_d[WIDTH] = {};
  Pair tops = last;
  for (int64_t start = 0; start == 0 || start < whole; start += BLOCK) {
    const int64_t end = whole - start < BLOCK ? whole : start + BLOCK;
    for (int64_t i = start; i < end; i += PAIR) {
      const Pair x = Dtype::load(p + i);
      tops = {larger(x.a, tops.a), larger(x.b, tops.b)};
    }
    const float new_top = largest_lane(tops);
    if (new_top > top) {
      const float before = most;
      top = new_top, most = cap.value(splat(top))[0];
      const double step = ((double)before - most) / head.temperature, factor = exp(step);
      for (int i = 0; i < WIDTH; ++i) row_e_d[i] = factor * (row_e_d[i] + row_e[i] * step), row_e[i] *= factor;
    }

    const Distance distance(head, most);
    Float sum_e = {}, sum_e_d = {};
    auto add = [&](Float x, Float share) {
      const Float d = distance(cap.value(x)), e = exp_of(d) * share;
      sum_e += e;
      sum_e_d += e * d;
    };
    if (start == 0) add(last.a, keep.a), add(last.b, keep.b);
    for (int64_t i = start; i < end; i += PAIR) {
      const Pair x = Dtype::load(p + i);
      /* The next block arrives while this one is computed: a third less time. A pair may take two cache lines. */
      __builtin_prefetch(p + i + BLOCK);
      if (sizeof(Element) * PAIR > 64) __builtin_prefetch(p + i + BLOCK + PAIR / 2);
      add(x.a, splat(1.f)), add(x.b, splat(1.f));
    }
    for (int i = 0; i < WIDTH; ++i) row_e[i] += sum_e[i], row_e_d[i] += sum_e_d[i];
  }
  CapoSums sums = {most, 0, 0};
  for (int i = 0; i < WIDTH; ++i) sums.e += row_e[i], sums.e_d += row_e_d[i];
  return sums;
}

template <class Dtype, class Cap>
CapoEntry entry(const void *logit, CapoHead head, float most) {
  typedef typename Dtype::Element Element;
  const Cap cap(head);
  const Element room[PAIR] = {*(const Element *)logit};
  const Float x = Dtype::load(room).a;
  return {((double)cap.value(x)[0] - most) / head.temperature, cap.slope(x)[0]};
}

template <class Dtype, class Cap>
void write(const void *row, void *grad, int64_t vocab, CapoHead head, float most, float a, float b) {
  typedef typename Dtype::Element Element;
  const Cap cap(head);
  const Distance distance(head, most);
  const Element *p = (const Element *)row;
  Element *q = (Element *)grad;
  /* Without what the caller's NaN may have in its low bits. */
  if (a != a) a = NAN;
  if (b != b) b = NAN;
  auto slope = [&](Float x) {
    const Float d = distance(cap.value(x));
    return cap.slope(x) * exp_of(d) * (b * d + a);
  };
  auto gradient = [&](const Element *from) {
    const Pair x = Dtype::load(from);
    return Pair{slope(x.a), slope(x.b)};
  };
  Element room[PAIR];
  const Pair last = gradient(last_pair(p, vocab, room)); /* Before the rest of the row is overwritten. */
  /* From the end, which read has left nearest. */
  for (int64_t i = vocab - vocab % PAIR - PAIR; i >= 0; i -= PAIR) Dtype::store(q + i, gradient(p + i));
  if (vocab >= PAIR) return Dtype::store(q + vocab - PAIR, last);
  Dtype::store(room, last);
  memcpy(q, room + PAIR - vocab, vocab * sizeof *q);
}

}  // namespace

#define ROWS(dtype, cap) {read<dtype, cap>, entry<dtype, cap>, write<dtype, cap>}
#define TABLE_OF(isa) capo_rows_##isa
#define TABLE(isa) TABLE_OF(isa)
extern const CapoRows TABLE(CAPO_ISA)[2][2] = {{ROWS(Float32, Uncapped), ROWS(Float32, Capped)},
                                               {ROWS(BFloat16, Uncapped), ROWS(BFloat16, Capped)}};
