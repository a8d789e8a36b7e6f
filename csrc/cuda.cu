/* The row kernels on sm_90a. This file has been compiled for a GPU and run on a CPU (tests/kernels/cuda_emulated.h); it
 * has never run on a GPU.
 *
 * With y the softcapped logits, top = max y, u = (y - top) log2(e) / temperature, s = sum 2^u, m = sum 2^u u / s:
 *
 *   logp = (y[target] - top) / temperature - ln(s)    entropy = ln(s) - ln(2) m
 *   grad = dy/dlogits / temperature (2^u / s (-dlogp + dentropy ln(2) (m - u)) + onehot dlogp)
 *
 * so a row must be whole before its gradient can begin. `stream_rows` keeps it on the chip meanwhile: a cluster of
 * blocks holds one row, a part in each block's shared memory; device memory sees one read and one write (304 KB each
 * for V = 152,064 in bfloat16: 76 KB a block at 4 blocks). In each block one thread copies chunks into a ring of
 * slots; the others sum over a chunk as it lands, exchange their sums once per row with the whole cluster, write the
 * gradient from the slots, and free each slot for a chunk of the next row. Clusters loop over rows.
 * Without a gradient the same kernel is a single read; its slots are free after the sums. */
#include <float.h>
#include <math.h>
#include <string.h>

#ifndef CAPO_DEVICE
#define CAPO_DEVICE "cuda_device.cuh"
#endif
#include CAPO_DEVICE
#include "row.h"
#include "cuda_tokens.cuh"

namespace {

constexpr int WARP = 32, WARPS = CONSUMERS / WARP, MAX_CLUSTER = 8;
constexpr int VECTOR_BYTES = 16, PER_THREAD = 2, CHUNK = PER_THREAD * CONSUMERS; // in vectors
constexpr int SLOT = CHUNK + 1;                                                  // a chunk that starts within one
constexpr int SLOT_BYTES = SLOT * VECTOR_BYTES;
constexpr int MAX_SLOTS = SHARED_BYTES / SLOT_BYTES;
// Of `scale`: threads, vectors to a part, and blocks, enough to fill a device and few to start where the factor is 1.
constexpr int SCALE_THREADS = 256, SCALE_VECTORS = 8 * SCALE_THREADS;
constexpr int64_t SCALE_BLOCKS = 2048;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
// Stands for infinity where a factor may be 0: 0 * LARGE is 0. Far beyond any exponent, and no product overflows.
constexpr float LARGE = 1e30f;

template <int DTYPE> struct Element {
  using Bits = uint16_t;
  static constexpr int WIDTH = 8; // elements of a vector

  static __device__ void unpack(uint4 v, float (&x)[WIDTH]) {
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; ++i) {
      float2 pair = ::unpack<DTYPE>(pairs[i]);
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    }
  }
  static __device__ uint4 pack(const float (&x)[WIDTH]) {
    return {::pack<DTYPE>({x[0], x[1]}), ::pack<DTYPE>({x[2], x[3]}), ::pack<DTYPE>({x[4], x[5]}),
            ::pack<DTYPE>({x[6], x[7]})};
  }
  static __device__ float load(const Bits *p) { return ::unpack<DTYPE>(*p).x; }
  static __device__ void store(Bits *p, float x) { *p = static_cast<Bits>(::pack<DTYPE>({x, 0.f})); }
};

template <> struct Element<CAPO_F32> {
  using Bits = float;
  static constexpr int WIDTH = 4;

  static __device__ void unpack(uint4 v, float (&x)[WIDTH]) { memcpy(x, &v, sizeof v); }
  static __device__ uint4 pack(const float (&x)[WIDTH]) {
    uint4 v;
    memcpy(&v, x, sizeof v);
    return v;
  }
  static __device__ float load(const float *p) { return *p; }
  static __device__ void store(float *p, float x) { *p = x; }
};

