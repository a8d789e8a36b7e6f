/* The row kernels on sm_90a. This file has been compiled for a GPU and run on a CPU (tests/kernels/cuda_emulated.h); it
 * has never run on a GPU.
 *
 * With y the softcapped logits, top = max y, u = (y - top) log2(e) / temperature, s = sum 2^u, m = sum 2^u u / s:
 *
 *   logp = (y[target] - top) / temperature - ln(s)    entropy = ln(s) - ln(2) m
 *   grad = dy/dlogits / temperature (2^u / s (-dlogp + dentropy ln(2) (m - u)) + onehot dlogp)
 *
 * so a row must be whole before its gradient can begin. `stream_rows` keeps it on the chip meanwhile: a cluster of
 * blocks holds one row, a part in each block's shared memory; device memory has one read and one write (304 KB each
 * for V = 152,064 in bfloat16: 76 KB a block at 4 blocks). In each block one thread copies chunks into a ring of
 * slots; the others sum over a chunk as it lands, exchange their sums once per row with the whole cluster, write the
 * gradient from the slots, and free each slot for a chunk of the next row. Clusters loop over rows.
 * Without a gradient the same kernel is a single read; its slots are free after the sums. */
#include <stdlib.h>

#include <algorithm>
#include <string>

#ifndef CAPO_DEVICE
#define CAPO_DEVICE "cuda_device.cuh"
#endif
#include CAPO_DEVICE
#include "cuda_sums.cuh"
#include "cuda_tokens.cuh"
#include "row.h"

namespace {

constexpr int MAX_CLUSTER = 8;
// Of `scale`: threads, vectors to a part, and blocks, enough to fill a device, and few to launch if the factor is 1.
constexpr int SCALE_THREADS = 256, SCALE_VECTORS = 8 * SCALE_THREADS;
constexpr int64_t SCALE_BLOCKS = 2048;

// Derivative by y at the target: 1 - p without cancellation.
__device__ float target_gradient(capo_slopes slopes, float logp, float entropy, float temperature) {
  float by_entropy = expf(logp) * (fmaxf(logp, -LARGE) + entropy);
  return (-slopes.logp * expm1f(logp) - slopes.entropy * by_entropy) / temperature;
}

__device__ bool same_alignment(const void *a, const void *b) {
  return (reinterpret_cast<uintptr_t>(a) - reinterpret_cast<uintptr_t>(b)) % VECTOR_BYTES == 0;
}

// ------------------------------------------------------------------------------------------------ rows and their sums

template <int N> struct Constant {
  static constexpr int value = N;
};

// One of SHAPES.
template <int INDEX> struct Shape {
  static constexpr int CONSUMERS = SHAPES[INDEX][0], PER_THREAD = SHAPES[INDEX][1], WARPS = CONSUMERS / WARP;
  // Assumes that the block's warps are spread evenly over the four schedulers of a multiprocessor; if they are not,
  // the registers still suffice.
  static constexpr int BOUND = (WARPS + 1 + 3) / 4 * 4 * WARP;
  static constexpr int CHUNK = CONSUMERS * PER_THREAD; // in vectors
  static constexpr int SLOT = CHUNK + 1;               // a chunk that starts within one
  static constexpr int SLOT_BYTES = SLOT * VECTOR_BYTES, MAX_SLOTS = SHARED_BYTES / SLOT_BYTES;

  struct Shared {
    // Double-buffered by row parity: a block sends for row i only after it received row i - 1 from every block, so the
    // buffer of row i - 2 is free.
    Barrier exchanged[2];
    float4 partials[2][MAX_CLUSTER * WARPS]; // per warp of the cluster: top, sum, weighted, y[target]
    Barrier full[MAX_SLOTS], empty[MAX_SLOTS];
    alignas(128) uint4 slots[1][SLOT]; // the launch sets their number
  };
  static constexpr int FIXED_BYTES = sizeof(Shared) - SLOT_BYTES;

  static constexpr int slots_within(int bytes) { return (bytes - FIXED_BYTES) / SLOT_BYTES; }
};

struct Ring {
  int slots, slot, phase;

  __device__ void advance() {
    if (++slot == slots) slot = 0, phase ^= 1;
  }
};

// A cluster's rows. The weight of the next row is read one row ahead.
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

// A Result consumes a row's sums. `weight` 0: the row is not read and `skip` is called. Otherwise `read` runs before
// the sums, which take longer than its loads, and `finish` after them, in all threads; one of them `writes`. It returns
// the derivatives of the loss by logp and entropy. GRADIENT: whether they may be wanted.
struct Loss {
  const float *weights;
  capo_tokens tokens;
  capo_spec spec;
  capo_results out;

