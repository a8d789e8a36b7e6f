#!/usr/bin/env bash
# What needs a GPU and has never had one: bash bench/gpu.sh [FOLDER]. No network, no vLLM; needs torch with CUDA,
# transformers, setuptools (it installs this checkout in the Python that it finds, or in $PYTHON), pydantic, PyYAML, math-verify, tensorboard, rich, pytest and hypothesis. A failed part does not stop the rest.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:-$(mktemp -d)}"
mkdir -p "$out"
python="${PYTHON:-python3}"
export PYTHONPATH=tests TMPDIR="$out"

part() { # part NAME COMMAND...: runs it by itself and says how it ended
    local name="$1"
    shift
    "$@" >"$out/$name.log" 2>&1 && echo "ok      $name" && return
    echo "FAILED  $name ($out/$name.log)"
    tail -n 5 "$out/$name.log"
    failed=1
}
failed=0

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
$python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
part install $python -m pip install --no-index --no-deps --no-build-isolation -e .
# capo_kernels first: triton and cuda have never run on a GPU. cuda is built by the install where nvcc is (for sm_90a).
$python -c 'import capo_kernels; print(capo_kernels.status())'
export CAPO_TEST_DEVICE=cuda
for impl in cuda triton; do
    part "kernels-$impl" env CAPO_TEST_IMPL=$impl $python -m pytest -q -p no:cacheprovider tests/kernels \
        --ignore tests/kernels/adapters --ignore tests/kernels/test_triton_interpreted.py \
        --ignore tests/kernels/test_cuda_emulated.py
done
unset CAPO_TEST_DEVICE
part registers $python -m capo_kernels.fused.triton_compiled
# The loop, FSDP and the learner on the device, with the scripted engine in vLLM's place; the canary compares both.
part train-float32 $python tests/scripted_run.py --run.dir "$out/float32" --train.steps 4 --resume never
part train-bfloat16 $python tests/scripted_run.py --run.dir "$out/bfloat16" --train.steps 4 --resume never \
    --policy.dtype bfloat16 --engine.dtype bfloat16 --loss.kl_coef 0.01
part resume $python tests/scripted_run.py --run.dir "$out/float32" --train.steps 6
part tests $python -m pytest -q -p no:cacheprovider tests/test_policy.py tests/test_learner.py tests/test_checkpoint.py
exit "$failed"