// Up to a few thousand elements of a row, and the aligned vectors of memory that they lie in; `lead` elements of the
// first vector are not theirs, and the last may end with others.
template <int DTYPE> struct Span {
  using E = Element<DTYPE>;
  using Bits = typename E::Bits;
  int count, lead, vectors;

  __device__ Span(const Bits *first, int64_t count) : count(static_cast<int>(count)) {
    lead = static_cast<int>(reinterpret_cast<uintptr_t>(first) % VECTOR_BYTES / sizeof(Bits));
    vectors = (lead + this->count + E::WIDTH - 1) / E::WIDTH;
  }
  __device__ bool whole(int v) const { return v * E::WIDTH >= lead && (v + 1) * E::WIDTH <= lead + count; }

  // Vector v to a span that starts at `first`: whole if it lies in memory as this one does, else element by element.
  __device__ void store(Bits *first, int v, const float (&x)[E::WIDTH], bool alike) const {
    const int at = v * E::WIDTH - lead;
    if (alike && whole(v)) return store_vector(reinterpret_cast<uint4 *>(first + at), E::pack(x));
    for (int i = 0; i < E::WIDTH; ++i)
      if (at + i >= 0 && at + i < count) E::store(first + at + i, x[i]);
  }
};

template <bool SOFTCAP> struct Head {
  float softcap;

  __device__ float cap(float x) const { return SOFTCAP ? softcap * tanhf(x / softcap) : x; }
  // dy/dx
  __device__ float slope(float y) const { return SOFTCAP ? 1.f - (y / softcap) * (y / softcap) : 1.f; }
};

// The largest of x, as a tree whose depth is log2(N). A half that is rounded up leaves no element out, whatever N is.
template <int N> __device__ float largest(const float (&x)[N]) {
  float most[N];
  for (int i = 0; i < N; ++i) most[i] = x[i];
#pragma unroll
  for (int left = N; left > 1; left = (left + 1) / 2)
    for (int i = 0; i < left / 2; ++i) most[i] = fmaxf(most[i], most[i + (left + 1) / 2]);
  return most[0];
}

// Sums over some of a row's y; k = log2(e) / temperature. The largest y has u = 0 exactly, so that no log-prob exceeds
// 0 and no entropy falls below. NaN, which maxima drop, stays in the sums.
struct Softmax {
  float top = -FLT_MAX, sum = 0.f, weighted = 0.f; // of y, of 2^u and of 2^u u

  __device__ void raise(float to, float k) {
    const float lift = fminf((to - top) * k, LARGE), factor = exp2_fast(-lift);
    weighted = factor * (weighted - lift * sum);
    sum *= factor;
    top = to;
  }

  template <int N> __device__ void add(const float (&y)[N], float k) {
    raise(fmaxf(top, largest(y)), k);
    for (int i = 0; i < N; ++i) {
      const float u = (y[i] - top) * k, e = exp2_fast(u);
      sum += e;
      weighted = fmaf(e, fmaxf(u, -LARGE), weighted);
    }
  }

  __device__ void merge(Softmax other, float k) {
    const float to = fmaxf(top, other.top);
    raise(to, k);
    other.raise(to, k);
    sum += other.sum;
    weighted += other.weighted;
  }

  __device__ void merge_warp(float k) {
    for (int lanes = WARP / 2; lanes; lanes /= 2) {
      Softmax other;
      other.top = shuffle_xor(top, lanes);
      other.sum = shuffle_xor(sum, lanes);
      other.weighted = shuffle_xor(weighted, lanes);
      merge(other, k);
    }
  }
};

// The gradient of a row by y as a function of u, but for the target's.
struct Curve {
  float constant, linear;

  __device__ float at(float u) const { return exp2_fast(u) * fmaf(linear, fmaxf(u, -LARGE), constant); }
};

// By y, at the target: 1 - p without the cancellation.
__device__ float target_gradient(capo_slopes slopes, float logp, float entropy, float temperature) {
  float by_entropy = expf(logp) * (fmaxf(logp, -LARGE) + entropy);
  return (-slopes.logp * expm1f(logp) - slopes.entropy * by_entropy) / temperature;
}