  static constexpr bool GRADIENT = true;

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
    // logp replaces an absent old or ref, and the pointers are never NULL: a pointer that may or may not point to a
    // local variable would force that variable out of its register.
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

  static constexpr bool GRADIENT = false;

  struct Row {};

  __device__ float weight(int64_t row) const { return weights ? weights[row] : 1.f; }

  __device__ Row read(int64_t) const { return {}; }

  __device__ capo_slopes finish(Row, int64_t row, float, float logp_, float entropy_, bool writes) const {
    if (writes) logp[row] = logp_, entropy[row] = entropy_;
    return {0.f, 0.f};
  }

  __device__ void skip(int64_t row) const { logp[row] = entropy[row] = 0.f; }
};

// The sums are computed again: a log-sum kept from logprobs and rounded to float32 would change every p by up to 2^-25
// of its size.
struct Slopes {
  const float *dlogp, *dentropy;

  static constexpr bool GRADIENT = true;

  using Row = capo_slopes;

  __device__ float weight(int64_t row) const {
    const capo_slopes slopes = read(row);
    return slopes.logp == 0.f && slopes.entropy == 0.f ? 0.f : 1.f;
  }

  __device__ Row read(int64_t row) const { return {dlogp[row], dentropy ? dentropy[row] : 0.f}; }

  __device__ capo_slopes finish(Row x, int64_t, float, float, float, bool) const { return x; }

  __device__ void skip(int64_t) const {}
};

// This block's elements of a row: `share`, fewer in the last blocks.
struct Part {
  int64_t begin;
  int count;

  __device__ Part(int64_t vocab, int64_t share) : begin(cluster_rank() * share) {
    const int64_t left = vocab - begin;
    count = static_cast<int>(left < 0 ? 0 : left < share ? left : share);
  }
};

// Copies whole vectors, with up to 15 extra bytes on either side of a chunk. They share 16 aligned bytes with it, so
// they are readable if it is; another block may be writing them, and they are not used.
template <typename Shape, int DTYPE, bool EVEN, typename Result>
__device__ void produce(const capo_logits &a, const Result &result, typename Shape::Shared &shared, Ring ring,
                        int64_t share) {
  using Bits = typename Element<DTYPE>::Bits;
  constexpr int ELEMENTS = Shape::CHUNK * Element<DTYPE>::WIDTH;
  const Part part(a.vocab, share);
  for (Rows<Result> rows(result, a.tokens); rows.more(); rows.advance()) {
    if (rows.weight == 0.f) continue;
    const Bits *from = static_cast<const Bits *>(a.logits) + rows.row * a.stride + part.begin;
    for (int left = part.count; left > 0; left -= ELEMENTS, from += ELEMENTS, ring.advance()) {
      const Span<DTYPE, EVEN> chunk(from, left < ELEMENTS ? left : ELEMENTS);
      const int bytes = chunk.vectors() * VECTOR_BYTES;
      shared.empty[ring.slot].wait(ring.phase ^ 1);
      shared.full[ring.slot].expect(bytes);
      shared.full[ring.slot].copy(shared.slots[ring.slot], from - chunk.lead, bytes);
    }
  }
}

template <typename Shape, int DTYPE, bool SOFTCAP, bool EVEN> struct Consumer {
  using E = Element<DTYPE>;
  using Bits = typename E::Bits;
  using Row = Span<DTYPE, EVEN>;
  using RowSums = Sums<DTYPE, SOFTCAP>;
  static constexpr int W = E::WIDTH, CONSUMERS = Shape::CONSUMERS, PER_THREAD = Shape::PER_THREAD;
  static constexpr int ELEMENTS = Shape::CHUNK * W;

  typename Shape::Shared &shared;
  const Head<SOFTCAP> head;
  const Scale<DTYPE, SOFTCAP> scale;
  Ring ring;
  int exchanges = 0;

  __device__ void release() {
    warp_sync();
    if (threadIdx.x % WARP == 0) shared.empty[ring.slot].arrive();
  }

  // A thread takes the same elements at any alignment of the row, so that the sums do not depend on it.
  __device__ RowSums sum(Row part, bool keep) {
    RowSums total;
    auto take = [&](auto whole, int left) {
      const int thread = threadIdx.x;
      const uint4 *slot = shared.slots[ring.slot];
      shared.full[ring.slot].wait(ring.phase);
      if (whole.value || thread * W < left)
        total.template add<PER_THREAD>([&](int i) { return part.load(slot, thread + i * CONSUMERS); },
                                       [&](int i) { return whole.value ? W : left - (thread + i * CONSUMERS) * W; },
                                       head, scale);
      if (!keep) release();
      ring.advance();
    };
    int left = part.count;
    for (; left >= ELEMENTS; left -= ELEMENTS) take(Constant<1>(), ELEMENTS);
    if (left > 0) take(Constant<0>(), left);
    return total;
  }

  // Every warp sends its sums to every block of the cluster, and every warp adds up those that its block received. The
  // target's y is sent too: in place it can be overwritten as soon as one block has received from all others.
  __device__ RowSums exchange(RowSums mine, float &y_target) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, blocks = cluster_size();
    const int odd = exchanges & 1, phase = exchanges / 2 & 1, all = blocks * Shape::WARPS;
    ++exchanges;
    mine.merge_warp(scale);
    if (threadIdx.x == 0) shared.exchanged[odd].expect(all * static_cast<int>(sizeof(float4)));
    float4 *partials = &shared.partials[odd][cluster_rank() * Shape::WARPS + warp];
    if (lane < blocks) shared.exchanged[odd].send(partials, {mine.top, mine.sum, mine.weighted, y_target}, lane);
    shared.exchanged[odd].wait_cluster(phase);
    y_target = shared.partials[odd][0].w;
    RowSums total;
    total.gather(shared.partials[odd], all, scale);
    total.settle();
    return total;
  }

