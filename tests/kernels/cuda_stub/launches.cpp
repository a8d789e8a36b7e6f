// What csrc/cuda_launch.cuh asks of the CUDA runtime, a line for each launch.
#include <cstdio>

#include "cuda_launch.cuh"

void first(int) {}
void second(int) {}

void line(int status) {
  printf("%d %s\n", status, calls.c_str());
  calls.clear();
}

int main() {
  const Launch on_0 = {4, 384, 1000, 0, nullptr}, on_1 = {4, 384, 1000, 1, nullptr}, wider = {4, 384, 60000, 0, nullptr};
  failing = 2;
  line(on_0.persistent(first, 100, 0));
  failing = 0;
  line(on_0.persistent(first, 100, 0));
  line(on_0.persistent(first, 10, 0));
  line(on_0.persistent(second, 100, 0));
  line(on_1.persistent(first, 100, 0));
  line(wider.persistent(first, 100, 0));
  line(on_0.persistent(first, 100, 0));
  line(wider.persistent(first, 100, 0));
  line(on_1(first, 3, 0));
}
