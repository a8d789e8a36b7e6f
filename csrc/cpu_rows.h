/* Functions per instruction set for cpu.cpp: the two passes over a row. cpu_rows.cpp defines a table for each.
 *
 * With u_j the capped logits and m the largest of them, d_j = (u_j - m) / temperature and e_j = exp(d_j): p_j is
 * e_j / sum e, and d_j - log sum e its logarithm, to float's full precision however large the logits are.
 *
 * `read` may keep e_j du_j/dlogit_j, so that `write` needs no exponential: relative to m_b, the largest of the row up to
 * the end of j's block. */
#pragma once
#include <stdint.h>

enum { CAPO_BLOCK = 2048, CAPO_PAIR = 32 }; /* Entries of a block; of a pair of vectors, at most. */

struct CapoHead {
  float temperature;
  float softcap; /* 0: none */
};

/* A row's address and the values kept from its first pass. */
struct CapoRow {
  const void *logits;
  int64_t vocab;
  float *kept;           /* [vocab], or NULL: nothing is kept. May be the gradient, and that the logits. */
  float *largest;        /* m_b of each block */
  float tail[CAPO_PAIR]; /* The values kept for the entries after the last whole pair. */
};

struct CapoSums {
  float most; /* m */
  double e;   /* sum_j e_j */
  double e_d; /* sum_j e_j d_j */
};

struct CapoEntry {
  float value, slope; /* u_j, du_j/dlogit_j */
};

/* grad_j = du_j/dlogit_j e_j (a + b d_j) */
struct CapoGradient {
  void *grad;
  double a, b;
  bool stream; /* Non-temporal stores: grad is a multiple of 64. */
};

struct CapoRows {
  CapoSums (*read)(CapoRow *row, CapoHead head);
  CapoEntry (*entry)(const void *logit, CapoHead head);
  void (*write)(const CapoRow *row, CapoHead head, float most, CapoGradient gradient); /* After a read that kept. */
};

/* [CAPO_F32 or CAPO_BF16][softcap?] */
extern const CapoRows capo_rows_portable[2][2], capo_rows_avx2[2][2], capo_rows_avx512[2][2];
