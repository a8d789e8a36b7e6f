/* libcapo_sums: sums of a matrix's rows, weighted by column, for the trainer's checksums of weights
 * (capo_fast/engine/checksum.py). Products and sums are float64; memory bandwidth is the limit. No sum crosses
 * rows, so the number of threads changes no bit. */
#include <stdint.h>
#include <string.h>

/* Compiled once for each instruction set; the loader chooses, if the C library supports it. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_ISA
#endif

namespace {

constexpr int64_t SMALL = 1 << 15; /* Entries that one thread sums before a second one could start. */

inline double widened(float x) { return x; }

inline double widened(uint16_t bfloat16) {
  const uint32_t word = (uint32_t)bfloat16 << 16;
  float x;
  memcpy(&x, &word, sizeof x);
  return x;
}

template <class Element>
inline __attribute__((always_inline)) double row_sum(const Element *row, const double *places, int64_t columns) {
  double sum = 0;
#pragma omp simd reduction(+ : sum) simdlen(16)
  for (int64_t k = 0; k < columns; ++k) sum += widened(row[k]) * places[k];
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
    sums[n] = dtype == 0 ? float32_row((const float *)matrix + n * stride, places, columns)
                         : bfloat16_row((const uint16_t *)matrix + n * stride, places, columns);
}
}
