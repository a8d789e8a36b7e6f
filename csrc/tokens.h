/* The arithmetic over T around the row kernels: credit and the sums of the results. Shared by the
 * CPU and the CUDA kernels, which differ in how they form the sums. */
#pragma once
#include <math.h>

#include "capo.h"

#ifdef __CUDACC__
#define CAPO_TOKENS __device__ __forceinline__
#else
#define CAPO_TOKENS static inline
#endif

/* A group whose rewards have a smaller standard deviation has advantages of 0. */
#define CAPO_STD_ZERO 1e-6

/* ---- credit: the rewards of a sequence, and the shift and scale of its group ---- */

/* Per sequence: its trained tokens, the mean of -P wrong over them, and the sum of squared deviations. */
enum { CAPO_COUNT, CAPO_MEAN, CAPO_SPREAD, CAPO_MOMENTS };

/* Sums over the sequences of a group; R = C outcome - P wrong. */
typedef struct {
  double tokens, reward, process;           /* over tokens: their number, R, -P wrong */
  double sequences, mean_reward, outcome;   /* over sequences with a trained token: their number, mean R, C outcome */
} capo_sums;

/* The same sums of squared deviations from the group's means. */
typedef struct {
  double reward, process, mean_reward, outcome;
} capo_spreads;

typedef struct {
  float shift0, scale0, shift1, scale1; /* of the outcome part, of the process part */
} capo_stats;

CAPO_TOKENS int64_t capo_group(const capo_credit *c, int64_t b) {
  return c->wide_groups ? ((const int64_t *)c->group)[b] : ((const int32_t *)c->group)[b];
}

/* The first token of sequence b (one past the last of b - 1). Tokens in no sequence go to the first or the last one. */
CAPO_TOKENS int64_t capo_begin(const int32_t *cu_seqlens, int64_t b, int64_t sequences, int64_t tokens) {
  const int64_t begin = b == 0 ? 0 : b == sequences ? tokens : cu_seqlens[b];
  return begin < 0 ? 0 : begin < tokens ? begin : tokens;
}

/* step: -1 for a token that belongs to no step. */
CAPO_TOKENS float capo_wrong(const capo_credit *c, int64_t step) {
  return step < 0 ? 0.f : step < c->steps ? c->step_wrong[step] : NAN;
}

CAPO_TOKENS void capo_add(capo_sums *s, const double *moments, double outcome) {
  const double n = moments[CAPO_COUNT], mean = moments[CAPO_MEAN];
  if (n == 0) return;
  s->tokens += n, s->reward += n * (outcome + mean), s->process += n * mean;
  s->sequences += 1, s->mean_reward += outcome + mean, s->outcome += outcome;
}

/* Sums become means, 0 over nothing. */
CAPO_TOKENS capo_sums capo_means(capo_sums s) {
  const double tokens = s.tokens > 0 ? s.tokens : 1, sequences = s.sequences > 0 ? s.sequences : 1;
  s.reward /= tokens, s.process /= tokens, s.mean_reward /= sequences, s.outcome /= sequences;
  return s;
}

CAPO_TOKENS void capo_add_spread(capo_spreads *s, const capo_sums *means, const double *moments, double outcome) {
  const double n = moments[CAPO_COUNT], mean = moments[CAPO_MEAN], within = moments[CAPO_SPREAD];
  if (n == 0) return;
  const double reward = outcome + mean - means->reward, process = mean - means->process;
  const double mean_reward = outcome + mean - means->mean_reward, by_outcome = outcome - means->outcome;
  s->reward += within + n * reward * reward, s->process += within + n * process * process;
  s->mean_reward += mean_reward * mean_reward, s->outcome += by_outcome * by_outcome;
}

CAPO_TOKENS double capo_std(double spread, double count) { return sqrt(spread / (count > 0 ? count : 1)); }

CAPO_TOKENS float capo_scale_of(double std, double floor) {
  return std >= CAPO_STD_ZERO ? (float)(1 / (std < floor ? floor : std)) : 0.f;
}

CAPO_TOKENS capo_stats capo_norm(const capo_credit *c, const capo_sums *means, const capo_spreads *s) {
  const double by_token = capo_std(s->reward, means->tokens), by_sequence = capo_std(s->mean_reward, means->sequences);
  const float token = (float)means->reward, sequence = (float)means->mean_reward;
  const float scaled = by_token >= CAPO_STD_ZERO ? 1.f : 0.f;
  capo_stats stats = {0.f, 1.f, 0.f, 1.f};
  switch (c->norm) {
  case CAPO_GROUP_TOKEN:
    stats.shift0 = token, stats.scale0 = stats.scale1 = capo_scale_of(by_token, c->std_floor);
    break;
  case CAPO_GROUP_SEQUENCE:
    stats.shift0 = sequence, stats.scale0 = stats.scale1 = capo_scale_of(by_sequence, c->std_floor);
    break;
  case CAPO_SEPARATE:
    stats.shift0 = (float)means->outcome, stats.shift1 = (float)means->process;
    stats.scale0 = capo_scale_of(capo_std(s->outcome, means->sequences), c->std_floor);
    stats.scale1 = capo_scale_of(capo_std(s->process, means->tokens), c->std_floor);
    break;
  case CAPO_CENTER: stats.shift0 = token, stats.scale0 = stats.scale1 = scaled; break;
  case CAPO_SEQUENCE_CENTER: stats.shift0 = sequence, stats.scale0 = stats.scale1 = scaled; break;
  default: break;
  }
  return stats;
}

