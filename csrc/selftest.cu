/* libcapo_cuda without torch: `selftest LIBRARY [--small]`. Each case runs the loss and its gradient over logits in
 * device memory, and the log-probs alone, against sums in double on the host. One line of JSON per finished case; exit
 * status 1 if one is wrong. `--small` is for compute-sanitizer.
 *
 * Outputs and the memory between rows are filled with NaN before a call. */
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "capo.h"

namespace {

void require(bool good, const char *what, const char *why) {
  if (good) return;
  fprintf(stderr, "%s: %s\n", what, why);
  exit(2);
}

void check(cudaError_t error, const char *what) { require(!error, what, cudaGetErrorString(error)); }

struct Library {
  decltype(capo_cuda_loss) *loss;
  decltype(capo_cuda_logprobs) *logprobs;
  decltype(capo_cuda_max_vocab) *max_vocab;
  decltype(capo_cuda_error) *error;

  explicit Library(const char *path) {
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    require(handle, path, handle ? "" : dlerror());
    find(handle, "capo_cuda_loss", loss), find(handle, "capo_cuda_logprobs", logprobs);
    find(handle, "capo_cuda_max_vocab", max_vocab), find(handle, "capo_cuda_error", error);
    decltype(capo_cuda_abi) *abi;
    find(handle, "capo_cuda_abi", abi);
    require(abi() == CAPO_ABI, path, "built from other sources than this program");
  }
  template <typename Function> static void find(void *handle, const char *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    require(function, name, "not in the library");
  }
  void check(int code, const char *what) const { require(!code, what, code ? error(code) : ""); }
};

// Device memory of n elements: those of `from`, else NaN in every type.
template <typename T> struct Device {
  T *data = nullptr;
  size_t n;

  explicit Device(size_t n) : n(n) {
    check(cudaMalloc(reinterpret_cast<void **>(&data), n * sizeof(T)), "cudaMalloc");
    check(cudaMemset(data, 0xff, n * sizeof(T)), "cudaMemset");
  }
  explicit Device(const std::vector<T> &from) : Device(from.size()) {
    check(cudaMemcpy(data, from.data(), n * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  Device(const Device &) = delete;
  ~Device() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> out(n);
    check(cudaMemcpy(out.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return out;
  }
};

// ------------------------------------------------------------------------------------------------------- number types

const char *const NAMES[] = {"float32", "bfloat16", "float16"};
const int BYTES[] = {4, 2, 2};
const double ALLOWED[] = {1e-5, 5e-3, 1e-3}; // of the gradient, relative to its norm: rounding of the output type

double decode(int dtype, const uint8_t *p) {
  uint32_t bits = 0;
  memcpy(&bits, p, BYTES[dtype]);
  if (dtype == CAPO_F16) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                                       : ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
  }
  if (dtype == CAPO_BF16) bits <<= 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// Truncates a number to the type, if its exponent is normal there.
void encode(int dtype, float x, uint8_t *p) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (dtype == CAPO_F16) bits = (bits >> 16 & 0x8000) | (((bits >> 23 & 255) - 112) << 10) | (bits >> 13 & 1023);
  if (dtype == CAPO_BF16) bits >>= 16;
  memcpy(p, &bits, BYTES[dtype]);
}

struct Random {
  uint64_t state = 1;

  double uniform() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 11) * 0x1p-53;
  }
};

// --------------------------------------------------------------------------------------------------------------- cases

struct Case {
  int dtype, tokens, vocab, lead, gap; // elements before the first row and between rows
  bool in_place;
  float softcap;
};

constexpr float TEMPERATURE = 0.7f, ENTROPY_COEF = 0.1f;

// Relative errors in norm, so far.
struct Error {
  double difference = 0, size = 0;

  void add(double got, double want) {
    difference += got == got ? (got - want) * (got - want) : INFINITY;
    size += want * want;
  }
  double relative() const { return sqrt(difference / (size > 0 ? size : 1)); }
};

struct Errors {
  Error logp, entropy, alone, gradient;
  bool beside_kept = true;
};

struct Row {
  double weight, advantage;
  int64_t target;
};

// Adds the errors of one row's results. REINFORCE: the loss is weight (-advantage logp - ENTROPY_COEF entropy).
void judge(const Case &c, const uint8_t *logits, const uint8_t *grad, const Row &row, float logp, float entropy,
           float alone, Errors &errors) {
  std::vector<double> z(c.vocab), slope(c.vocab, 1 / TEMPERATURE);
  double top = -INFINITY, sum = 0, mean = 0;
  for (int j = 0; j < c.vocab; ++j) {
    const double x = decode(c.dtype, logits + j * BYTES[c.dtype]), cap = c.softcap;
    const double y = cap > 0 ? cap * tanh(x / cap) : x;
    z[j] = y / TEMPERATURE, top = fmax(top, z[j]);
    if (cap > 0) slope[j] *= 1 - y / cap * (y / cap);
  }
  for (double each : z) sum += exp(each - top);
  const double lse = top + log(sum);
  for (double each : z) mean += exp(each - lse) * each;
  const double want = z[row.target] - lse, spread = lse - mean;
  const double read = row.weight != 0;
  errors.logp.add(logp, read * want), errors.entropy.add(entropy, read * spread), errors.alone.add(alone, read * want);
  for (int j = 0; j < c.vocab; ++j) {
    const double p = exp(z[j] - lse), by_logp = -row.weight * row.advantage, by_entropy = -row.weight * ENTROPY_COEF;
    const double exact = slope[j] * (by_logp * ((j == row.target) - p) - by_entropy * p * (z[j] - lse + spread));
    errors.gradient.add(decode(c.dtype, grad + j * BYTES[c.dtype]), exact);
  }
}

bool run(const Library &library, const Case &c) {
  const int64_t stride = c.vocab + c.gap, count = c.lead + c.tokens * stride, bytes = BYTES[c.dtype];
  Random random;
  std::vector<uint8_t> logits(count * bytes, 0xff);
  std::vector<float> weight(c.tokens), advantage(c.tokens);
  std::vector<int64_t> target(c.tokens);
  for (int t = 0; t < c.tokens; ++t) {
    for (int j = 0; j < c.vocab; ++j) {
      const float sign = random.uniform() < 0.5 ? -1.f : 1.f;
      encode(c.dtype, sign * float(0.01 + 6 * random.uniform()), &logits[(c.lead + t * stride + j) * bytes]);
    }
    weight[t] = t % 5 == 3 ? 0.f : 0.25f, advantage[t] = float(2 * random.uniform() - 1);
    target[t] = int64_t(random.uniform() * c.vocab);
  }
  const Device<uint8_t> x(logits), separate(logits.size());
  const Device<float> weights(weight), advantages(advantage), logp(c.tokens), entropy(c.tokens), alone(c.tokens),
      other(c.tokens), terms(c.tokens * CAPO_TERMS);
  const Device<int64_t> targets(target);
  const Device<uint8_t> &grad = c.in_place ? x : separate;
  const capo_logits a = {x.data + c.lead * bytes, grad.data + c.lead * bytes, targets.data, weights.data, c.tokens,
                         c.vocab, stride, stride, TEMPERATURE, c.softcap, c.dtype, 1};
  capo_tokens tokens = {};
  tokens.advantage = advantages.data;
  capo_spec spec = {};
  spec.objective = CAPO_REINFORCE, spec.ratio_low = 0.8f, spec.ratio_high = 1.2f, spec.dual_clip = INFINITY;
  spec.entropy_coef = ENTROPY_COEF;
  const capo_results results = {logp.data, entropy.data, terms.data};
  library.check(library.logprobs(&a, alone.data, other.data, 0, nullptr), "capo_cuda_logprobs");
  library.check(library.loss(&a, &tokens, &spec, &results, 0, nullptr), "capo_cuda_loss");
  check(cudaDeviceSynchronize(), "the kernels");

  Errors errors;
  const auto got_logp = logp.host(), got_entropy = entropy.host(), got_alone = alone.host();
  const auto got_grad = grad.host();
  for (int t = 0; t < c.tokens; ++t) {
    const int64_t at = (c.lead + t * stride) * bytes;
    const Row row = {weight[t], advantage[t], target[t]};
    judge(c, &logits[at], &got_grad[at], row, got_logp[t], got_entropy[t], got_alone[t], errors);
    for (int64_t i = at + c.vocab * bytes; i < at + stride * bytes; ++i) errors.beside_kept &= got_grad[i] == 0xff;
  }
  const bool good = errors.logp.relative() < 1e-5 && errors.entropy.relative() < 1e-5 &&
                    errors.alone.relative() < 1e-5 && errors.gradient.relative() < ALLOWED[c.dtype] &&
                    errors.beside_kept;
  printf("{\"part\": \"selftest\", \"dtype\": \"%s\", \"tokens\": %d, \"vocab\": %d, \"lead\": %d, \"gap\": %d, "
         "\"in_place\": %s, \"softcap\": %g, \"logp\": %.1e, \"entropy\": %.1e, \"logprobs\": %.1e, "
         "\"gradient\": %.1e, \"beside_kept\": %s, \"good\": %s}\n",
         NAMES[c.dtype], c.tokens, c.vocab, c.lead, c.gap, c.in_place ? "true" : "false", c.softcap,
         errors.logp.relative(), errors.entropy.relative(), errors.alone.relative(), errors.gradient.relative(),
         errors.beside_kept ? "true" : "false", good ? "true" : "false");
  fflush(stdout);
  return good;
}

// One block to a row up to eight, rows that begin at any byte of a vector, one row, more rows than a GPU holds.
std::vector<Case> cases(bool small) {
  std::vector<Case> found;
  for (int dtype : {CAPO_BF16, CAPO_F32, CAPO_F16}) {
    found.push_back({dtype, 5, small ? 4'099 : 50'257, 3, 5, false, 0.f});
    found.push_back({dtype, 3, 1'024, 0, 0, true, 5.f});
    if (small) continue;
    for (int vocab : {7, 32'000, 128'256, 151'936, 152'064}) found.push_back({dtype, 3, vocab, 0, 0, true, 0.f});
    found.push_back({dtype, 1'000, 2'000, 1, 1, true, 0.f});
  }
  if (!small) found.push_back({CAPO_BF16, 2, 262'144, 0, 0, true, 0.f});
  return found;
}

} // namespace

int main(int count, char **arguments) {
  require(count == 2 || (count == 3 && !strcmp(arguments[2], "--small")), arguments[0], "want LIBRARY [--small]");
  const Library library(arguments[1]);
  bool good = true;
  for (const Case &each : cases(count == 3))
    if (each.vocab <= library.max_vocab(each.dtype)) good &= run(library, each);
  return good ? 0 : 1;
}
