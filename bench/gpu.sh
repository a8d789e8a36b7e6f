#!/usr/bin/env bash
# First checks on an NVIDIA GPU, in at most 270 seconds: bash bench/gpu.sh [FOLDER/] [--dry]
#
# The most important parts come first, in case the machine is lost: machine, libraries, csrc/selftest without torch,
# compute-sanitizer on small cases, the gate against float64, our own speed against the bounds, counters of one launch
# of each kernel, the tests. bench/gpu_more.sh has peers, training steps and the trainer.
#
# Needs no network and no installation, only the packages of bench/gpu/machine.txt. It needs nvcc unless working
# libcapo_cuda.so and selftest are in kernels/capo_kernels/lib (`python -m bench.gpu.build kernels/capo_kernels/lib`).
# FOLDER (with a slash; default runs/gpu) gets the results line by line: bench/gpu/parts.sh. --dry runs on a CPU.
budget=270
. "$(dirname "$0")/gpu/parts.sh"

part about 20 $python -m bench.gpu.about
part build 60 $python -m bench.gpu.build "$built"
part selftest 25 "$built/selftest" "$built/libcapo_cuda.so"
if has compute-sanitizer; then
    for tool in memcheck synccheck racecheck; do
        part "$tool" 15 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$built/selftest" "$built/libcapo_cuda.so" --small
    done
fi
part gate 40 $python -m bench.gpu.gate $device $impls
ours="capo or multiply or read or GEMM or bound"
bench policy_loss 45 -k "$ours"
part shapes 20 $python -m bench.gpu.shapes
bench token_logprobs 20 -k "$ours"
bench linear_policy_loss 45 -k "$ours"
if has ncu; then
    for impl in $impls; do
        for kind in loss logprobs; do
            part "ncu-$impl-$kind" 20 ncu --clock-control none --launch-count 4 --set basic --section \
                MemoryWorkloadAnalysis --kernel-name 'regex:stream_rows|_loss|_logprobs' \
                $python -m bench.gpu.launch_once "$impl" "$kind"
        done
    done
fi
tests="$(ls tests/kernels/test_*.py | grep -vE 'triton_|emulated|instruction_sets|cuda_launches|cuda_resources|linear_gemms|covering')"
[ -n "$dry" ] && tests=tests/kernels/test_coefficients.py
for impl in $impls; do
    part "tests-$impl" 90 env CAPO_TEST_IMPL=$impl CAPO_TEST_DEVICE=$device $python -m pytest -q -p no:cacheprovider \
        -n "$([ -n "$dry" ] && echo 0 || echo 12)" --dist worksteal $tests
done
[ -n "$dry" ] || part registers 30 $python -m bench.kernels.triton_resources
finish