  // gradient(vector of logits) to `grad`, which has the part's elements.
  template <typename Gradient> __device__ void write(Bits *grad, Row part, bool alike, Gradient gradient) {
    auto take = [&](auto whole, int left) {
      const uint4 *slot = shared.slots[ring.slot] + threadIdx.x;
      if constexpr (EVEN) {
        uint4 *out = reinterpret_cast<uint4 *>(grad) + threadIdx.x;
#pragma unroll
        for (int i = 0; i < PER_THREAD; ++i)
          if (whole.value || (static_cast<int>(threadIdx.x) + i * CONSUMERS) * W < left)
            store_vector(out + i * CONSUMERS, gradient(slot[i * CONSUMERS]));
      } else {
        Row chunk = part;
        chunk.count = left;
        const int vectors = chunk.vectors() - threadIdx.x;
        for (int i = 0; i < vectors; i += CONSUMERS) chunk.store(grad, threadIdx.x + i, gradient(slot[i]), alike);
      }
      release();
      ring.advance();
      grad += ELEMENTS;
    };
    int left = part.count;
    for (; left >= ELEMENTS; left -= ELEMENTS) take(Constant<1>(), ELEMENTS);
    if (left > 0) take(Constant<0>(), left);
  }

  __device__ void write_zeros(Bits *grad, Row part) const {
    for (int v = threadIdx.x; v < part.vectors(); v += CONSUMERS) part.store(grad, v, {}, true);
  }

  // True if this thread has written element `at` of the part.
  __device__ static bool writes(int at, Row part) {
    return (at % ELEMENTS + part.lead) / W % CONSUMERS == static_cast<int>(threadIdx.x);
  }
};