__device__ bool lie_alike(const void *a, const void *b) {
  return (reinterpret_cast<uintptr_t>(a) - reinterpret_cast<uintptr_t>(b)) % VECTOR_BYTES == 0;
}

// ------------------------------------------------------------------------------------------------ rows and their sums

struct Shared {
  // Of even and of odd rows: who sends for a row has heard of the one before from all, so all are done with the one
  // before that.
  Barrier exchanged[2];
  float4 told[2][MAX_CLUSTER * WARPS]; // by every warp of the cluster: top, sum, weighted, y[target]
  Barrier full[MAX_SLOTS], empty[MAX_SLOTS];
  alignas(128) uint4 slots[1][SLOT]; // as many as the launch asks for
};
constexpr int FIXED_BYTES = sizeof(Shared) - SLOT_BYTES;

struct Ring {
  int slots, slot, phase;

  __device__ void advance() {
    if (++slot == slots) slot = 0, phase ^= 1;
  }
};

// A cluster's rows. Whether one is to be read is known a row ahead.
template <typename Result> struct Rows {
  const Result &result;
  int64_t row, step, tokens;
  float weight, next;

  __device__ Rows(const Result &result, int64_t tokens) : result(result), tokens(tokens) {
    row = cluster_index(), step = cluster_count();
    weight = read(row), next = read(row + step);
  }
  __device__ float read(int64_t row) const { return row < tokens ? result.weight(row) : 0.f; }
  __device__ bool more() const { return row < tokens; }
  __device__ void advance() { row += step, weight = next, next = read(row + step); }
};

// A Result says what becomes of a row's sums. `weight`: 0 where the row is not to be read; then `skip` is called, else
// `read`, ahead of the sums, which take longer than its reads, and after them `finish`, in all threads, one of which
// `writes`. It returns the derivatives of the loss by logp and entropy.
struct Loss {
  const float *weights;
  capo_tokens tokens;
  capo_spec spec;
  capo_results out;

  struct Row {
    float advantage, old_logp, ref_logp, importance;
  };

  __device__ float weight(int64_t row) const { return weights ? weights[row] : 1.f; }

  __device__ Row read(int64_t row) const {
    return {tokens.advantage[row], tokens.old_logp ? tokens.old_logp[row] : 0.f,
            tokens.ref_logp ? tokens.ref_logp[row] : 0.f, tokens.importance ? tokens.importance[row] : 0.f};
  }

  __device__ capo_slopes finish(const Row &x, int64_t row, float weight, float logp, float entropy,
                                bool writes) const {
    // Where old or ref are absent logp stands for them, and the pointers are never NULL: a pointer that may or may not
    // be to a local variable would force that variable out of its register.
    const float old_logp = tokens.old_logp ? x.old_logp : logp, ref_logp = tokens.ref_logp ? x.ref_logp : logp;
    capo_tokens token = {};
    token.advantage = &x.advantage, token.importance = &x.importance;
    token.old_logp = &old_logp, token.ref_logp = &ref_logp;
    token.coefficients = tokens.coefficients;
    token.sequence_log_ratio = tokens.sequence_log_ratio ? tokens.sequence_log_ratio + row : nullptr;
    float terms[CAPO_TERMS];
    capo_slopes slopes = capo_row(&token, &spec, 0, weight, logp, entropy, terms);
    if (writes) write(row, logp, entropy, terms);
    return slopes;
  }

  __device__ void skip(int64_t row) const { write(row, 0.f, 0.f, {}); }

  __device__ void write(int64_t row, float logp, float entropy, const float (&terms)[CAPO_TERMS]) const {
    out.logp[row] = logp, out.entropy[row] = entropy;
    for (int i = 0; i < CAPO_TERMS; ++i) out.terms[row * CAPO_TERMS + i] = terms[i];
  }
};

struct Logprobs {
  const float *weights;
  float *logp, *entropy;

  struct Row {};

