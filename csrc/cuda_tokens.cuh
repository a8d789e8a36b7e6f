/* The computations over T around the row kernels: one block per sequence, or one for all results. Included by cuda.cu,
 * after the device. It has compiled and never run on a GPU. */
#pragma once
#include "tokens.h"

namespace {

constexpr int TOKEN_WARPS = 8, TOKEN_THREADS = 32 * TOKEN_WARPS, SUMMARY_WARPS = 16, SUMMARY_THREADS = 32 * SUMMARY_WARPS;

// Sums over the block, which all threads get. Their order depends on nothing but K and WARPS.
template <int WARPS, int K> __device__ __forceinline__ void block_sum(double (&x)[K]) {
  double *room = reinterpret_cast<double *>(shared_memory());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < K; ++i)
    for (int lanes = 16; lanes; lanes /= 2) x[i] += shuffle_xor(x[i], lanes);
  block_sync(); // until all threads have read the previous sums
  if (lane == 0)
#pragma unroll
    for (int i = 0; i < K; ++i) room[warp * K + i] = x[i];
  block_sync();
#pragma unroll
  for (int i = 0; i < K; ++i) {
    x[i] = 0;
    for (int w = 0; w < WARPS; ++w) x[i] += room[w * K + i];
  }
}

// fold(fold(x of one thread, x of another), ...) over the block, in thread 0.
template <int WARPS, typename Fold> __device__ float block_fold(float x, Fold fold) {
  float *room = reinterpret_cast<float *>(shared_memory());
  for (int lanes = 16; lanes; lanes /= 2) x = fold(x, shuffle_xor(x, lanes));
  block_sync();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  block_sync();
  for (int w = 0; w < WARPS; ++w) x = fold(x, room[w]);
  return x;
}

// ------------------------------------------------------------------------------------------------------------ credit

// Bytes that are not 0.
__device__ int count_bytes(uint32_t x) {
  x |= x >> 4 & 0x0f0f0f0f, x |= x >> 2 & 0x03030303, x |= x >> 1;
  return bit_count(x & 0x01010101);
}

// Steps that begin before token `end`, counted by the block 16 bytes to a thread.
__device__ __forceinline__ int64_t steps_before(const uint8_t *starts, int64_t end) {
  const int lead = static_cast<int>(-reinterpret_cast<uintptr_t>(starts) % sizeof(uint4));
  const int64_t from = lead < end ? lead : end, vectors = (end - from) / static_cast<int64_t>(sizeof(uint4));
  double count[1] = {0};
  for (int64_t v = threadIdx.x; v < vectors; v += TOKEN_THREADS) {
    const uint4 x = load_vector(reinterpret_cast<const uint4 *>(starts + from) + v);
    count[0] += count_bytes(x.x) + count_bytes(x.y) + count_bytes(x.z) + count_bytes(x.w);
  }
  // At most 15 bytes on either side.
  const int64_t t = threadIdx.x, tail = from + vectors * static_cast<int64_t>(sizeof(uint4)) + t;
  count[0] += t < from && starts[t];
  count[0] += tail < end && starts[tail];
  block_sum<TOKEN_WARPS>(count);
  return static_cast<int64_t>(count[0]);
}

// call(token, wrong) for the tokens of sequence b, a token to a thread.
template <typename Call> __device__ __forceinline__ void walk(const capo_credit &c, int64_t b, int64_t before, Call call) {
  int *counts = reinterpret_cast<int *>(shared_memory());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t begin = capo_begin(c.cu_seqlens, b, c.sequences, c.tokens);
  const int64_t end = capo_begin(c.cu_seqlens, b + 1, c.sequences, c.tokens);
  int64_t seen = before;
  for (int64_t first = begin; first < end; first += TOKEN_THREADS) {
    const int64_t t = first + threadIdx.x;
    const uint32_t started = lanes_where(t < end && c.step_starts[t]);
    block_sync();
    if (lane == 0) counts[warp] = bit_count(started);
    block_sync();
    int64_t here = seen + bit_count(started & (0xffffffffu >> (31 - lane)));
    for (int w = 0; w < TOKEN_WARPS; ++w) {
      if (w < warp) here += counts[w];
      seen += counts[w];
    }
    if (t < end) call(t, capo_wrong(&c, here > before ? here - 1 : -1));
  }
}

__global__ void __launch_bounds__(TOKEN_THREADS, 4) sequence_moments(const __grid_constant__ capo_credit c) {
  const int64_t b = blockIdx.x;
  const int64_t before = steps_before(c.step_starts, capo_begin(c.cu_seqlens, b, c.sequences, c.tokens));
  double sums[2] = {0, 0}, spread[1] = {0};
  walk(c, b, before, [&](int64_t t, float wrong) {
    if (c.weight[t] != 0.f) sums[0] += 1, sums[1] -= c.process_weight * wrong;
  });
  block_sum<TOKEN_WARPS>(sums);
  const double mean = sums[0] > 0 ? sums[1] / sums[0] : 0;
  walk(c, b, before, [&](int64_t t, float wrong) {
    const double off = -c.process_weight * wrong - mean;
    if (c.weight[t] != 0.f) spread[0] += off * off;
  });
  block_sum<TOKEN_WARPS>(spread);
  double *moments = c.moments + CAPO_MOMENTS * b;
  if (threadIdx.x == 0) moments[CAPO_COUNT] = sums[0], moments[CAPO_MEAN] = mean, moments[CAPO_SPREAD] = spread[0];
}

