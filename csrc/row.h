/* The scalar part of the loss: one row's terms and the derivatives of its loss. Shared by the CPU and the CUDA kernels.
 * Differences of log-probs are clamped to +-20 before they enter an exp; a clamped row has derivative 0 there. */
#pragma once
#include <math.h>

#include "capo.h"

#ifdef __CUDACC__
#define CAPO_ROW __device__ __forceinline__
#else
#define CAPO_ROW static inline
#endif

typedef struct {
  float logp, entropy; /* of the loss, by logp and by the entropy */
} capo_slopes;

typedef struct {
  float value, slope; /* slope: by logp */
} capo_dual;

CAPO_ROW float capo_clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* exp(clamp(x)) and its derivative by x. NaN stays NaN. */
CAPO_ROW capo_dual capo_clamped_exp(float x) {
  float value = expf(capo_clamp(x, -20.f, 20.f));
  capo_dual out = {value, fabsf(x) > 20.f ? 0.f : value};
  return out;
}

/* The target of a row; -1 if it is outside the row. */
CAPO_ROW int64_t capo_target(const capo_logits *l, int64_t row) {
  int64_t target = l->wide_targets ? ((const int64_t *)l->targets)[row] : ((const int32_t *)l->targets)[row];
  return target >= 0 && target < l->vocab ? target : -1;
}

/* The spec with its coefficients replaced by those of the tokens, if given. */
CAPO_ROW capo_spec capo_live(const capo_spec *s, const float *c) {
  capo_spec live = *s;
  if (c) {
    live.ratio_low = c[0], live.ratio_high = c[1], live.dual_clip = c[2], live.kl_coef = c[3];
    live.entropy_coef = c[4], live.is_low = c[5], live.is_high = c[6];
  }
  return live;
}

CAPO_ROW capo_dual capo_policy(const capo_spec *s, capo_dual rho, float advantage, float logp) {
  if (s->objective == CAPO_REINFORCE) {
    capo_dual out = {-advantage * logp, -advantage};
    return out;
  }
  if (s->objective == CAPO_CISPO) {
    float capped = rho.value > s->ratio_high ? s->ratio_high : rho.value;
    capo_dual out = {-capped * advantage * logp, -capped * advantage};
    return out;
  }
  /* NaN is not clipped: its gradient is NaN too. */
  int held = advantage > 0 ? rho.value > s->ratio_high : advantage <= 0 && rho.value < s->ratio_low;
  float ratio = held ? (advantage > 0 ? s->ratio_high : s->ratio_low) : rho.value;
  if (advantage < 0 && ratio > s->dual_clip) {
    held = 1;
    ratio = s->dual_clip;
  }
  capo_dual out = {-ratio * advantage, held ? 0.f : -rho.slope * advantage};
  return out;
}

CAPO_ROW capo_dual capo_kl(const capo_spec *s, capo_dual rho, float logp, float ref) {
  capo_dual kl;
  if (s->kl_estimator == CAPO_K1) {
    kl.value = logp - ref, kl.slope = 1.f;
  } else if (s->kl_estimator == CAPO_K2) {
    kl.value = 0.5f * (logp - ref) * (logp - ref), kl.slope = logp - ref;
  } else {
    float x = capo_clamp(ref - logp, -20.f, 20.f), e = expf(x);
    kl.value = e - x - 1.f, kl.slope = fabsf(ref - logp) > 20.f ? 0.f : 1.f - e;
  }
  if (!s->kl_ratio) return kl;
  capo_dual out = {kl.value * rho.value, kl.slope * rho.value + kl.value * rho.slope};
  return out;
}

CAPO_ROW float capo_importance(const capo_spec *s, const capo_tokens *t, int64_t row, float old_logp) {
  if (s->is_mode == CAPO_IS_NONE) return 1.f;
  float x = s->is_level == CAPO_LEVEL_SEQUENCE ? t->importance[row] : old_logp - t->importance[row];
  float w = capo_clamped_exp(x).value;
  if (s->is_mode == CAPO_IS_TRUNCATE) return w > s->is_high ? s->is_high : w;
  return w >= s->is_low && w <= s->is_high ? w : (w == w ? 0.f : w);
}

/* Writes the row's terms; returns the derivatives of its loss. Weight 0: its terms are 0. */
CAPO_ROW capo_slopes capo_row(const capo_tokens *t, const capo_spec *given, int64_t row, float weight, float logp,
                              float entropy, float *terms) {
  const capo_spec live = capo_live(given, t->coefficients), *s = &live;
  float advantage = t->advantage[row];
  float old_logp = t->old_logp ? t->old_logp[row] : logp;
  capo_dual token = capo_clamped_exp(logp - old_logp), rho = token;
  if (t->sequence_log_ratio) rho.value = rho.slope = expf(t->sequence_log_ratio[row]);
  float w = capo_importance(s, t, row, old_logp);
  capo_dual policy = capo_policy(s, rho, advantage, logp), kl = {0.f, 0.f};
  if (t->ref_logp) kl = capo_kl(s, rho, logp, t->ref_logp[row]);
  float loss = w * policy.value, slope = w * policy.slope;
  if (s->kl_coef != 0.f) loss += s->kl_coef * kl.value, slope += s->kl_coef * kl.slope;
  if (s->entropy_coef != 0.f) loss -= s->entropy_coef * entropy;
  capo_slopes slopes = {weight * slope, -weight * s->entropy_coef};
  terms[CAPO_LOSS] = weight * loss;
  terms[CAPO_RATIO] = rho.value;
  terms[CAPO_CLIP_LOW] = advantage < 0 && rho.value < s->ratio_low;
  terms[CAPO_CLIP_HIGH] = advantage > 0 && rho.value > s->ratio_high;
  terms[CAPO_APPROX_KL] = token.value - capo_clamp(logp - old_logp, -20.f, 20.f) - 1.f;
  terms[CAPO_REF_KL] = kl.value;
  terms[CAPO_IS] = w;
  terms[CAPO_ACTIVE] = slopes.logp != 0.f || s->entropy_coef != 0.f;
  return slopes;
}