  __device__ float weight(int64_t row) const { return weights ? weights[row] : 1.f; }

  __device__ Row read(int64_t) const { return {}; }

  __device__ capo_slopes finish(Row, int64_t row, float, float logp_, float entropy_, bool writes) const {
    if (writes) logp[row] = logp_, entropy[row] = entropy_;
    return {0.f, 0.f};
  }

  __device__ void skip(int64_t row) const { logp[row] = entropy[row] = 0.f; }
};

// The sums are formed again: a log-sum that logprobs had left, rounded to float32, would make every p wrong by up to
// 2^-25 of its size.
struct Slopes {
  const float *dlogp, *dentropy;

  using Row = capo_slopes;

  __device__ float weight(int64_t row) const {
    const capo_slopes slopes = read(row);
    return slopes.logp == 0.f && slopes.entropy == 0.f ? 0.f : 1.f;
  }

  __device__ Row read(int64_t row) const { return {dlogp[row], dentropy ? dentropy[row] : 0.f}; }

  __device__ capo_slopes finish(Row x, int64_t, float, float, float, bool) const { return x; }

  __device__ void skip(int64_t) const {}
};

// The elements of a row that are this block's: `share`, less in the last blocks.
struct Part {
  int64_t begin, end;

  __device__ Part(int64_t vocab, int64_t share) {
    begin = cluster_rank() * share, end = begin + share < vocab ? begin + share : vocab;
  }
};

template <int DTYPE>
__device__ Span<DTYPE> chunk_at(const typename Element<DTYPE>::Bits *row, int64_t at, int64_t end) {
  constexpr int64_t ELEMENTS = CHUNK * Element<DTYPE>::WIDTH;
  return {row + at, end - at < ELEMENTS ? end - at : ELEMENTS};
}

// Copies whole vectors: up to 15 bytes on either side of a chunk come along. They share 16 aligned bytes with it, so
// they can be read wherever it can; another block may be writing them by now, and nobody looks at them.
template <int DTYPE, typename Result>
__device__ void produce(const capo_logits &a, const Result &result, Shared &shared, Ring ring, int64_t share) {
  using Bits = typename Element<DTYPE>::Bits;
  const Part part(a.vocab, share);
  for (Rows<Result> rows(result, a.tokens); rows.more(); rows.advance()) {
    if (rows.weight == 0.f) continue;
    const Bits *row = static_cast<const Bits *>(a.logits) + rows.row * a.stride;
    for (int64_t at = part.begin; at < part.end; at += CHUNK * Element<DTYPE>::WIDTH, ring.advance()) {
      const Span<DTYPE> chunk = chunk_at<DTYPE>(row, at, part.end);
      const int bytes = chunk.vectors * VECTOR_BYTES;
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      shared.full[ring.slot].expect(bytes);
      shared.full[ring.slot].copy(shared.slots[ring.slot], row + at - chunk.lead, bytes);
    }
  }
}

