/* libcapo_cpu: the entry points of capo.h, rows in parallel. A row is read by one thread from memory once, its loss and
 * the two slopes of its gradient are scalars (row.h), and the gradient is formed while the row is still in the cache.
 * No sum crosses rows, so the number of threads changes no bit. */
#include "cpu_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "capo.h"
#include "row.h"

namespace {

struct Isa {
  const char *name;
  const CapoRows (*rows)[2];
  bool here;
};

/* The best instruction set of the machine, or CAPO_CPU_ISA; if that can't run, rows is NULL and name is the reason. */
Isa choose_isa() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Isa all[] = {{"avx512", capo_rows_avx512, avx512}, {"avx2", capo_rows_avx2, avx2},
                     {"portable", capo_rows_portable, true}};
#else
  const Isa all[] = {{"portable", capo_rows_portable, true}};
#endif
  const char *wanted = getenv("CAPO_CPU_ISA");
  for (const Isa &isa : all)
    if (wanted && *wanted ? !strcmp(wanted, isa.name) : isa.here)
      return isa.here ? isa : Isa{"CAPO_CPU_ISA names an instruction set that this processor lacks", NULL, false};
  return {"CAPO_CPU_ISA is none of avx512, avx2, portable", NULL, false};
}

/* Flushes gradients below 1e-38 to 0: a denormal number takes x86 as long as a hundred normal ones. */
struct FlushDenormals {
#if defined(__x86_64__)
  const unsigned saved = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(saved | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

/* Orders the non-temporal stores before the stores that follow. */
void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

struct Row {
  float most;
  double sum, log_sum, mean; /* mean: of d under p */
  double target_slope, logp, entropy;
};

/* A thread's state for its current row. */
struct Workspace {
  CapoRow row = {};
  float *const kept, *const largest;
  explicit Workspace(int64_t vocab) : kept(room(vocab)), largest(room(vocab / CAPO_BLOCK + 1)) {}
  Workspace(const Workspace &) = delete;
  ~Workspace() { free(kept), free(largest); }
  bool complete() const { return kept && largest; }
  static float *room(int64_t floats) { return (float *)aligned_alloc(64, (floats * 4 + 63) / 64 * 64); }
};

class Logits {
 public:
  explicit Logits(const capo_logits &logits)
      : l(logits),
        size(l.dtype == CAPO_F32 ? 4 : 2),
        head{l.temperature, l.softcap},
        rows(choose_isa().rows),
        apart(l.grad && l.grad != l.logits && l.tokens * l.vocab * size >= LARGE) {}

  int refuses(int threads) const {
    if (l.dtype != CAPO_F32 && l.dtype != CAPO_BF16) return -1;
    if (!rows) return -2;
    return l.tokens < 0 || l.vocab < 1 || !(l.temperature > 0) || !(l.softcap >= 0) || threads < 1 ? -3 : 0;
  }

  const CapoRows &kernels() const { return rows[l.dtype][l.softcap > 0]; }

  /* `slopes`: whether the entropy has a non-zero slope. */
  Row read(int64_t t, Workspace &work, bool slopes) const {
    const int64_t at = capo_target(&l, t);
    const CapoEntry target = at < 0 ? CapoEntry{NAN, 1} : kernels().entry(logit(t, at), head);
    work.row.logits = logit(t, 0), work.row.vocab = l.vocab, work.row.largest = work.largest;
    work.row.kept = !l.grad ? NULL : kept_in_gradient(t, slopes) ? (float *)grad(t, 0) : work.kept;
    const CapoSums s = kernels().read(&work.row, head);
    Row row = {s.most, s.e, log(s.e), s.e_d / s.e, target.slope, NAN, log(s.e) - s.e_d / s.e};
    row.logp = ((double)target.value - s.most) / l.temperature - row.log_sum;
    /* Rounding may change the order of capped logits. */
    if (row.logp > 0) row.logp = 0;
    return row;
  }

  void write(int64_t t, const Row &row, const Workspace &work, capo_slopes by) const {
    if (by.logp == 0 && by.entropy == 0) return zero(t);
    const double scale = 1 / (double)l.temperature, a = scale / row.sum * (by.entropy * row.mean - by.logp);
    kernels().write(&work.row, head, row.most, {grad(t, 0), a, -scale / row.sum * by.entropy, streamed(t)});
    const int64_t at = capo_target(&l, t);
    if (at < 0) return;
    const double p = exp(row.logp), spread = p == 0 ? 0 : p * (row.logp + row.entropy);
    store(grad(t, at), scale * row.target_slope * (-by.logp * expm1(row.logp) - by.entropy * spread));
  }

  void zero(int64_t t) const { memset(grad(t, 0), 0, l.vocab * size); }

  bool trained(int64_t t) const { return !l.weight || l.weight[t] != 0; }

  /* f(t, workspace) for every row. A thread takes rows of some 30,000 entries at a time, ten microseconds' worth. Returns
   * whether there was memory for it. */
  template <class F>
  bool for_each(int threads, F f) const {
    if (l.grad && l.grad != l.logits) want_huge_pages();
    const int64_t step = l.vocab < 32768 ? 32768 / l.vocab : 1, steps = (l.tokens + step - 1) / step;
    const int team = threads < steps ? threads : (int)steps;
    bool complete = true;
    if (team == 0) return complete;
#pragma omp parallel num_threads(team) if (team > 1) reduction(&& : complete)
    {
      [[maybe_unused]] FlushDenormals flush;
      Workspace work(l.vocab);
      complete = work.complete();
#pragma omp for schedule(dynamic)
      for (int64_t s = 0; s < steps; ++s)
        for (int64_t t = s * step; complete && t < l.tokens && t < (s + 1) * step; ++t) f(t, work);
      finish_streams();
    }
    return complete;
  }

 private:
  const capo_logits &l;
  const int64_t size;
  const CapoHead head;
  const CapoRows (*const rows)[2];
  const bool apart; /* A gradient too large for the caches, beside the logits. */
  static constexpr int64_t LARGE = 32 << 20;

  const char *logit(int64_t t, int64_t v) const { return (const char *)l.logits + (t * l.stride + v) * size; }
  char *grad(int64_t t, int64_t v) const { return (char *)l.grad + (t * l.grad_stride + v) * size; }
  bool streamed(int64_t t) const { return apart && (uintptr_t)grad(t, 0) % 64 == 0; }
  /* `read` keeps its values in the gradient's row, unless they are wider or the row's logits are read again. */
  bool kept_in_gradient(int64_t t, bool slopes) const { return l.dtype == CAPO_F32 && !slopes && !streamed(t); }

  void store(char *p, double value) const {
    const float x = (float)value;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (l.dtype == CAPO_BF16) bits = (x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16;
    memcpy(p, &bits, size);
  }

  /* With 4 KB pages the page faults of a fresh gradient cost far more than its computation. */
  void want_huge_pages() const {
#if defined(MADV_HUGEPAGE)
    if (l.tokens == 0) return;
    const uintptr_t page = 1 << 21, begin = ((uintptr_t)grad(0, 0) + page - 1) & -page;
    const uintptr_t end = (uintptr_t)grad(l.tokens - 1, l.vocab) & -page;
    if (begin < end) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#endif
  }
};

}  // namespace

extern "C" {

int capo_cpu_loss(const capo_logits *l, const capo_tokens *tokens, const capo_spec *spec, const capo_results *out,
                  int threads) {
  const Logits logits(*l);
  if (int refused = logits.refuses(threads)) return refused;
  const bool slopes = capo_live(spec, tokens->coefficients).entropy_coef != 0;
  const bool complete = logits.for_each(threads, [&](int64_t t, Workspace &work) {
    float *terms = out->terms + t * CAPO_TERMS;
    if (!logits.trained(t)) {
      out->logp[t] = out->entropy[t] = 0;
      memset(terms, 0, CAPO_TERMS * sizeof *terms);
      if (l->grad) logits.zero(t);
      return;
    }
    const float weight = l->weight ? l->weight[t] : 1.f;
    const Row row = logits.read(t, work, slopes);
    out->logp[t] = (float)row.logp, out->entropy[t] = (float)row.entropy;
    const capo_slopes by = capo_row(tokens, spec, t, weight, out->logp[t], out->entropy[t], terms);
    if (l->grad) logits.write(t, row, work, by);
  });
  return complete ? 0 : -4;
}

int capo_cpu_logprobs(const capo_logits *l, float *logp, float *entropy, int threads) {
  const Logits logits(*l);
  if (int refused = logits.refuses(threads)) return refused;
  const bool complete = logits.for_each(threads, [&](int64_t t, Workspace &work) {
    logp[t] = entropy[t] = 0;
    if (!logits.trained(t)) return;
    const Row row = logits.read(t, work, false);
    logp[t] = (float)row.logp, entropy[t] = (float)row.entropy;
  });
  return complete ? 0 : -4;
}

/* Computes the sums of a row again, without extra memory traffic: a log-sum kept from logprobs and rounded to float
 * would change every p by up to half its ulp, 5e-7 at 12 and 5e-4 at 1e4. */
int capo_cpu_dlogits(const capo_logits *l, const float *dlogp, const float *dentropy, int threads) {
  const Logits logits(*l);
  if (int refused = logits.refuses(threads)) return refused;
  const bool complete = logits.for_each(threads, [&](int64_t t, Workspace &work) {
    const capo_slopes by = {dlogp[t], dentropy ? dentropy[t] : 0.f};
    if (by.logp == 0 && by.entropy == 0) return logits.zero(t);
    logits.write(t, logits.read(t, work, by.entropy != 0), work, by);
  });
  return complete ? 0 : -4;
}

int capo_cpu_abi(void) { return CAPO_ABI; }

const char *capo_cpu_isa(void) { return choose_isa().name; }
}
