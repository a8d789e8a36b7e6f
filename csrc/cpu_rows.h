/* What cpu.cpp asks of one instruction set: the two passes over a row of logits. cpu_rows.cpp defines a table for each.
 *
 * With u_j the capped logits and m the largest of them, d_j = (u_j - m) / temperature and e_j = exp(d_j): p_j is
 * e_j / sum e, and d_j - log sum e its logarithm, to float's full precision however large the logits are. */
#pragma once
#include <stdint.h>

struct CapoHead {
  float temperature;
  float softcap;          /* 0: none */
  float lowest_d = -88.f; /* e is 0 there. No constant: GCC makes a maximum with one from two instructions. */
};

struct CapoSums {
  float most; /* m */
  double e;   /* sum_j e_j */
  double e_d; /* sum_j e_j d_j */
};

struct CapoEntry {
  double d;
  float slope; /* du_j/dlogit_j */
};

struct CapoRows {
  CapoSums (*read)(const void *row, int64_t vocab, CapoHead head);
  CapoEntry (*entry)(const void *logit, CapoHead head, float most);
  /* grad_j = du_j/dlogit_j e_j (a + b d_j); grad may be row. */
  void (*write)(const void *row, void *grad, int64_t vocab, CapoHead head, float most, float a, float b);
};

/* [CAPO_F32 or CAPO_BF16][softcap?] */
extern const CapoRows capo_rows_portable[2][2], capo_rows_avx2[2][2], capo_rows_avx512[2][2];
