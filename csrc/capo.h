/* The C interface of libcapo_cpu and libcapo_cuda: plain pointers, no torch.
 *
 * Letters: T tokens (rows), V vocabulary, B sequences, S steps. Rows of `logits` and `grad` are contiguous and lie
 * `*_stride` elements apart; every other array is contiguous. With z = logits / temperature (after
 * softcap tanh(logits / softcap) where softcap > 0):
 *
 *   lse = logsumexp(z)    logp = z[target] - lse    entropy = lse - sum_j p_j z_j    p_j = exp(z_j - lse)
 *   grad_j = dz_j/dlogits_j (slope (onehot_j - p_j) - entropy_slope p_j (z_j - lse + entropy))
 *
 * A target outside [0, V) in a row that is read gives logp = NaN and is never dereferenced. */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CAPO_F32 = 0, CAPO_BF16 = 1, CAPO_F16 = 2 };

typedef struct {
  const void *logits; /* [T, V] */
  void *grad;         /* [T, V] in the dtype of logits; may be `logits` itself; NULL: no gradient wanted */
  const int32_t *targets; /* [T] */
  const float *weight;    /* [T] or NULL: a row of weight 0 is not read; its results and its gradient are 0 */
  int64_t tokens, vocab, stride, grad_stride;
  float temperature, softcap; /* softcap 0: none */
  int32_t dtype;
} capo_logits;

/* What a row of the loss has beside its logits. NULL where absent. */
typedef struct {
  const float *advantage;        /* [T], or NULL and the four of credit: */
  const int32_t *step;           /* [T], index into process; S where a token belongs to no step */
  const int32_t *sequence;       /* [T], index into reward */
  const float *process;          /* [S + 1], -P wrong; the last one 0 */
  const float *reward;           /* [B, 5]: C outcome, outcome shift and scale, process shift and scale */
  const float *old_logp;         /* [T], or NULL: the current ones */
  const float *ref_logp;         /* [T] */
  const float *importance;       /* [T]: rollout log-probs; with is_sequence the sequence's sum of old - rollout */
  const float *sequence_log_ratio; /* [T]: log s_i, clamped; NULL: token ratios */
} capo_tokens;

enum { CAPO_PPO = 0, CAPO_CISPO = 1, CAPO_REINFORCE = 2 };
enum { CAPO_K1 = 0, CAPO_K2 = 1, CAPO_K3 = 2 };
enum { CAPO_IS_NONE = 0, CAPO_IS_TRUNCATE = 1, CAPO_IS_MASK = 2 };

typedef struct {
  int32_t objective, kl_estimator, kl_ratio, is_mode, is_sequence;
  float ratio_low, ratio_high, dual_clip; /* 1 - clip_low, 1 + clip_high, inf where off */
  float kl_coef, entropy_coef, is_low, is_high;
} capo_spec;

/* The columns of terms [T, 16]; a row of weight 0 has 0 in all but the maxima, which are -inf. */
enum {
  CAPO_LOGP, CAPO_ENTROPY,
  CAPO_LOSS,      /* weight (w l + kl_coef KL - entropy_coef H) */
  CAPO_TOKENS, CAPO_RATIO, CAPO_CLIP_LOW, CAPO_CLIP_HIGH, CAPO_APPROX_KL, CAPO_REF_KL, CAPO_IS, CAPO_IS_SQUARE,
  CAPO_ACTIVE,    /* 1 where the derivative by logp or H is not 0 */
  CAPO_ADVANTAGE,
  CAPO_NEG_RATIO_MAX, CAPO_RATIO_MAX, CAPO_IS_MAX,
  CAPO_TERMS      /* = 16 */
};

/* libcapo_cpu. 0, or a negative number for an argument it does not take. `threads` >= 1. */
int capo_cpu_loss(const capo_logits *, const capo_tokens *, const capo_spec *, float *terms, int threads);
int capo_cpu_logprobs(const capo_logits *, float *logp, float *entropy, int threads);
/* slope = dlogp, entropy_slope = dentropy (NULL: 0); a row where both are 0 is not read and gets 0. */
int capo_cpu_dlogits(const capo_logits *, const float *dlogp, const float *dentropy, int threads);
const char *capo_cpu_isa(void); /* "avx512", "avx2" or "portable": what runs on this machine */

/* libcapo_cuda, sm_90a. A cudaError_t, or a negative number for an argument it does not take. Asynchronous. */
int capo_cuda_loss(const capo_logits *, const capo_tokens *, const capo_spec *, float *terms, void *stream);
int capo_cuda_logprobs(const capo_logits *, float *logp, float *entropy, void *stream);
int capo_cuda_dlogits(const capo_logits *, const float *dlogp, const float *dentropy, void *stream);
/* grad *= *factor, a device pointer; for nothing where it is 1. Reads grad, tokens, vocab, grad_stride and dtype. */
int capo_cuda_scale(const capo_logits *, const float *factor, void *stream);
int64_t capo_cuda_max_vocab(int32_t dtype); /* the widest row that a cluster holds */
const char *capo_cuda_error(int code);

#ifdef __cplusplus
}
#endif