// call(its moments, its C outcome) for the sequences in b's group, one to a thread.
template <typename Call> __device__ void walk_group(const capo_credit &c, int64_t b, Call call) {
  const int64_t group = capo_group(&c, b);
  for (int64_t i = threadIdx.x; i < c.sequences; i += TOKEN_THREADS)
    if (capo_group(&c, i) == group) call(c.moments + CAPO_MOMENTS * i, c.outcome_weight * c.outcome[i]);
}

__device__ capo_stats group_stats(const capo_credit &c, int64_t b) {
  capo_sums sums = {};
  capo_spreads spreads = {};
  walk_group(c, b, [&](const double *moments, double outcome) { capo_add(&sums, moments, outcome); });
  block_sum<TOKEN_WARPS>(reinterpret_cast<double(&)[sizeof sums / sizeof(double)]>(sums));
  const capo_sums means = capo_means(sums);
  walk_group(c, b, [&](const double *moments, double outcome) { capo_add_spread(&spreads, &means, moments, outcome); });
  block_sum<TOKEN_WARPS>(reinterpret_cast<double(&)[sizeof spreads / sizeof(double)]>(spreads));
  return capo_norm(&c, &means, &spreads);
}

__global__ void __launch_bounds__(TOKEN_THREADS) token_advantages(const __grid_constant__ capo_credit c) {
  const int64_t b = blockIdx.x;
  const capo_stats stats = c.stats ? capo_given(&c, b) : group_stats(c, b);
  const int64_t before = steps_before(c.step_starts, capo_begin(c.cu_seqlens, b, c.sequences, c.tokens));
  const float outcome = c.outcome[b];
  walk(c, b, before, [&](int64_t t, float wrong) { c.advantage[t] = capo_advantage(&c, &stats, outcome, wrong); });
}

// --------------------------------------------------------------------------------------------- sequences and results

__global__ void __launch_bounds__(TOKEN_THREADS) sequence_sums(const __grid_constant__ capo_sequences s) {
  const int64_t begin = capo_begin(s.cu_seqlens, blockIdx.x, s.sequences, s.tokens);
  const int64_t end = capo_begin(s.cu_seqlens, blockIdx.x + 1, s.sequences, s.tokens);
  const float *old = s.old_logp ? s.old_logp : s.logp;
  double sums[3] = {0, 0, 0}; // tokens, logp - old, old - rollout
  for (int64_t t = begin + threadIdx.x; t < end; t += TOKEN_THREADS) {
    if (s.weight[t] == 0.f) continue;
    sums[0] += 1;
    if (s.log_ratio && s.old_logp) sums[1] += s.logp[t] - s.old_logp[t];
    if (s.importance) sums[2] += old[t] - s.rollout_logp[t];
  }
  block_sum<TOKEN_WARPS>(sums);
  for (int64_t t = begin + threadIdx.x; t < end; t += TOKEN_THREADS) {
    if (s.log_ratio) s.log_ratio[t] = capo_mean_log_ratio(sums[1], sums[0]);
    if (s.importance) s.importance[t] = static_cast<float>(sums[2]);
  }
}

__global__ void __launch_bounds__(SUMMARY_THREADS) summary(const __grid_constant__ capo_summary s) {
  capo_totals totals = capo_nothing();
  for (int64_t t = threadIdx.x; t < s.tokens; t += SUMMARY_THREADS)
    if (s.weight[t] != 0.f) capo_add_row(&totals, s.terms + t * CAPO_TERMS, s.entropy[t]);
  block_sum<SUMMARY_WARPS>(totals.sum);
  double loss[1] = {totals.loss};
  block_sum<SUMMARY_WARPS>(loss);
  totals.loss = loss[0];
  totals.lowest = block_fold<SUMMARY_WARPS>(totals.lowest, capo_lower);
  totals.highest = block_fold<SUMMARY_WARPS>(totals.highest, capo_higher);
  totals.highest_is = block_fold<SUMMARY_WARPS>(totals.highest_is, capo_higher);
  if (threadIdx.x == 0) capo_write_summary(&s, &totals);
}

Launch token_launch(int warps, int doubles, int device, void *stream) {
  return {1, 32 * warps, warps * doubles * static_cast<int>(sizeof(double)), device, stream};
}

} // namespace

extern "C" {

int capo_cuda_advantages(const capo_credit *c, int device, void *stream) {
  if (c->sequences == 0) return 0;
  const Launch launch = token_launch(TOKEN_WARPS, sizeof(capo_sums) / sizeof(double), device, stream);
  if (!c->stats)
    if (int error = launch(sequence_moments, c->sequences, *c)) return error;
  return launch(token_advantages, c->sequences, *c);
}

int capo_cuda_sequences(const capo_sequences *s, int device, void *stream) {
  return s->sequences == 0 ? 0 : token_launch(TOKEN_WARPS, 3, device, stream)(sequence_sums, s->sequences, *s);
}

int capo_cuda_summary(const capo_summary *s, int device, void *stream) {
  return token_launch(SUMMARY_WARPS, CAPO_RAW, device, stream)(summary, 1, *s);
}
}
