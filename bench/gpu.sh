#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in under 8 minutes: bash bench/gpu.sh [FOLDER] [--dry]
#
# Correctness first (in parallel), then speed (alone), the most telling first. Each part is a process of its own with a
# deadline, where it is interrupted; one that fails does not stop the rest. `pytest bench/` by itself measures all cases.
# FOLDER gets results.json (for bench/results/<device>/), results.md and logs.tar.gz.
#
# Needs no network and no installation: torch with CUDA, triton, nvcc, g++, transformers, pytest, pytest-benchmark,
# pytest-xdist, hypothesis. Wheels in $PEERS (bench/peers) are unpacked for its time: of peers, and of what the trainer needs beside;
# what is not there says so. To fill it, elsewhere:
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d bench/peers \
#       liger-kernel==0.8.5 trl==1.16.0 datasets dill multiprocess pydantic pydantic-core annotated-types math-verify \
#       latex2sympy2_extended antlr4-python3-runtime==4.13.2 bokeh httpx2 httpcore2 truststore
#
# --dry runs the same on a CPU with toy shapes, to find silly mistakes before a GPU is at hand.
set -uo pipefail
cd "$(dirname "$0")/.."
out="$PWD/runs/gpu" suite=cuda device=cuda impls="cuda triton" patience=1
for argument in "$@"; do
    case "$argument" in
        --dry) suite=dry device=cpu impls=cpu patience=20 ;;
        *) out="$(realpath -m "$argument")" ;;
    esac
done
python="${PYTHON:-python3}"
work="$(mktemp -d)"
mkdir -p "$out" "$work/logs" "$work/parts" "$work/site"
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/tests:$work/site" PYTHONDONTWRITEBYTECODE=1

part() { # part NAME SECONDS COMMAND...: runs it and notes how it ended
    local name="$1" limit=$(($2 * patience)) left=$((470 * patience - SECONDS)) start="$SECONDS" ended
    shift 2
    [ "$left" -lt "$limit" ] && limit="$left"
    timeout --signal INT --kill-after 15 "$((limit > 1 ? limit : 1))" "$@" >"$work/logs/$name.log" 2>&1
    ended=$?
    echo "$ended $((SECONDS - start)) $name" >"$work/parts/$name"
    [ "$ended" = 0 ] && echo "ok      $name ($((SECONDS - start)) s)" && return
    echo "FAILED  $name: exit status $ended after $((SECONDS - start)) s"
    grep -aE '^(FAILED|ERROR|E  )|Error:' "$work/logs/$name.log" | head -n 8 | cut -c 1-240
}

beside() { # the same, beside others: at most one a core
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
    part "$@" &
}

bench() { # bench NAME SECONDS: begins no case in the last third of its time
    part "bench-$1" "$2" $python -m pytest -q "bench/kernels/bench_$1.py" --suite "$suite" \
        --time-limit $(($2 * patience * 2 / 3)) --benchmark-json "$work/bench-$1.json"
}

[ $suite = dry ] || nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || exit 1
$python -c 'import torch, triton as t; print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, triton {t.__version__}")'
peers=("${PEERS:-bench/peers}"/*.whl)
[ -e "${peers[0]}" ] &&
    part peers 60 $python -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "${peers[@]}"
part build 120 $python csrc/libraries.py kernels/capo_kernels/lib
$python -c 'import capo_kernels; print(capo_kernels.status())'

export TMPDIR="$work" TRITON_CACHE_DIR="$work/triton"
tests="$(ls tests/kernels/test_*.py | grep -vE 'triton_|emulated|instruction_sets|cuda_launches|linear_gemms')"  # those judge nothing on a GPU
[ $suite = dry ] && tests=tests/kernels/test_token_logprobs.py
for impl in $impls; do
    for file in $tests; do
        workers=() # Triton compiles some 300 kernels for this one, longer than its limit in one process
        [ "$impl-$file" = triton-tests/kernels/test_against_float64.py ] && workers=(-n 8 --dist worksteal)
        beside "$impl-$(basename "$file" .py)" 130 env CAPO_TEST_IMPL=$impl CAPO_TEST_DEVICE=$device \
            $python -m pytest -q -p no:cacheprovider "${workers[@]}" "$file"
    done
done
beside registers 130 $python -m bench.kernels.triton_resources
wait

bench policy_loss 75
bench linear_policy_loss 90
bench train_step 60
bench token_logprobs 25
bench linear_token_logprobs 25

# The loop on the device, with the scripted engine in vLLM's place; the canary compares both.
run="$python tests/scripted_run.py --run.dir $work/run --train.steps"
if $python -c 'import scripted_run' 2>"$work/logs/trainer.log"; then
    part train-float32 60 $run 2 --resume never
    [ $suite = dry ] || part train-resume 60 $run 3
    [ $suite = dry ] || part train-bfloat16 60 $run 2 --resume never --policy.dtype bfloat16 \
        --engine.dtype bfloat16 --loss.kl_coef 0.01
else
    echo "left out: the trainer ($(tail -n 1 "$work/logs/trainer.log"))"
fi

$python -m bench.report.gather "$work" "$out" --seconds "$SECONDS"
ended=$?
tar -C "$work" -czf "$out/logs.tar.gz" logs
echo "all: $SECONDS s; results in $out"
exit $ended