template <int DTYPE, bool SOFTCAP, typename Result>
__device__ void consume(const capo_logits &a, const Result &result, Shared &shared, Ring ring, int64_t share) {
  using E = Element<DTYPE>;
  using Bits = typename E::Bits;
  constexpr int W = E::WIDTH;
  const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
  const int rank = cluster_rank(), blocks = cluster_size();
  const bool first = rank == 0 && thread == 0;
  const Part part(a.vocab, share);
  const Head<SOFTCAP> head = {a.softcap};
  const float k = LOG2E / a.temperature;
  unsigned exchanges = 0;

  auto release = [&](int slot) {
    warp_sync();
    if (lane == 0) shared.empty[slot].arrive();
  };

  for (Rows<Result> rows(result, a.tokens); rows.more(); rows.advance()) {
    Bits *grad = a.grad ? static_cast<Bits *>(a.grad) + rows.row * a.grad_stride : nullptr;
    if (rows.weight == 0.f) {
      if (first) result.skip(rows.row);
      for (int64_t at = part.begin; grad && at < part.end; at += CHUNK * W) {
        const Span<DTYPE> chunk = chunk_at<DTYPE>(grad, at, part.end);
        for (int v = thread; v < chunk.vectors; v += CONSUMERS) chunk.store(grad + at, v, {}, true);
      }
      continue;
    }
    const Bits *row = static_cast<const Bits *>(a.logits) + rows.row * a.stride;
    const typename Result::Row scalars = result.read(rows.row);
    const int64_t target = capo_target(&a, rows.row);
    const bool known = target >= 0;
    float y_target = rank == 0 && known ? head.cap(E::load(row + target)) : NAN;

    // A thread takes the same elements wherever the row begins in memory, so that no bit of the sums depends on that.
    Softmax total;
    Ring summed = ring;
    for (int64_t at = part.begin; at < part.end; at += CHUNK * W, summed.advance()) {
      const Span<DTYPE> chunk = chunk_at<DTYPE>(row, at, part.end);
      const uint4 *slot = shared.slots[summed.slot];
      shared.full[summed.slot].wait(summed.phase);
      if (thread * W < chunk.count) {
        float y[PER_THREAD * W];
        for (int i = 0; i < PER_THREAD; ++i) {
          float(&some)[W] = reinterpret_cast<float(&)[W]>(y[i * W]);
          const int v = thread + i * CONSUMERS, left = chunk.count - v * W;
          if (chunk.lead == 0) {
            E::unpack(slot[v], some);
          } else {
            const Bits *from = reinterpret_cast<const Bits *>(slot) + chunk.lead + v * W;
            for (int j = 0; j < W; ++j) some[j] = E::load(from + j);
          }
          for (float &x : some) x = head.cap(x);
          if (left < W)
            for (int j = 0; j < W; ++j) some[j] = j < left ? some[j] : -INFINITY;
        }
        total.add(y, k);
      }
      if (!grad) release(summed.slot);
    }

    // Every warp tells every block of the cluster, and every warp adds up what its block was told. The target's y goes
    // along, because in place it can be overwritten as soon as one block has heard of all the others.
    const int odd = exchanges & 1, phase = exchanges / 2 & 1;
    ++exchanges;
    total.merge_warp(k);
    if (thread == 0) shared.exchanged[odd].expect(blocks * WARPS * sizeof(float4));
    const float4 tells = {total.top, total.sum, total.weighted, y_target};
    if (lane < blocks) shared.exchanged[odd].send(&shared.told[odd][rank * WARPS + warp], tells, lane);
    shared.exchanged[odd].wait_cluster(phase);
    y_target = shared.told[odd][0].w;
    total = Softmax();
    for (int i = lane; i < blocks * WARPS; i += WARP) {
      const float4 told = shared.told[odd][i];
      Softmax other;
      other.top = told.x, other.sum = told.y, other.weighted = told.z;
      total.merge(other, k);
    }
    total.merge_warp(k);

    const float log_sum = logf(total.sum), mean = total.weighted / total.sum, entropy = log_sum - LN2 * mean;
    const float logp = (y_target - total.top) / a.temperature - log_sum;
    const capo_slopes slopes = result.finish(scalars, rows.row, rows.weight, logp, entropy, first);
    if (!grad) {
      ring = summed;
      continue;
    }

    const float per_sum = 1.f / (total.sum * a.temperature), linear = per_sum * slopes.entropy * LN2;
    const Curve curve = {linear * mean - per_sum * slopes.logp, -linear};
    const bool alike = lie_alike(row, grad);
    for (int64_t at = part.begin; at < part.end; at += CHUNK * W, ring.advance()) {
      const Span<DTYPE> chunk = chunk_at<DTYPE>(row, at, part.end);
#pragma unroll 2
      for (int v = thread; v < chunk.vectors; v += CONSUMERS) {
        float x[W];
        E::unpack(shared.slots[ring.slot][v], x);
        for (float &value : x) {
          const float y = head.cap(value);
          value = curve.at((y - total.top) * k) * head.slope(y);
        }
        chunk.store(grad + at, v, x, alike);
      }
      release(ring.slot);
      // The target's once more, by the thread that has just written it.
      if (known && target >= at && target < at + chunk.count && (target - at + chunk.lead) / W % CONSUMERS == thread)
        E::store(grad + target, target_gradient(slopes, logp, entropy, a.temperature) * head.slope(y_target));
    }
  }
}