template <typename Shape, int DTYPE, bool SOFTCAP, bool EVEN, typename Result>
__device__ void consume(const capo_logits &a, const Result &result, typename Shape::Shared &shared, Ring ring,
                        int64_t share) {
  using Bits = typename Element<DTYPE>::Bits;
  using Row = Span<DTYPE, EVEN>;
  using Scaled = Scale<DTYPE, SOFTCAP>;
  const Part part(a.vocab, share);
  const Head<SOFTCAP> head = {a.softcap};
  Consumer<Shape, DTYPE, SOFTCAP, EVEN> mine = {shared, head, Scaled(a.temperature), ring};
  const bool leads = cluster_rank() == 0, first = leads && threadIdx.x == 0;

  for (Rows<Result> rows(result, a.tokens); rows.more(); rows.advance()) {
    Bits *grad = a.grad ? static_cast<Bits *>(a.grad) + rows.row * a.grad_stride + part.begin : nullptr;
    if (rows.weight == 0.f) {
      if (first) result.skip(rows.row);
      if (grad) mine.write_zeros(grad, Row(grad, part.count));
      continue;
    }
    const Bits *logits = static_cast<const Bits *>(a.logits) + rows.row * a.stride;
    const Row row(logits + part.begin, part.count);
    const typename Result::Row scalars = result.read(rows.row);
    const int64_t target = capo_target(&a, rows.row);
    float y_target = leads && target >= 0 ? head.cap(Element<DTYPE>::load(logits + target)) : NAN;

    const Ring begin = mine.ring;
    const auto total = mine.exchange(mine.sum(row, Result::GRADIENT && grad), y_target);
    const float log_sum = logf(total.sum), mean = total.weighted / total.sum, wide = log_sum - LN2 * mean;
    const float entropy = wide < 0.f ? 0.f : wide, logp = (y_target - total.top) / a.temperature - log_sum;
    const capo_slopes slopes = result.finish(scalars, rows.row, rows.weight, logp, entropy, first);
    if (!Result::GRADIENT || !grad) continue;

    mine.ring = begin;
    const float per_sum = 1.f / (total.sum * a.temperature), linear = per_sum * slopes.entropy * LN2;
    const float constant = linear * mean - per_sum * slopes.logp, k = mine.scale.k;
    const bool alike = same_alignment(logits, grad - part.begin);
    if constexpr (Scaled::FUSED) {
      if (linear == 0.f && mine.scale.fused(total.top)) {
        mine.write(grad, row, alike, Power<DTYPE>(total.top, k, constant));
      } else {
        mine.write(grad, row, alike, Curve<DTYPE, SOFTCAP>{head, total.top, k, constant, -linear});
      }
    } else {
      mine.write(grad, row, alike, Curve<DTYPE, SOFTCAP>{head, total.top, k, constant, -linear});
    }
    // Rewrites the target's gradient, in the thread that has just written it.
    const int64_t at = target - part.begin;
    if (target >= 0 && at >= 0 && at < part.count && mine.writes(static_cast<int>(at), row))
      grad[at] = Element<DTYPE>::narrow(target_gradient(slopes, logp, entropy, a.temperature) * head.slope(y_target));
  }
}

// `slots` of the ring; `share`: elements of a row to a block.
template <typename Shape, int DTYPE, bool SOFTCAP, bool EVEN, typename Result>
__global__ void __launch_bounds__(Shape::BOUND, RESIDENT)
    stream_rows(const __grid_constant__ capo_logits a, const __grid_constant__ Result result, int slots,
                int64_t share) {
  auto &shared = *reinterpret_cast<typename Shape::Shared *>(kept_shared_memory());
  if (threadIdx.x == 0) {
    for (Barrier &barrier : shared.exchanged) barrier.init(1);
    for (int i = 0; i < slots; ++i) shared.full[i].init(1), shared.empty[i].init(Shape::WARPS);
    publish_barriers();
  }
  cluster_sync();
  const Ring ring = {slots, 0, 0};
  if (threadIdx.x < Shape::CONSUMERS) {
    consume<Shape, DTYPE, SOFTCAP, EVEN>(a, result, shared, ring, share);
  } else if (threadIdx.x == Shape::CONSUMERS) {
    produce<Shape, DTYPE, EVEN>(a, result, shared, ring, share);
  }
  cluster_sync(); // no block exits while another may write to its shared memory
}

// ---------------------------------------------------------------------------------------------------------- scaling

// grad *= factor; blocks loop over the parts of all rows.
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
    const Span<DTYPE, false> span(first, static_cast<int>(left < SHARE ? left : SHARE));
    for (int v = threadIdx.x; v < span.vectors(); v += SCALE_THREADS) {
      Bits *p = first + v * E::WIDTH - span.lead;
      float x[E::WIDTH];
      if (p >= first && p + E::WIDTH <= first + span.count) {
        E::unpack(load_vector(reinterpret_cast<const uint4 *>(p)), x);
      } else {
        for (int j = 0; j < E::WIDTH; ++j) x[j] = p + j >= first && p + j < first + span.count ? E::load(p + j) : 0.f;
      }
      for (float &value : x) value *= by;
      span.store(first, v, E::pack(x), true);
    }
  }
}

// --------------------------------------------------------------------------------------------------------- launches

enum { BAD_DTYPE = -1, BAD_SIZE = -2, BAD_HEAD = -3, TOO_WIDE = -4, NO_GRAD = -5, BAD_SHAPE = -6 };

int check(const capo_logits *a) {
  if (a->dtype != CAPO_F32 && a->dtype != CAPO_BF16 && a->dtype != CAPO_F16) return BAD_DTYPE;
  if (a->tokens < 0 || a->vocab < 1) return BAD_SIZE;
  if (a->vocab > INT32_MAX) return TOO_WIDE;
  return a->temperature > 0.f && a->softcap >= 0.f ? 0 : BAD_HEAD;
}

