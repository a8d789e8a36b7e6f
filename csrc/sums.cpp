/* libcapo_sums: the rows of a matrix summed up by the weights of their places, for the trainer's checksums of weights
 * (capo_fast/engine/checksum.py). Products and sums are float64's, four partial sums of eight places each a row: it is
 * memory that takes the time. No sum crosses rows, so the number of threads changes no bit. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#pragma GCC diagnostic ignored "-Wpsabi" /* of vectors that are passed: all that takes them is inlined */

/* Compiled once for each instruction set; the loader chooses, where the C library has such functions. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_ISA
#endif

namespace {

enum { F32 = 0, BF16 = 1 };
constexpr int64_t WIDTH = 8, STEP = 4 * WIDTH;
constexpr int64_t SMALL = 1 << 15; /* Entries that one thread sums up sooner than a second one starts. */

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef double Doubles __attribute__((vector_size(8 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));

template <class Vector, class Element>
INLINE Vector load(const Element *p) {
  Vector x;
  memcpy(&x, p, sizeof x);
  return x;
}

INLINE Doubles widened(const float *p) { return __builtin_convertvector(load<Floats>(p), Doubles); }
INLINE Doubles widened(const uint16_t *p) {
  const Words words = __builtin_convertvector(load<Halves>(p), Words) << 16;
  return __builtin_convertvector((Floats)words, Doubles);
}

INLINE double widened_one(const float *p) { return *p; }
INLINE double widened_one(const uint16_t *p) {
  const uint32_t word = (uint32_t)*p << 16;
  float x;
  memcpy(&x, &word, sizeof x);
  return x;
}

template <class Element>
INLINE double row_sum(const Element *row, const double *places, int64_t columns) {
  Doubles parts[4] = {};
  int64_t k = 0;
  for (; k + STEP <= columns; k += STEP)
    for (int i = 0; i < 4; ++i) parts[i] += widened(row + k + i * WIDTH) * load<Doubles>(places + k + i * WIDTH);
  const Doubles all = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  double sum = 0;
  for (int i = 0; i < WIDTH; ++i) sum += all[i];
  for (; k < columns; ++k) sum += widened_one(row + k) * places[k];
  return sum;
}

FOR_EACH_ISA double float32_row(const float *row, const double *places, int64_t columns) {
  return row_sum(row, places, columns);
}

FOR_EACH_ISA double bfloat16_row(const uint16_t *row, const double *places, int64_t columns) {
  return row_sum(row, places, columns);
}

}  // namespace

extern "C" {

/* sums [rows], float64. matrix: [rows, columns] of dtype 0, float32, or 1, bfloat16; a row is contiguous, and the next
 * one `stride` elements on. places: [columns]. */
void capo_row_sums(const void *matrix, int dtype, int64_t rows, int64_t columns, int64_t stride, const double *places,
                   double *sums, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > SMALL)
  for (int64_t n = 0; n < rows; ++n)
    sums[n] = dtype == F32 ? float32_row((const float *)matrix + n * stride, places, columns)
                           : bfloat16_row((const uint16_t *)matrix + n * stride, places, columns);
}
}