// `slots` of the ring; `share`: elements of a row to a block.
template <int DTYPE, bool SOFTCAP, typename Result>
__global__ void __launch_bounds__(CONSUMERS + WARP, RESIDENT)
    stream_rows(const __grid_constant__ capo_logits a, const __grid_constant__ Result result, int slots,
                int64_t share) {
  Shared &shared = *reinterpret_cast<Shared *>(shared_memory());
  if (threadIdx.x == 0) {
    for (Barrier &barrier : shared.exchanged) barrier.init(1);
    for (int i = 0; i < slots; ++i) shared.full[i].init(1), shared.empty[i].init(WARPS);
    publish_barriers();
  }
  cluster_sync();
  const Ring ring = {slots, 0, 0};
  if (threadIdx.x < CONSUMERS) {
    consume<DTYPE, SOFTCAP>(a, result, shared, ring, share);
  } else if (threadIdx.x == CONSUMERS) {
    produce<DTYPE>(a, result, shared, ring, share);
  }
  cluster_sync(); // no block leaves while another may write to its shared memory
}

// ---------------------------------------------------------------------------------------------------------- scaling

// grad *= factor; blocks go over the parts of all rows.
template <int DTYPE>
__global__ void __launch_bounds__(SCALE_THREADS)
    scale(const __grid_constant__ capo_logits a, const float *factor, int64_t parts) {
  using E = Element<DTYPE>;
  using Bits = typename E::Bits;
  constexpr int64_t SHARE = SCALE_VECTORS * E::WIDTH;
  const float by = *factor;
  if (by == 1.f) return;
  for (int64_t i = blockIdx.x; i < a.tokens * parts; i += gridDim.x) {
    const int64_t at = i % parts * SHARE, left = a.vocab - at;
    Bits *first = static_cast<Bits *>(a.grad) + i / parts * a.grad_stride + at;
    const Span<DTYPE> span(first, left < SHARE ? left : SHARE);
    for (int v = threadIdx.x; v < span.vectors; v += SCALE_THREADS) {
      Bits *p = first + v * E::WIDTH - span.lead;
      float x[E::WIDTH];
      if (span.whole(v)) {
        E::unpack(load_vector(reinterpret_cast<const uint4 *>(p)), x);
      } else {
        for (int j = 0; j < E::WIDTH; ++j) x[j] = p + j >= first && p + j < first + span.count ? E::load(p + j) : 0.f;
      }
      for (float &value : x) value *= by;
      span.store(first, v, x, true);
    }
  }
}

// --------------------------------------------------------------------------------------------------------- launches

enum { BAD_DTYPE = -1, BAD_SHAPE = -2, BAD_HEAD = -3, TOO_WIDE = -4, NO_GRAD = -5 };

constexpr int slots_within(int bytes) { return (bytes - FIXED_BYTES) / SLOT_BYTES; }

int check(const capo_logits *a) {
  if (a->dtype != CAPO_F32 && a->dtype != CAPO_BF16 && a->dtype != CAPO_F16) return BAD_DTYPE;
  if (a->tokens < 0 || a->vocab < 1) return BAD_SHAPE;
  return a->temperature > 0.f && a->softcap >= 0.f ? 0 : BAD_HEAD;
}

// call(dtype) with a dtype that is a compile-time constant.
template <int N> struct Constant {
  static constexpr int value = N;
};
template <typename Call> int with_dtype(int dtype, Call call) {
  if (dtype == CAPO_F32) return call(Constant<CAPO_F32>());
  return dtype == CAPO_BF16 ? call(Constant<CAPO_BF16>()) : call(Constant<CAPO_F16>());
}

