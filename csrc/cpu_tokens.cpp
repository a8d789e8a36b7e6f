/* libcapo_cpu: the computations over T around the row kernels, one token after the other. They take microseconds where
 * a row kernel takes milliseconds, so one thread runs them; the order of the sums is fixed. */
#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "tokens.h"

namespace {

/* The tokens of each sequence, with the steps that they belong to. */
class Steps {
 public:
  explicit Steps(const capo_credit *credit) : c(credit) {}

  int64_t begin(int64_t b) const { return capo_begin(c->cu_seqlens, b, c->sequences, c->tokens); }

  /* f(token, wrong) for the tokens of sequence b; sequences in order, each once. */
  template <class F>
  void of(int64_t b, F f) {
    const int64_t before = seen;
    for (int64_t t = begin(b); t < begin(b + 1); ++t) {
      seen += c->step_starts[t] != 0;
      f(t, capo_wrong(c, seen > before ? seen - 1 : -1));
    }
  }

 private:
  const capo_credit *c;
  int64_t seen = 0; /* steps that have begun */
};

void write_moments(const capo_credit *c) {
  Steps steps(c);
  std::vector<double> process;
  for (int64_t b = 0; b < c->sequences; ++b) {
    process.clear();
    steps.of(b, [&](int64_t t, float wrong) {
      if (c->weight[t] != 0) process.push_back(-c->process_weight * wrong);
    });
    double *m = c->moments + CAPO_MOMENTS * b;
    const double count = (double)process.size();
    m[CAPO_COUNT] = count, m[CAPO_MEAN] = m[CAPO_SPREAD] = 0;
    for (double x : process) m[CAPO_MEAN] += x;
    if (count > 0) m[CAPO_MEAN] /= count;
    for (double x : process) m[CAPO_SPREAD] += (x - m[CAPO_MEAN]) * (x - m[CAPO_MEAN]);
  }
}

/* The statistics of the group at `order[first:last]`. */
capo_stats group_stats(const capo_credit *c, const int64_t *first, const int64_t *last) {
  const auto moments = [&](int64_t b) { return c->moments + CAPO_MOMENTS * b; };
  const auto outcome = [&](int64_t b) { return c->outcome_weight * c->outcome[b]; };
  capo_sums sums = {};
  capo_spreads spreads = {};
  for (const int64_t *b = first; b < last; ++b) capo_add(&sums, moments(*b), outcome(*b));
  const capo_sums means = capo_means(sums);
  for (const int64_t *b = first; b < last; ++b) capo_add_spread(&spreads, &means, moments(*b), outcome(*b));
  return capo_norm(c, &means, &spreads);
}

std::vector<capo_stats> sequence_stats(const capo_credit *c) {
  std::vector<capo_stats> stats(c->sequences);
  if (c->stats) {
    for (int64_t b = 0; b < c->sequences; ++b) stats[b] = capo_given(c, b);
    return stats;
  }
  write_moments(c);
  std::vector<int64_t> order(c->sequences);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return capo_group(c, a) < capo_group(c, b); });
  const int64_t *first = order.data(), *end = first + order.size();
  while (first < end) {
    const int64_t group = capo_group(c, *first);
    const int64_t *last = std::find_if(first, end, [&](int64_t b) { return capo_group(c, b) != group; });
    const capo_stats shared = group_stats(c, first, last);
    for (; first < last; ++first) stats[*first] = shared;
  }
  return stats;
}

double difference(const float *x, const float *y, int64_t t) { return x[t] - y[t]; }

}  // namespace

extern "C" {

int capo_cpu_advantages(const capo_credit *c) {
  const std::vector<capo_stats> stats = sequence_stats(c);
  Steps steps(c);
  for (int64_t b = 0; b < c->sequences; ++b)
    steps.of(b, [&](int64_t t, float wrong) { c->advantage[t] = capo_advantage(c, &stats[b], c->outcome[b], wrong); });
  return 0;
}

int capo_cpu_sequences(const capo_sequences *s) {
  const float *old = s->old_logp ? s->old_logp : s->logp;
  for (int64_t b = 0; b < s->sequences; ++b) {
    const int64_t begin = capo_begin(s->cu_seqlens, b, s->sequences, s->tokens);
    const int64_t end = capo_begin(s->cu_seqlens, b + 1, s->sequences, s->tokens);
    double ratio = 0, importance = 0, count = 0;
    for (int64_t t = begin; t < end; ++t) {
      if (s->weight[t] == 0) continue;
      count += 1;
      if (s->log_ratio && s->old_logp) ratio += difference(s->logp, s->old_logp, t);
      if (s->importance) importance += difference(old, s->rollout_logp, t);
    }
    for (int64_t t = begin; t < end; ++t) {
      if (s->log_ratio) s->log_ratio[t] = capo_mean_log_ratio(ratio, count);
      if (s->importance) s->importance[t] = (float)importance;
    }
  }
  return 0;
}

int capo_cpu_summary(const capo_summary *s) {
  capo_totals totals = capo_nothing();
  for (int64_t t = 0; t < s->tokens; ++t)
    if (s->weight[t] != 0) capo_add_row(&totals, s->terms + t * CAPO_TERMS, s->entropy[t]);
  capo_write_summary(s, &totals);
  return 0;
}
}
