// csrc/cuda.cu over the emulated GPU, with what the tests ask of its parts.
#define CAPO_DEVICE "cuda_emulated.h"
#include "cuda.cu"

namespace {

// Places at which the largest of N elements is missed.
template <int N> int missed() {
  int count = 0;
  for (int at = 0; at < N; ++at) {
    float x[N] = {};
    x[at] = 1.f;
    count += largest(x, fmaxf) != 1.f;
  }
  return count;
}

template <int... N> int missed_up_to(std::integer_sequence<int, N...>) { return (missed<N + 1>() + ...); }

} // namespace

extern "C" int probe_launches() { return launches; }

extern "C" int probe_largest() { return missed_up_to(std::make_integer_sequence<int, 24>()); }