// As few blocks to a row as let two of them stand on a multiprocessor; else the most, with all of its memory each.
template <int DTYPE, typename Result>
int launch_rows(const capo_logits &a, const Result &result, int device, void *stream) {
  constexpr int64_t WIDTH = Element<DTYPE>::WIDTH;
  const int64_t vectors = (a.vocab + WIDTH - 1) / WIDTH;
  int cluster = 1, slots = slots_within(SHARED_BYTES_EACH);
  auto share = [&] { return (vectors + cluster - 1) / cluster; };
  auto holds = [&] { return !a.grad || share() <= static_cast<int64_t>(slots) * CHUNK; };
  while (cluster < MAX_CLUSTER && !holds()) cluster *= 2;
  if (!holds()) slots = slots_within(SHARED_BYTES);
  if (!holds()) return TOO_WIDE;
  auto kernel = a.softcap > 0.f ? stream_rows<DTYPE, true, Result> : stream_rows<DTYPE, false, Result>;
  const Launch launch = {cluster, CONSUMERS + WARP, FIXED_BYTES + slots * SLOT_BYTES, device, stream};
  return launch.persistent(kernel, a.tokens, a, result, slots, share() * WIDTH);
}

template <typename Result> int launch_rows(const capo_logits *a, const Result &result, int device, void *stream) {
  if (int bad = check(a)) return bad;
  if (a->tokens == 0) return 0;
  return with_dtype(a->dtype, [&](auto dtype) { return launch_rows<dtype.value>(*a, result, device, stream); });
}

} // namespace

extern "C" {

int capo_cuda_loss(const capo_logits *a, const capo_tokens *tokens, const capo_spec *spec, const capo_results *out,
                   int device, void *stream) {
  return launch_rows(a, Loss{a->weight, *tokens, *spec, *out}, device, stream);
}

int capo_cuda_logprobs(const capo_logits *a, float *logp, float *entropy, int device, void *stream) {
  capo_logits read_only = *a;
  read_only.grad = nullptr;
  return launch_rows(&read_only, Logprobs{a->weight, logp, entropy}, device, stream);
}

int capo_cuda_dlogits(const capo_logits *a, const float *dlogp, const float *dentropy, int device, void *stream) {
  return a->grad || a->tokens == 0 ? launch_rows(a, Slopes{dlogp, dentropy}, device, stream) : NO_GRAD;
}

int capo_cuda_scale(const capo_logits *a, const float *factor, int device, void *stream) {
  if (int bad = check(a)) return bad;
  if (a->tokens == 0) return 0;
  return with_dtype(a->dtype, [&](auto dtype) {
    constexpr int DTYPE = dtype.value;
    constexpr int64_t SHARE = SCALE_VECTORS * Element<DTYPE>::WIDTH;
    const int64_t parts = (a->vocab + SHARE - 1) / SHARE, blocks = a->tokens * parts;
    const Launch launch = {1, SCALE_THREADS, 0, device, stream};
    return launch(scale<DTYPE>, blocks < SCALE_BLOCKS ? blocks : SCALE_BLOCKS, *a, factor, parts);
  });
}

int capo_cuda_abi(void) { return CAPO_ABI; }

int64_t capo_cuda_max_vocab(int32_t dtype) {
  return int64_t(MAX_CLUSTER) * slots_within(SHARED_BYTES) * CHUNK * (dtype == CAPO_F32 ? 4 : 8);
}

const char *capo_cuda_error(int code) {
  switch (code) {
  case BAD_DTYPE: return "dtype: want float32, bfloat16 or float16";
  case BAD_SHAPE: return "tokens, vocab: want 0 <= tokens and 1 <= vocab";
  case BAD_HEAD: return "temperature, softcap: want temperature > 0 and softcap >= 0";
  case TOO_WIDE: return "vocab: wider than capo_cuda_max_vocab";
  case NO_GRAD: return "grad: got NULL";
  default: return device_error(code);
  }
}
}