/* The statistics passed by the caller; NaN for a group without any. */
CAPO_TOKENS capo_stats capo_given(const capo_credit *c, int64_t b) {
  const int64_t g = capo_group(c, b);
  const float *row = c->stats + 4 * g;
  capo_stats stats = {NAN, NAN, NAN, NAN};
  if (g >= 0 && g < c->groups) stats.shift0 = row[0], stats.scale0 = row[1], stats.shift1 = row[2], stats.scale1 = row[3];
  return stats;
}

CAPO_TOKENS float capo_advantage(const capo_credit *c, const capo_stats *s, float outcome, float wrong) {
  const float reward = (float)c->outcome_weight * outcome, process = -(float)c->process_weight * wrong;
  return (reward - s->shift0) * s->scale0 + (process - s->shift1) * s->scale1;
}

/* ---- sequences ---- */

CAPO_TOKENS float capo_mean_log_ratio(double sum, double count) {
  const float mean = (float)sum / (count > 0 ? (float)count : 1.f);
  return mean < -20.f ? -20.f : mean > 20.f ? 20.f : mean;
}

/* ---- sums of the results ---- */

typedef struct {
  double sum[CAPO_RAW], loss; /* of RAW without its extremes */
  float lowest, highest, highest_is;
} capo_totals;

CAPO_TOKENS capo_totals capo_nothing(void) {
  capo_totals t = {{0}, 0, INFINITY, -INFINITY, -INFINITY};
  return t;
}

/* NaN stays. */
CAPO_TOKENS float capo_lower(float x, float y) { return x < y || x != x ? x : y; }
CAPO_TOKENS float capo_higher(float x, float y) { return x > y || x != x ? x : y; }

CAPO_TOKENS void capo_add_row(capo_totals *t, const float *terms, float entropy) {
  const float ratio = terms[CAPO_RATIO], w = terms[CAPO_IS];
  t->loss += terms[CAPO_LOSS];
  t->sum[CAPO_RAW_TOKENS] += 1;
  t->sum[CAPO_RAW_RATIO_SUM] += ratio;
  t->sum[CAPO_RAW_CLIP_LOW_COUNT] += terms[CAPO_CLIP_LOW];
  t->sum[CAPO_RAW_CLIP_HIGH_COUNT] += terms[CAPO_CLIP_HIGH];
  t->sum[CAPO_RAW_APPROX_KL_SUM] += terms[CAPO_APPROX_KL];
  t->sum[CAPO_RAW_REF_KL_SUM] += terms[CAPO_REF_KL];
  t->sum[CAPO_RAW_ENTROPY_SUM] += entropy;
  t->sum[CAPO_RAW_IS_WEIGHT_SUM] += w;
  t->sum[CAPO_RAW_IS_WEIGHT_SQ_SUM] += (double)w * w;
  t->sum[CAPO_RAW_ACTIVE_COUNT] += terms[CAPO_ACTIVE];
  t->lowest = capo_lower(ratio, t->lowest), t->highest = capo_higher(ratio, t->highest);
  t->highest_is = capo_higher(w, t->highest_is);
}

CAPO_TOKENS void capo_write_summary(const capo_summary *s, const capo_totals *t) {
  const int none = t->sum[CAPO_RAW_TOKENS] == 0;
  for (int i = 0; i < CAPO_RAW; ++i) s->raw[i] = (float)t->sum[i];
  s->raw[CAPO_RAW_RATIO_MIN] = none ? NAN : t->lowest;
  s->raw[CAPO_RAW_RATIO_MAX] = none ? NAN : t->highest;
  s->raw[CAPO_RAW_IS_WEIGHT_MAX] = none ? NAN : t->highest_is;
  if (!s->has_ref) s->raw[CAPO_RAW_REF_KL_SUM] = NAN;
  if (!s->has_is)
    s->raw[CAPO_RAW_IS_WEIGHT_SUM] = s->raw[CAPO_RAW_IS_WEIGHT_SQ_SUM] = s->raw[CAPO_RAW_IS_WEIGHT_MAX] = NAN;
  *s->loss = (float)t->loss;
}
