#!/usr/bin/env bash
# Serves the embedded model, which can criticise as well as solve, with vLLM, on the loopback address only.
set -euo pipefail

model="$(python -c 'from importlib.resources import files; print(files("capo_fast.tiny") / "model")')"
options=(--model "$model" --served-model-name critic --host 127.0.0.1 --port "${PORT:-8000}" --max-model-len 256)
options+=(--generation-config vllm) # only the sampling settings of each request

if ! nvidia-smi -L > /dev/null 2>&1; then # vLLM 0.32 on a CPU fails if a seeded request's prefill is split
    export TORCHDYNAMO_DISABLE=1
    options+=(--dtype float32 --enforce-eager --kv-cache-memory-bytes 268435456)
    options+=(--no-enable-chunked-prefill --max-num-batched-tokens 16384 --block-size 32)
fi
# Not `vllm serve`, which does not work in vLLM's build for CPUs.
exec python -m vllm.entrypoints.openai.api_server "${options[@]}"