// call(dtype) with a dtype that is a compile-time constant.
template <typename Call> int with_dtype(int dtype, Call call) {
  if (dtype == CAPO_F32) return call(Constant<CAPO_F32>());
  return dtype == CAPO_BF16 ? call(Constant<CAPO_BF16>()) : call(Constant<CAPO_F16>());
}

// In vectors.
template <typename Shape> constexpr int64_t widest() {
  return int64_t(MAX_CLUSTER) * Shape::slots_within(SHARED_BYTES) * Shape::CHUNK;
}

// Index in SHAPES of CAPO_CUDA_SHAPE, such as 352x2; -1 if unknown.
int shape_index() {
  const char *wanted = getenv("CAPO_CUDA_SHAPE");
  if (!wanted || !*wanted) return 0;
  for (int i = 0; i < static_cast<int>(sizeof SHAPES / sizeof *SHAPES); ++i) {
    const std::string name = std::to_string(SHAPES[i][0]) + "x" + std::to_string(SHAPES[i][1]);
    if (name == wanted) return i;
  }
  return -1;
}

// The fewest blocks per row with which two fit on a multiprocessor; else the most, each with all of its memory.
template <typename Shape, int DTYPE, bool SOFTCAP, bool EVEN, typename Result>
int launch_shape(const capo_logits &a, const Result &result, int device, void *stream) {
  constexpr int64_t WIDTH = Element<DTYPE>::WIDTH;
  const int64_t vectors = (a.vocab + WIDTH - 1) / WIDTH;
  int cluster = 1, slots = Shape::slots_within(SHARED_BYTES_EACH);
  auto share = [&] { return (vectors + cluster - 1) / cluster; };
  auto holds = [&] { return !a.grad || share() <= static_cast<int64_t>(slots) * Shape::CHUNK; };
  while (cluster < MAX_CLUSTER && !holds()) cluster *= 2;
  if (!holds()) slots = Shape::slots_within(SHARED_BYTES);
  if (!holds()) return TOO_WIDE;
  const Launch launch = {cluster, Shape::CONSUMERS + WARP, Shape::FIXED_BYTES + slots * Shape::SLOT_BYTES, device, stream};
  return launch.persistent(stream_rows<Shape, DTYPE, SOFTCAP, EVEN, Result>, a.tokens, a, result, slots, share() * WIDTH);
}

// True if all rows of the logits and of the gradient begin and end with an aligned vector.
template <int DTYPE> bool even(const capo_logits &a) {
  constexpr int64_t WIDTH = Element<DTYPE>::WIDTH;
  auto aligned = [](const void *p) { return reinterpret_cast<uintptr_t>(p) % VECTOR_BYTES == 0; };
  const bool read = a.vocab % WIDTH == 0 && a.stride % WIDTH == 0 && aligned(a.logits);
  return read && (!a.grad || (a.grad_stride % WIDTH == 0 && aligned(a.grad)));
}

template <int DTYPE, typename Result>
int launch_rows(const capo_logits &a, const Result &result, int device, void *stream) {
  const int index = shape_index();
  if (index < 0) return BAD_SHAPE;
  if (a.softcap > 0.f) return launch_shape<Shape<0>, DTYPE, true, false>(a, result, device, stream);
  if (!even<DTYPE>(a)) return launch_shape<Shape<0>, DTYPE, false, false>(a, result, device, stream);
  if (index == 1) return launch_shape<Shape<1>, DTYPE, false, true>(a, result, device, stream);
  if (index == 2) return launch_shape<Shape<2>, DTYPE, false, true>(a, result, device, stream);
  return launch_shape<Shape<0>, DTYPE, false, true>(a, result, device, stream);
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
  return std::min({widest<Shape<0>>(), widest<Shape<1>>(), widest<Shape<2>>()}) * (dtype == CAPO_F32 ? 4 : 8);
}

const char *capo_cuda_error(int code) {
  switch (code) {
  case BAD_DTYPE: return "dtype: want float32, bfloat16 or float16";
  case BAD_SIZE: return "tokens, vocab: want 0 <= tokens and 1 <= vocab";
  case BAD_HEAD: return "temperature, softcap: want temperature > 0 and softcap >= 0";
  case TOO_WIDE: return "vocab: wider than capo_cuda_max_vocab";
  case NO_GRAD: return "grad: got NULL";
  case BAD_SHAPE: return "CAPO_CUDA_SHAPE: names none of the shapes of a block, as 352x2";
  default: return device_error(code);
  }
}
}
