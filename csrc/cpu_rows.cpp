/* The two passes over a row of logits (cpu_rows.h), in the vector extensions of GCC and Clang. Compiled once for each
 * instruction set, with its -m flags and -DCAPO_ISA=portable, avx2 or avx512. Nothing here comes from the C++ library:
 * its inline functions, compiled with AVX-512, could be the copies that the linker keeps for all machines.
 *
 * A row is processed two vectors at a time; its last pair may be padded with uncounted entries. The maximum of a
 * block is found while the block before it is computed, so that all its entries use one m and are in the
 * L1 cache by then; sums are float within a block and double across. A maximum may drop a NaN, the sums can't. */
#include "cpu_rows.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "capo.h"
#include "cpu_vectors.h"

namespace {

/* The `count` entries after the last whole pair; the last one is repeated until the pair is full. */
template <class Dtype>
INLINE Pair load_tail(const typename Dtype::Element *p, int64_t count) {
  typename Dtype::Element room[PAIR];
  for (int64_t i = 0; i < PAIR; ++i) room[i] = p[i < count ? i : count - 1];
  return Dtype::load(room);
}

template <class Dtype>
INLINE void store_tail(typename Dtype::Element *p, Pair x, int64_t count) {
  typename Dtype::Element room[PAIR];
  Dtype::store(room, x);
  memcpy(p, room, count * sizeof *p);
}

INLINE float largest_lane(Pair x) {
  Float lanes = larger(x.a, x.b);
  float most = lanes[0];
  for (int i = 1; i < WIDTH; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

/* The sums over the blocks so far, relative to `most`: the largest u, and that of the logit `top`. */
template <class Cap>
struct Sums {
  const Cap &cap;
  const double temperature;
  float top = -FLT_MAX, most;
  double e[WIDTH] = {}, e_u[WIDTH] = {};
  INLINE Sums(const Cap &c, CapoHead head) : cap(c), temperature(head.temperature), most(cap.value(splat(top))[0]) {}
  INLINE void raise(float new_top) {
    if (!(new_top > top)) return;
    const float before = most;
    top = new_top, most = cap.value(splat(top))[0];
    const double step = (double)before - most, factor = ::exp(step / temperature);
    for (int i = 0; i < WIDTH; ++i) e_u[i] = factor * (e_u[i] + e[i] * step), e[i] *= factor;
  }
  INLINE void add(Float block_e, Float block_e_u) {
    for (int i = 0; i < WIDTH; ++i) e[i] += block_e[i], e_u[i] += block_e_u[i];
  }
  INLINE CapoSums all() const {
    CapoSums sums = {most, 0, 0};
    for (int i = 0; i < WIDTH; ++i) sums.e += e[i], sums.e_d += e_u[i] / temperature;
    return sums;
  }
};

template <class Dtype, class Cap, bool KEEPS>
CapoSums read_row(CapoRow *row, CapoHead head) {
  typedef typename Dtype::Element Element;
  constexpr int64_t AHEAD = 16384 / sizeof(Element); /* L2 prefetches the data that L1 needs two blocks later. */
  const Cap cap(head);
  const Exp exp(head.temperature);
  const Element *p = (const Element *)row->logits;
  const int64_t rest = row->vocab % PAIR, whole = row->vocab - rest;
  Element counted[2 * PAIR] = {};
  for (int64_t i = 0; i < rest; ++i) counted[i] = Dtype::ONE;
  const Pair last = rest ? load_tail<Dtype>(p + whole, rest) : Dtype::load(p), counts = Dtype::load(counted);

  Sums<Cap> sums(cap, head);
  Pair tops = last;
  auto look = [&](int64_t i) {
    const Pair x = Dtype::load(p + i);
    tops = {larger(x.a, tops.a), larger(x.b, tops.b)};
  };
  for (int64_t i = 0; i < whole && i < CAPO_BLOCK; i += PAIR) look(i);
  for (int64_t start = 0; start < row->vocab; start += CAPO_BLOCK) {
    const int64_t end = whole - start < CAPO_BLOCK ? whole : start + CAPO_BLOCK;
    sums.raise(largest_lane(tops));
    Float sum_e = {}, sum_e_u = {};
    auto entry = [&](Float x, Float share) {
      const Float d = exp.bounded(cap.value(x) - sums.most), e = exp(d) * share;
      sum_e += e;
      sum_e_u += e * d;
      return KEEPS ? e * cap.slope(x) : e;
    };
    for (int64_t i = start; i < end; i += PAIR) {
      const Pair x = Dtype::load(p + i);
      look(i + CAPO_BLOCK < whole ? i + CAPO_BLOCK : whole - PAIR);
      for (int64_t line = 0; line < PAIR; line += 64 / sizeof(Element)) __builtin_prefetch(p + i + AHEAD + line, 0, 2);
      const Pair kept = {entry(x.a, splat(1.f)), entry(x.b, splat(1.f))};
      if (KEEPS) Float32::store(row->kept + i, kept);
    }
    if (rest && row->vocab - start <= CAPO_BLOCK) {
      const Pair kept = {entry(last.a, counts.a), entry(last.b, counts.b)};
      if (KEEPS) Float32::store(row->tail, kept);
    }
    sums.add(sum_e, sum_e_u);
    if (KEEPS) row->largest[start / CAPO_BLOCK] = sums.most;
  }
  return sums.all();
}

template <class Dtype, class Cap>
CapoSums read(CapoRow *row, CapoHead head) {
  return (row->kept ? read_row<Dtype, Cap, true> : read_row<Dtype, Cap, false>)(row, head);
}

template <class Dtype, class Cap>
CapoEntry entry(const void *logit, CapoHead head) {
  typedef typename Dtype::Element Element;
  const Cap cap(head);
  const Element room[PAIR] = {*(const Element *)logit};
  const Float x = Dtype::load(room).a;
  return {cap.value(x)[0], cap.slope(x)[0]};
}

template <class Dtype, class Cap, bool ENTROPY>
void write_row(const CapoRow *row, CapoHead head, float most, CapoGradient by) {
  typedef typename Dtype::Element Element;
  const Cap cap(head);
  const Exp exp(head.temperature);
  const Element *p = (const Element *)row->logits;
  Element *q = (Element *)by.grad;
  const int64_t rest = row->vocab % PAIR, whole = row->vocab - rest;
  float before = NAN, a = 0, b = 0;
  /* From the end, which `read` has left in the nearest cache. */
  for (int64_t start = (row->vocab - 1) / CAPO_BLOCK * CAPO_BLOCK; start >= 0; start -= CAPO_BLOCK) {
    const int64_t end = whole - start < CAPO_BLOCK ? whole : start + CAPO_BLOCK;
    const float largest = row->largest[start / CAPO_BLOCK];
    if (largest != before) {
      const double factor = ::exp(((double)largest - most) / head.temperature);
      a = (float)(by.a * factor), b = (float)(by.b * factor / head.temperature), before = largest;
      /* Clears the low bits of the caller's NaN. */
      if (a != a) a = NAN;
      if (b != b) b = NAN;
    }
    auto slope = [&](Float kept, Float x) {
      return ENTROPY ? kept * (b * exp.bounded(cap.value(x) - most) + a) : kept * a;
    };
    if (rest && start + CAPO_BLOCK >= row->vocab) {
      const Pair kept = Float32::load(row->tail), x = ENTROPY ? load_tail<Dtype>(p + whole, rest) : kept;
      store_tail<Dtype>(q + whole, {slope(kept.a, x.a), slope(kept.b, x.b)}, rest);
    }
    for (int64_t i = end - PAIR; i >= start; i -= PAIR) {
      const Pair kept = Float32::load(row->kept + i), x = ENTROPY ? Dtype::load(p + i) : kept;
      Dtype::store(q + i, {slope(kept.a, x.a), slope(kept.b, x.b)}, by.stream);
    }
  }
}

template <class Dtype, class Cap>
void write(const CapoRow *row, CapoHead head, float most, CapoGradient by) {
  (by.b == 0 ? write_row<Dtype, Cap, false> : write_row<Dtype, Cap, true>)(row, head, most, by);
}

}  // namespace

#define ROWS(dtype, cap) {read<dtype, cap>, entry<dtype, cap>, write<dtype, cap>}
#define TABLE_OF(isa) capo_rows_##isa
#define TABLE(isa) TABLE_OF(isa)
extern const CapoRows TABLE(CAPO_ISA)[2][2] = {{ROWS(Float32, Uncapped), ROWS(Float32, Capped)},
                                               {ROWS(BFloat16, Uncapped), ROWS(BFloat16, Capped)}};
